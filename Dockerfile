# pxfast's command line, with the CPU engine compiled in:
#   docker build -t pxfast . && docker run --rm -v "$PWD:/work" pxfast demo
# With the CUDA engine:
#   docker build -t pxfast --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg CUDA=1 .
#   docker run --rm --gpus all -v "$PWD:/work" pxfast info
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
ARG CUDA=0
# PyTorch's index of CPU builds makes the image 5 GB smaller; the default build brings the libraries of CUDA
ARG TORCH_INDEX=
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-venv python3-dev \
 && rm -rf /var/lib/apt/lists/*
COPY . /src
# Python's own environment belongs to the base image; ours stands beside it
RUN python3 -m venv /opt/pxfast \
 && if [ -n "$TORCH_INDEX" ]; then \
      /opt/pxfast/bin/pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; \
    fi \
 && PXFAST_CUDA="$CUDA" /opt/pxfast/bin/pip install --no-cache-dir /src \
 && rm -rf /src
ENV PATH="/opt/pxfast/bin:$PATH"
WORKDIR /work
ENTRYPOINT ["pxfast"]
CMD ["--help"]
