# docker build -t rsbdali .                         a V100: --build-arg EXTRAS='[v100]'
# docker run --gpus all --shm-size=8g -v IMAGENET:/data -v $PWD/output:/train/output rsbdali train a3 --data /data
#
# Written, not yet built anywhere, nor tried on a GPU: the driver comes from the host (NVIDIA Container Toolkit), CUDA with torch.
FROM python:3.12-slim

# Triton compiles the kernels' launchers with gcc; Python's headers are in this image
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

ARG EXTRAS=""
COPY . /opt/rsbdali
RUN pip install --no-cache-dir "/opt/rsbdali${EXTRAS}"

WORKDIR /train
ENV XDG_CACHE_HOME=/train/output/.cache
ENTRYPOINT ["rsbdali"]
CMD ["doctor"]
