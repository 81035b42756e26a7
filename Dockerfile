# An image that executes runs: `python -m batch_rl_dr3.train` and `... sweep`.
#
#   docker build --build-arg DEVICE=cuda -t batch-rl-dr3:cuda .
#   docker build --build-arg DEVICE=tpu  -t batch-rl-dr3:tpu  .
#   docker build --build-arg DEVICE=cpu  -t batch-rl-dr3:cpu  .
FROM python:3.11-slim-bookworm

# cuda, tpu or cpu: which TensorFlow is installed. CUDA's libraries come with
# its wheel; the machine has to have the driver.
ARG DEVICE=cuda
# Where libtpu is, which TPU machines need.
ARG LIBTPU_INDEX=https://storage.googleapis.com/libtpu-tf-releases/index.html

# What OpenCV's wheel links to and does not bring.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 && \
    rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 XDG_CACHE_HOME=/cache

WORKDIR /app
COPY requirements.txt ./
# Compiled as they are installed: TensorFlow starts in a third of the time.
RUN pip install --compile --requirement requirements.txt && \
    case "$DEVICE" in \
      cuda) pip install --compile "tensorflow[and-cuda]==2.18.1" ;; \
      tpu) pip uninstall --yes tensorflow && \
           pip install --compile tensorflow-tpu==2.18.0 \
             --find-links "$LIBTPU_INDEX" ;; \
      cpu) ;; \
      *) echo "DEVICE is cuda, tpu or cpu, not $DEVICE" >&2; exit 64 ;; \
    esac

COPY pyproject.toml README.md LICENSE ./
COPY batch_rl_dr3 batch_rl_dr3
COPY gin_configs gin_configs
RUN pip install --compile --no-deps .

# Python is the first process and hands SIGTERM on to the run.
WORKDIR /work
CMD ["python", "-m", "batch_rl_dr3.train", "--help"]
