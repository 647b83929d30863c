# A scanner that needs no network, is nobody in particular, and reads models from a folder that it cannot write to:
#   docker build -t amber .
#   mkdir -p results
#   docker run --rm --network none --user "$(id -u)" -v "$PWD/model:/model:ro" -v "$PWD/results:/results" amber --model /model
# The usual index has a torch for Linux that brings CUDA with it; --build-arg PIP_INDEX_URL=... names another.
FROM python:3.11-slim-bookworm
ARG PIP_INDEX_URL
WORKDIR /amber
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY main.py LICENSE ./
COPY Utils Utils
COPY configs configs
COPY Data/Main/Prompts Data/Main/Prompts
COPY Data/Models Data/Models
COPY Data/Scenes Data/Scenes
RUN mkdir -p Data/Main/Features /results && chmod 1777 Data/Main/Features /results && useradd amber
USER amber
ENV HF_HUB_OFFLINE=1 HOME=/tmp
ENTRYPOINT ["python", "/amber/main.py", "--output", "/results"]
