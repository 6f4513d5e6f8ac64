# The worker: `flexlora-server worker`, with PyTorch. Built from the repository's root; see docker/README.md.
FROM python:3.11-slim-bookworm AS build
# PyTorch's CPU wheel index, from PyTorch's installation page. Left empty, the default index's build brings gigabytes of CUDA.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/flexlora/bin/python
RUN python -m venv --without-pip /opt/flexlora
WORKDIR /src
COPY constraints.txt ./
# PyTorch in a layer of its own, which outlives every change of the project; its tests and C++ headers serve nobody here
RUN python -m pip install -c constraints.txt torch \
 && cd /opt/flexlora/lib/python3.11/site-packages/torch && rm -rf test include bin/test_*
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY migrations migrations
COPY server server
COPY shared shared
RUN python -m pip install -c constraints.txt ".[worker]"

FROM python:3.11-slim-bookworm
# The coordinator's user: both write to the same data folder where there is no object store
RUN groupadd --gid 10001 flexlora \
 && useradd --uid 10001 --gid flexlora --no-create-home --home-dir /data --shell /usr/sbin/nologin flexlora \
 && install -d -o flexlora -g flexlora -m 0700 /data
COPY --from=build /opt/flexlora /opt/flexlora
ENV PATH=/opt/flexlora/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 FLEXLORA_DATA_DIR=/data OMP_NUM_THREADS=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["flexlora-server"]
CMD ["worker"]
