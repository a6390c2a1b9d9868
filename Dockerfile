# d2_ext for CPUs, without root:
#   docker build -t d2_ext .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" d2_ext predict --model thermal_drone IMAGES --output predicted
# PyTorch comes from the package index as it is configured. The build for CPUs alone is much smaller; pytorch.org tells its address:
#   docker build --build-arg TORCH_INDEX=ADDRESS -t d2_ext .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:${PYTHON}-slim-bookworm AS base
# libGL and GLib: opencv-python is linked with them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" "torchvision>=0.25"
RUN useradd --create-home --uid 1000 d2
# Any user may run it: caches of matplotlib and torch go where all can write.
ENV MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache PYTHONUNBUFFERED=1
WORKDIR /work

# For .devcontainer: the clone is mounted and installed in place.
FROM base AS dev
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
USER d2
# In the home folder: it stays d2's where an editor gives d2 the number of the clone's owner.
RUN python -m venv --system-site-packages /home/d2/venv
ENV PATH=/home/d2/venv/bin:$PATH

FROM base AS runtime
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
USER d2
ENTRYPOINT ["d2_ext"]
CMD ["--help"]
