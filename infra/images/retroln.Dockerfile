# RetroLN's images, all from the versions in constraints.txt, built from the root of the repository:
#   prefect   the Prefect server, without torch
#   launcher  a worker that starts Kubernetes jobs
#   cpu, gpu  workers with RetroLN itself
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
WORKDIR /opt/retroln
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# An empty package stands in for the sources, so that a change of code does not install torch again.
RUN mkdir retroln && touch retroln/__init__.py

FROM build AS build-prefect
RUN pip install -c constraints.txt prefect asyncpg fastapi sqlalchemy

FROM build-prefect AS build-launcher
RUN pip install -c constraints.txt prefect-kubernetes==0.8.0 kopf==1.45.2 kubernetes-asyncio==36.1.0 \
      pyopenssl==26.4.0 tenacity==9.2.1 iso8601==2.1.0

# The CPU image takes the CPU build of the same torch: 2 GB less. Pass TORCH_INDEX= to do without it.
FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      -e '.[s3,postgres,train,infer,landmarks,dicom,orchestrate]' \
    # argparse 1.4, which batchgenerators brings in, would shadow the standard library
    && pip uninstall -y argparse unittest2 traceback2 linecache2

# PyPI's torch is the CUDA build and brings CUDA with it; the host needs the driver alone.
FROM build AS build-gpu
RUN pip install -c constraints.txt -e '.[s3,postgres,train,infer,landmarks,dicom,orchestrate]' \
    && pip uninstall -y argparse unittest2 traceback2 linecache2

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    PREFECT_HOME=/tmp/prefect \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false
RUN groupadd --gid 10001 retroln \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin retroln \
    && install -d -o retroln -g retroln /var/lib/retroln /var/lib/retroln/work
COPY --chmod=755 infra/images/entrypoint.sh /usr/local/bin/entrypoint.sh
COPY --chmod=755 infra/images/answers.py /usr/local/bin/answers
WORKDIR /opt/retroln
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]

FROM base AS prefect
# the server writes its pages out when it starts, by default beside its code
ENV PREFECT_UI_STATIC_DIRECTORY=/tmp/prefect-pages
COPY --from=build-prefect /opt/venv /opt/venv
USER 10001:10001
EXPOSE 4200
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["answers", "http://127.0.0.1:4200/api/health"]
CMD ["prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"]

FROM base AS launcher
COPY --from=build-launcher /opt/venv /opt/venv
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["answers", "http://127.0.0.1:8080/health"]
CMD ["prefect", "worker", "start", "--type", "kubernetes", "--with-healthcheck", \
     "--no-create-pool-if-not-found", "--install-policy", "never"]

FROM base AS worker
ENV RETROLN_HOME=/opt/retroln \
    RETROLN_WORK_DIR=/var/lib/retroln/work \
    PYTHONPATH=/opt/retroln \
    MPLCONFIGDIR=/tmp/matplotlib \
    TOTALSEG_HOME_DIR=/var/lib/retroln/totalseg
COPY pyproject.toml constraints.txt prefect.yaml README.md LICENSE ./
COPY infra ./infra
COPY tasks ./tasks
COPY flows ./flows
COPY retroln ./retroln
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["answers", "http://127.0.0.1:8080/health"]
# infra.worker lets flow runs end before the worker does: stop a container with a minute of grace
CMD ["python", "-m", "infra.worker", "40", \
     "prefect", "worker", "start", "--type", "process", "--pool", "cpu-pool", "--with-healthcheck", \
     "--no-create-pool-if-not-found", "--install-policy", "never"]

FROM worker AS cpu
COPY --from=build-cpu /opt/venv /opt/venv

FROM worker AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/venv /opt/venv
