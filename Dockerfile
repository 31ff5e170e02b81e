# syntax=docker/dockerfile:1
# One file, five images: api, worker-cpu, worker-cuda, hrm-serve, simplefoundation. docs/images.md says which is what.
#
#   docker build -t aios/hrm-serve:local --target hrm-serve .
#
# Build arguments: BASE, TORCH_INDEX_URL, VERSION, REVISION. An index or certificate of your own goes in as a secret,
# which leaves no trace in the image: --secret id=pip,src=pip.conf --secret id=ca,src=ca.pem (in which case pip.conf
# says `cert = /run/secrets/ca`).

# A release pins the digest, too: BASE=python:3.11.14-slim-bookworm@sha256:... The wheel that brings a redis-server
# exists for Python 3.11 and 3.12. CUDA needs no other base: torch brings its libraries, the host brings the driver.
ARG BASE=python:3.11.14-slim-bookworm


# --- Stages that no image keeps: pip, and a compiler if you have to add one, stay here.

FROM ${BASE} AS build
WORKDIR /app
# Two environments: pip lives in one and fills the other.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/aios
ENV PATH=/opt/pip/bin:$PATH PIP_PYTHON=/opt/aios/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY pyproject.toml constraints.txt README.md ./
# Our sources are installed by the place of their folders, so empty folders do: a change of the sources installs nothing.
RUN for room in api shared scripts worker; do mkdir "$room" && touch "$room/__init__.py"; done \
    && for name in aios/serve app/eval levanter/serve inference/demo inference/server; do mkdir -p "scripts/entry_points/$name"; done

FROM build AS packages-api
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -e ".[api,tracing]"

# torch is installed first, alone and by its exact version: a range may find another build, gigabytes larger.
# What is removed are headers and its own tests.
FROM build AS packages-worker-cpu
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} --no-deps torch==2.13.0 \
    && torch=$(echo /opt/aios/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/test_* "$torch"/bin/*Test "$torch"/bin/protoc*
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -e ".[worker,tracing]"

# PyPI's build of torch is the one for CUDA.
FROM build AS packages-worker-cuda
ARG TORCH_INDEX_URL=https://pypi.org/simple
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} --no-deps torch==2.13.0 \
    && torch=$(echo /opt/aios/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/test_* "$torch"/bin/*Test "$torch"/bin/protoc*
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -e ".[worker,tracing]"

FROM packages-worker-cpu AS packages-serve
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -e ".[api,worker,embedded,tracing]"

FROM packages-serve AS packages-simplefoundation
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt -e ".[api,worker,embedded,tracing,ui]"

# The kernels, by a C compiler that comes as a wheel. Where it has none for the platform, torch computes alone.
FROM build AS kernels
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_PYTHON=/opt/pip/bin/python pip install -c constraints.txt setuptools ziglang
COPY setup.py ./
COPY worker/native worker/native
RUN /opt/pip/bin/python setup.py build_kernels

# .dockerignore lists what is copied. Compiled here, since a read-only root cannot keep what Python compiles.
FROM ${BASE} AS source
WORKDIR /app
COPY . .
COPY --from=kernels /app/worker/native worker/native
RUN python3 -m compileall -q --invalidation-mode unchecked-hash api shared scripts worker


# --- What all images begin with

# No image has a C compiler, without which the layers of a model on a GPU cannot be compiled.
FROM ${BASE} AS runtime
ENV PATH=/opt/aios/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AIOS_COMPILE_LAYERS=false
RUN groupadd --gid 10001 aios \
    && useradd --uid 10001 --gid aios --home-dir /tmp --no-create-home --shell /usr/sbin/nologin aios \
    && install --directory --owner=aios --group=aios --mode=0700 /artifacts
# config/ and models/ are looked for beside shared/: so our sources stay in one folder, and are not in site-packages.
WORKDIR /app
STOPSIGNAL SIGTERM
ENTRYPOINT ["aios"]
ARG VERSION=local
ARG REVISION=unknown
LABEL org.opencontainers.image.title="HRM inference fleet" \
      org.opencontainers.image.description="Serves Hierarchical Reasoning Models: a FastAPI front, Redis, batching workers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, by which Kubernetes sees that it is not root.
USER 10001:10001

FROM runtime AS front
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python3", "-c", "import http.client, os, sys; \
port = os.environ.get('AIOS_PORT') or os.environ.get('PORT') or '8000'; \
front = http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); front.request('GET', '/healthz'); \
sys.exit(front.getresponse().status != 200)"]

FROM runtime AS worker
# malloc asks for huge pages, as it does in the workers of `aios serve hrm`.
ENV AIOS_WORKER_PORT=9090 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python3", "-c", "import http.client, os, sys; \
worker = http.client.HTTPConnection('127.0.0.1', int(os.environ['AIOS_WORKER_PORT']), timeout=4); \
worker.request('GET', '/healthz'); sys.exit(worker.getresponse().status != 200)"]
CMD ["worker"]


# --- The images

FROM front AS api
COPY --from=packages-api /opt/aios /opt/aios
COPY --from=source /app /app
CMD ["api"]

FROM worker AS worker-cpu
ENV AIOS_DEVICE=cpu
COPY --from=packages-worker-cpu /opt/aios /opt/aios
COPY --from=source /app /app

FROM worker AS worker-cuda
ENV AIOS_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-worker-cuda /opt/aios /opt/aios
COPY --from=source /app /app

# All in one container, with the sample model unless AIOS_MODEL_PATH names another.
FROM front AS hrm-serve
COPY --from=packages-serve /opt/aios /opt/aios
COPY --from=source /app /app
CMD ["serve", "hrm"]

# The same with the web app. The last stage is what a build without --target makes.
FROM front AS simplefoundation
EXPOSE 8501
COPY --from=packages-simplefoundation /opt/aios /opt/aios
COPY --from=source /app /app
CMD ["serve", "hrm", "--ui", "--ui-host", "0.0.0.0"]
