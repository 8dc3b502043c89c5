# Three images: `gateway`, small, without an engine; `replica`, vLLM's own image with Headrace in it; and
# `spark`, Spark's own with what scores tables.
#
#   docker build --target gateway -t headrace:0.1.0 .
#   docker build --target replica -t headrace-replica:0.1.0 .
#   docker build --target spark -t headrace-spark:0.1.0 .
#
# Where there is no way out: --build-arg PYTHON_IMAGE=..., COMPILER_IMAGE=..., VLLM_IMAGE=...,
# SPARK_IMAGE=..., PIP_INDEX_URL=... (and PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST) name mirrors. pip takes
# the last three from its environment.
#
# COMPILER_IMAGE is the Python of PYTHON_IMAGE with a C compiler: the gateway's hot path is compiled
# (docs/adr/0032), for that version of Python only.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG COMPILER_IMAGE=python:3.11-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
ARG SPARK_IMAGE=apache/spark:4.0.1-python3

FROM ${PYTHON_IMAGE} AS wheel
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
WORKDIR /src
COPY . .
RUN ["python", "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", "/wheels", "."]

FROM ${COMPILER_IMAGE} AS compiled
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
WORKDIR /src
COPY . .
# The compiler goes by types, those of what the gateway runs on too.
RUN ["python", "-m", "pip", "install", "--no-cache-dir", "--constraint", "constraints/dev.txt", \
     "mypy", "setuptools", "types-PyYAML", ".[keda,kubernetes,otel,postgres,s3,spiffe]"]
ENV HEADRACE_COMPILE=1
RUN ["python", "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--no-build-isolation", \
     "--wheel-dir", "/wheels", "."]

FROM ${PYTHON_IMAGE} AS installed
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
RUN ["python", "-m", "venv", "--without-pip", "/opt/headrace"]
COPY constraints /constraints
COPY --from=compiled /wheels /wheels
RUN ["python", "-m", "pip", "--python", "/opt/headrace", "install", "--no-cache-dir", \
     "--find-links", "/wheels", "--constraint", "/constraints/dev.txt", \
     "headrace[keda,kubernetes,otel,postgres,s3,spiffe]==0.1.0"]

FROM ${VLLM_IMAGE} AS replica
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
COPY --from=wheel /wheels /wheels
# Into the engine's own Python, and nothing of it that already serves is changed.
RUN ["python3", "-m", "pip", "install", "--no-cache-dir", "--upgrade-strategy", "only-if-needed", \
     "--find-links", "/wheels", "headrace[spiffe]==0.1.0"]
USER 10001:10001
ENTRYPOINT ["headrace"]
CMD ["replica", "--settings", "/etc/headrace/replica.yaml"]

FROM ${SPARK_IMAGE} AS spark
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST
USER 0:0
RUN ["python3", "-m", "pip", "install", "--no-cache-dir", "pandas==2.3.3", "pyarrow==26.0.1"]
# As files: its Python may be older than ours, and executors need no more.
COPY LICENSE /opt/headrace/LICENSE
COPY serving/__init__.py /opt/headrace/serving/__init__.py
COPY serving/jobs /opt/headrace/serving/jobs
ENV PYTHONPATH=/opt/headrace PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

FROM ${PYTHON_IMAGE} AS gateway
COPY --from=installed /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["headrace"]
CMD ["gateway", "--settings", "/etc/headrace/settings.yaml"]
