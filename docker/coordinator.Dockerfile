# The coordinator: `flexlora-server serve`, without PyTorch, which workers have in their own image (worker.Dockerfile).
# Built from the repository's root; see docker/README.md.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/flexlora/bin/python
RUN python -m venv --without-pip /opt/flexlora
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY migrations migrations
COPY server server
COPY shared shared
RUN python -m pip install -c constraints.txt ".[server]"

FROM python:3.11-slim-bookworm
# A number of its own, so that no account of the host is meant by accident
RUN groupadd --gid 10001 flexlora \
 && useradd --uid 10001 --gid flexlora --no-create-home --home-dir /data --shell /usr/sbin/nologin flexlora \
 && install -d -o flexlora -g flexlora -m 0700 /data
COPY --from=build /opt/flexlora /opt/flexlora
COPY --chown=10001:10001 docker/healthcheck.py /opt/flexlora/healthcheck.py
ENV PATH=/opt/flexlora/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    FLEXLORA_DATA_DIR=/data FLEXLORA_HOST=0.0.0.0 FLEXLORA_PORT=8000 FLEXLORA_WORKERS=0 OMP_NUM_THREADS=1
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/flexlora/healthcheck.py"]
ENTRYPOINT ["flexlora-server"]
CMD ["serve"]
