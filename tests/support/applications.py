"""The service as an application in this process, with a model that takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np

from paddlex_feat.inference.identity import ModelIdentity

D = 8
IDENTITY = ModelIdentity("m", "d", "p", D)


class Model:
    """What a service needs of a model: the means of an image's parts as its feature."""

    def __init__(self, identity: ModelIdentity = IDENTITY):
        self.identity = identity

    def predict(self, images: list[Any]) -> Iterator[Any]:
        assert not images  # a gallery without images can be built anew
        return iter(())

    def reduce(self, image: np.ndarray) -> np.ndarray:
        import cv2

        return cv2.resize(image, (4, 2))

    def features_of(self, images: np.ndarray) -> np.ndarray:
        rows = images[..., 0].reshape(len(images), D).astype(np.float32) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Client:
    """Sends requests to the application itself, without a network."""

    def __init__(self, app: Any):
        self._app, self._loop = app, asyncio.new_event_loop()

    def send(self, method: str, path: str, body: bytes, query: bytes = b"", **headers: str) -> tuple[int, bytes]:
        return self._loop.run_until_complete(self.sent(method, path, body, query, **headers))

    def together(self, *requests: Any) -> list[Any]:
        """The results of coroutines that run at once."""

        async def all_of_them() -> list[Any]:
            return list(await asyncio.gather(*requests))

        return self._loop.run_until_complete(all_of_them())

    async def sent(
        self, method: str, path: str, body: bytes = b"", query: bytes = b"", wait: float = 0, **headers: str
    ) -> tuple[int, bytes]:
        """Status and content of an answer; the body comes after `wait` seconds."""
        fields = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query, "scheme": "http", "server": ("localhost", 80),
            "client": ("127.0.0.1", 5), "root_path": "",
            "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in fields.items()],
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(wait)
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return int(sent[0]["status"]), content
