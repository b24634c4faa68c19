# The whole pipeline in Debian, from requirements.lock: docs/container.md.
FROM debian:bookworm-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 # Of a clone that is mounted, whoever owns it.
 && git config --system --add safe.directory '*'

WORKDIR /gcflow

# torch as PyPI has it is for GPUs of NVIDIA and for CPUs; --build-arg PIP_EXTRA_INDEX_URL names PyTorch's index of another build.
ARG PIP_EXTRA_INDEX_URL
COPY requirements.lock .
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --requirement requirements.lock

COPY . .
RUN make .venv/complete

# The code of the folder where a command runs comes first, so that a clone that is mounted runs its own.
ENV PATH=/gcflow/.venv/bin:$PATH PYTHONPATH=.
CMD ["make", "reproduce"]
