# `pictish serve` on port 8000, with PyTorch for the CPU: docs/serving.md#docker. CI reads this file
# (tests/test_dockerfile.py) and does not build it.
FROM python:3.11-slim-trixie AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim-trixie
# Another index of PyTorch's wheels is for a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.14.1,<3" "torchvision>=0.29.1,<1"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/pictish-*.whl)[serve]"
RUN useradd --uid 10001 --user-group --create-home pictish
WORKDIR /home/pictish
USER 10001:10001
# All that the starter needs is in the image.
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["pictish", "serve", "--host", "0.0.0.0", "--port", "8000"]
