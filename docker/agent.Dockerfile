# The agent: `flexlora-client`, without fastapi and sqlalchemy. Built from the repository's root; see docker/README.md.
FROM python:3.11-slim-bookworm AS build
# Left empty, PyTorch comes from the default index, with CUDA: for participants with a GPU. PyTorch's CPU wheel index, from
# PyTorch's installation page, makes an image for processors, smaller by gigabytes.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/flexlora/bin/python
RUN python -m venv --without-pip /opt/flexlora
WORKDIR /src
COPY constraints.txt ./
# The same lines as for the worker, so that both are built from one cached layer
RUN python -m pip install -c constraints.txt torch \
 && cd /opt/flexlora/lib/python3.11/site-packages/torch && rm -rf test include bin/test_*
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY migrations migrations
COPY server server
COPY shared shared
RUN python -m pip install -c constraints.txt ".[agent]"

FROM python:3.11-slim-bookworm AS agent
RUN groupadd --gid 10001 flexlora \
 && useradd --uid 10001 --gid flexlora --no-create-home --home-dir /state --shell /usr/sbin/nologin flexlora \
 && install -d -o flexlora -g flexlora -m 0700 /state
COPY --from=build /opt/flexlora /opt/flexlora
# /state keeps the credentials, the work in progress and models from a hub; mount a volume there
ENV PATH=/opt/flexlora/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FLEXLORA_HOME=/state HF_HOME=/state/huggingface TOKENIZERS_PARALLELISM=false
USER 10001:10001
WORKDIR /state
ENTRYPOINT ["flexlora-client"]
CMD ["--help"]

# What the profile `example` of docker-compose.yml runs: the agent with the demo's model and tasks
FROM agent AS example
COPY --chown=10001:10001 docker/example /opt/example
COPY --chown=10001:10001 demo /opt/example/demo

FROM agent
