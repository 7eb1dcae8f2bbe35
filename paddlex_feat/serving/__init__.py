"""A gallery and its model as a service: HTTP by FastAPI and uvicorn, the paths of PaddleX's service, and a page."""
