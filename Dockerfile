# One image for all services, Redis included: docker-compose.yml says which is which.
# Firecracker is not in it: the host worker gets the official release from its host.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements/run.txt requirements/
RUN python -m venv /opt/mikrom \
    && /opt/mikrom/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY schemas schemas
COPY mikrom_reconcile mikrom_reconcile
RUN /opt/mikrom/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends e2fsprogs git lz4 nftables openssh-client redis-server zstd \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/mikrom --create-home mikrom \
    && chmod 700 /var/lib/mikrom
COPY --from=build /opt/mikrom /opt/mikrom
ENV PATH=/opt/mikrom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIKROM_STATE_DIR=/var/lib/mikrom \
    MIKROM_RUN_DIR=/tmp/mikrom
USER 10001
WORKDIR /var/lib/mikrom
ENTRYPOINT ["mikrom"]
CMD ["--help"]
