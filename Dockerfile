# The service in a container: docs/search.md has the commands.
FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[cpu,starter,search,serve,onnx,openvino]" \
    && useradd --create-home --uid 1000 service \
    && install -d -o service /data
USER 1000
# Galleries, logs and results; mount a folder or a volume here.
VOLUME /data
EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz')"]
ENTRYPOINT ["paddlex-feat", "-c", "EfficientNet_Lite0_rec", "-o", "Global.output=/data", "-o", "Predict.model_dir=null"]
CMD ["-o", "Global.mode=serve", "-o", "Serve.host=0.0.0.0"]
