"""The service: a REST interface of our own, the paths of PaddleX's service, health, metrics and a page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

from paddlex_feat.data.images.source import Box
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.search.gallery import MAX_TOPK
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.statistics import statistics_of
from paddlex_feat.search.thumbnails import thumbnail
from paddlex_feat.serving import paddlex
from paddlex_feat.serving.answers import explain
from paddlex_feat.serving.batching import Question
from paddlex_feat.serving.guard import Counts, Guard, Limits
from paddlex_feat.serving.images import Fetch, reader_of
from paddlex_feat.serving.state import Pair, State

PAGE = Path(__file__).parent / "page.html"
MAX_PAGE = 500  # items of one answer
MAX_REMOVED = 10_000  # keys, labels or ids of one request
_POLICY = "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " \
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip
_BOX = "x1, y1, x2, y2 in pixels"
Corners = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
Cosine = Annotated[float, Field(ge=-1, le=1, strict=True)]
Number = Annotated[int, Field(ge=0, lt=2**63)]  # of an item


class Asked(BaseModel):
    """What all bodies have in common: a name that is not known is a mistake, which may change what is meant."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_name(cls, given: Any) -> Any:
        # pydantic's own extra="forbid" lists all: seconds and gigabytes, if a body consists of them.
        name = next((n for n in given if n not in cls.model_fields), None) if isinstance(given, dict) else None
        if name is not None:
            raise PydanticCustomError("unknown_name", "There is no {name}.", {"name": name[:80]})
        return given


class SearchRequest(Asked):
    """A question."""

    image: str = Field(description="The image file as base64, or its address where these are allowed")
    box: Corners | None = Field(None, description=_BOX)
    topk: int = Field(10, ge=1, le=MAX_TOPK)
    threshold: Cosine | Literal["auto", "evaluation", "none"] | None = Field(
        "auto", description="A cosine similarity; auto, evaluation; none or null for none"
    )


class ItemRequest(Asked):
    """An image for the gallery."""

    image: str = Field(description="The image file as base64, or its address where these are allowed")
    key: str = Field(description="Unique name; the image of the same key is replaced")
    label: str | None = None
    box: Corners | None = Field(None, description=_BOX)
    data: Any = Field(None, description="Any value of JSON, given back with answers")


class RemoveRequest(Asked):
    """Which images are removed: those that have one of the keys, and one of the labels, and one of the ids."""

    keys: Annotated[list[str], Field(max_length=MAX_REMOVED, fail_fast=True)] | None = None
    labels: Annotated[list[str | None], Field(max_length=MAX_REMOVED, fail_fast=True)] | None = None
    ids: Annotated[list[Number], Field(max_length=MAX_REMOVED, fail_fast=True)] | None = None


def create_app(state: State, version: str, limits: Limits, counts: Counts, fetch: Fetch | None = None) -> FastAPI:
    """The application.

    Args:
        state: model and gallery.
        version: of the package, for the description.
        limits: that requests must keep.
        counts: of requests; it adds to them.
        fetch: downloads images that are addresses; None: these are refused.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Every request that is let in gets a thread: none waits for another's images.
        current_default_thread_limiter().total_tokens = limits.max_requests
        yield

    app = FastAPI(title="paddlex_feat", version=version, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, limits=limits, counts=counts)
    explain(app)
    _add_questions(app, state, fetch, limits.max_requests)
    _add_changes(app, state, fetch)
    paddlex.add_paths(app, state, fetch)
    _add_health(app, state, counts)
    return app


def _add_questions(app: FastAPI, state: State, fetch: Fetch | None, max_requests: int) -> None:
    fetching = ThreadPoolExecutor(max_requests, "fetching")  # slow servers hold up nobody else's picture

    @app.post("/v1/search")
    async def search(asked: SearchRequest) -> dict[str, Any]:
        """The nearest images of the gallery."""
        box = None if asked.box is None else Box(*asked.box)
        if is_url(asked.image):
            loop = asyncio.get_running_loop()
            read = await loop.run_in_executor(fetching, reader_of, asked.image, fetch, box)
        else:
            read = reader_of(asked.image, fetch, box)
        least = None if asked.threshold == "none" else asked.threshold
        return (await state.answer(Question(read, asked.topk, least, box))).as_json()

    @app.get("/v1/items")
    def items(label: str | None = None, key: str | None = None, after: Number = 0, limit: int = 100) -> dict[str, Any]:
        """Images by id, at most `limit` after the id `after`."""
        keys, labels = (None if value is None else [value] for value in (key, label))
        most = max(1, min(limit, MAX_PAGE))
        found, images = state.run(lambda pair: (pair.gallery.items(keys, labels, after, most), len(pair.gallery)))
        return {"items": [item.as_json() for item in found], "images": images}

    @app.get("/v1/labels")
    def labels() -> dict[str, Any]:
        """Each label, and how many images have it."""
        found = state.run(lambda pair: pair.gallery.labels())
        return {"labels": [{"label": label, "images": count} for label, count in found]}

    @app.get("/v1/items/{number}/thumbnail", response_class=Response)
    def small(number: Number) -> Response:
        """A small JPEG of an image."""
        data = state.run(lambda pair: pair.gallery.thumbnail(number))
        if data is None:
            raise HTTPException(404, "There is no such image, or it has no thumbnail.")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, no-cache"})

    @app.get("/v1/stats")
    def stats() -> dict[str, Any]:
        """Figures of the gallery, its model and the threshold auto."""
        return state.run(lambda pair: statistics_of(pair.gallery, advised=False).as_json())


def _add_changes(app: FastAPI, state: State, fetch: Fetch | None) -> None:
    @app.post("/v1/items", status_code=201)
    def add(given: ItemRequest) -> dict[str, Any]:
        """Add an image, or replace the one of its key. When the answer comes, the change is on the disk."""
        box = None if given.box is None else Box(*given.box)
        read = reader_of(given.image, fetch, box)

        def added(pair: Pair) -> dict[str, Any]:
            [(feature, small)] = pair.batcher.features([read], thumbnail)
            item = NewItem(given.key, feature, given.label, None, box, given.data, None, small)
            [number] = pair.gallery.add_items([item])
            return {"id": number, "key": given.key, "images": len(pair.gallery)}

        return state.run(added)

    @app.delete("/v1/items")
    def remove(wanted: RemoveRequest) -> dict[str, Any]:
        """Remove images. When the answer comes, the change is on the disk."""

        def removed(pair: Pair) -> dict[str, Any]:
            count = pair.gallery.remove(wanted.keys, wanted.labels, wanted.ids)
            return {"removed": count, "images": len(pair.gallery)}

        return state.run(removed)


def _add_health(app: FastAPI, state: State, counts: Counts) -> None:
    checking = ThreadPoolExecutor(1, "checking")  # however many requests are at work

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the service answers, and has its gallery."""
        await asyncio.get_running_loop().run_in_executor(checking, state.check)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        """Figures in Prometheus' text form."""

        def told(pair: Pair) -> str:
            lines = ["# TYPE paddlex_feat_requests_total counter"]
            for (path, status), count in sorted(counts.requests.items()):
                lines.append(f'paddlex_feat_requests_total{{path="{path}",status="{status}"}} {count}')
            lines.append("# TYPE paddlex_feat_request_seconds_total counter")
            for path, seconds in sorted(counts.seconds.items()):
                lines.append(f'paddlex_feat_request_seconds_total{{path="{path}"}} {seconds:.6f}')
            lines += ["# TYPE paddlex_feat_embedded_images_total counter",
                      f"paddlex_feat_embedded_images_total {pair.batcher.images}",
                      "# TYPE paddlex_feat_embedded_batches_total counter",
                      f"paddlex_feat_embedded_batches_total {pair.batcher.batches}",
                      "# TYPE paddlex_feat_gallery_images gauge",
                      f"paddlex_feat_gallery_images {len(pair.gallery)}"]  # fmt: skip
            return "\n".join([*lines, ""])

        return state.run(told)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})
