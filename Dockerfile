# The page of fsdino in a container. Not built by this project's tests: it needs a registry of images.
# docker build -t fsdino . && docker run --rm -p 7860:7860 -e FSDINO_PASSWORD=... fsdino
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 fsdino
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "/src[page,video]" \
    && rm -rf /src
# A number, by which Kubernetes sees that it is not root.
USER 1000
WORKDIR /home/fsdino
EXPOSE 7860
# Without FSDINO_PASSWORD it refuses to start, since --host lets other machines in.
CMD ["fsdino", "serve", "--host", "0.0.0.0", "--port", "7860"]
