# The MLflow server with logins, from the versions in constraints.txt.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
COPY constraints.txt /tmp/constraints.txt
RUN pip install -c /tmp/constraints.txt 'mlflow[auth]' 'psycopg[binary]' boto3 fastapi sqlalchemy

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MLFLOW_AUTH_CONFIG_PATH=/etc/mlflow/auth.ini \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true
RUN groupadd --gid 10001 mlflow \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlflow
COPY --chmod=755 infra/images/entrypoint.sh /usr/local/bin/entrypoint.sh
COPY --chmod=755 infra/images/answers.py /usr/local/bin/answers
COPY --chmod=644 infra/images/mlflow_auth.ini /etc/mlflow/auth.ini
COPY --from=build /opt/venv /opt/venv
WORKDIR /tmp
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["answers", "http://127.0.0.1:5000/health"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["mlflow", "server", "--app-name", "basic-auth", "--host", "0.0.0.0", "--port", "5000", \
     "--serve-artifacts", "--artifacts-destination", "s3://mlflow"]
