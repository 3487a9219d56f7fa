# Three images of one recipe:
#   docker build --target gpu -t thinkserve .        vLLM on CUDA (the default target)
#   docker build --target gateway -t thinkserve:gateway .   no engine: in front of servers that run elsewhere
#   docker build --target cpu -t thinkserve:cpu .    the transformers engine on the CPU
#   docker run --gpus all -p 8000:8000 -v ./ckpt:/models/ckpt:ro thinkserve /models/ckpt
# The working directory is not the source folder: run from there, Python would take ./thinkserve for the package and
# miss thinkserve.training, which lives in another folder.

FROM python:3.12-slim AS cpu
# For a small image: --build-arg TORCH_ARGS="--index-url URL", with the address of PyTorch's CPU wheels. Without it
# the default torch comes with its CUDA libraries, which this target does not use.
ARG TORCH_ARGS=""
COPY . /src
RUN pip install --no-cache-dir torch==2.13.0 ${TORCH_ARGS} \
    && pip install --no-cache-dir '/src[transformers,seal]' \
    && rm -rf /src \
    && useradd --create-home --uid 10001 thinkserve
WORKDIR /app
USER thinkserve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
# A container's own loopback reaches nobody, so here, and only here, it listens on all its addresses.
ENTRYPOINT ["thinkserve", "serve", "--host", "0.0.0.0"]

FROM python:3.12-slim AS gateway
COPY . /src
RUN pip install --no-cache-dir '/src[seal]' \
    && rm -rf /src \
    && useradd --create-home --uid 10001 thinkserve
WORKDIR /app
USER thinkserve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
ENTRYPOINT ["thinkserve", "serve", "--host", "0.0.0.0"]

FROM vllm/vllm-openai:v0.32.0 AS gpu
COPY . /src
# vLLM, torch and transformers are the base image's.
RUN pip install --no-cache-dir '/src[seal]' \
    && rm -rf /src \
    && useradd --create-home --uid 10001 thinkserve
WORKDIR /app
USER thinkserve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=900s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
ENTRYPOINT ["thinkserve", "serve", "--host", "0.0.0.0", "--engine", "vllm"]
