"""The service: a REST interface of our own, the paths of PaddleX's service, health, metrics and a page."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.exceptions import HTTPException as AnyHTTPException

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import FeatError, GalleryError
from paddlex_feat.search.gallery import MAX_TOPK
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.statistics import statistics_of
from paddlex_feat.search.thumbnails import thumbnail
from paddlex_feat.serving import paddlex
from paddlex_feat.serving.images import Fetch, image_of
from paddlex_feat.serving.state import Pair, State

PAGE = Path(__file__).parent / "page.html"
MAX_PAGE = 500  # items of one answer
_OPEN = ("/healthz",)  # paths without a token
_POLICY = "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " \
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip
_BOX = "x1, y1, x2, y2 in pixels"
Corners = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
Cosine = Annotated[float, Field(ge=-1, le=1, strict=True)]
Number = Annotated[int, Field(ge=0, lt=2**63)]  # of an item
_STATUS = {"gallery-file": 503, "gallery-missing": 503, "gallery-server": 503}  # the service's own trouble


class Asked(BaseModel):
    """What all bodies have in common: a name that is not known is a mistake, which may change what is meant."""

    model_config = ConfigDict(extra="forbid")


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

    keys: list[str] | None = None
    labels: list[str | None] | None = None
    ids: list[Number] | None = None


def create_app(
    state: State,
    version: str,
    token: str | None = None,
    fetch: Fetch | None = None,
    max_body: int = 2**24,
    max_requests: int = 64,
) -> FastAPI:
    """The application.

    Args:
        state: model and gallery.
        version: of the package, for the description.
        token: that every request must bear; None: none.
        fetch: downloads images that are addresses; None: these are refused.
        max_body: bytes of a request.
        max_requests: that are at work at once; others are answered with 503.
    """
    app = FastAPI(title="paddlex_feat", version=version, docs_url=None, redoc_url=None)
    app.state.requests = Counter[tuple[str, int]]()
    app.state.seconds = Counter[str]()
    _guard(app, token, max_body, max_requests)
    _explain(app)
    _add_questions(app, state, fetch)
    _add_changes(app, state, fetch)
    paddlex.add_paths(app, state, fetch)
    _add_health(app, state)
    return app


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _add_questions(app: FastAPI, state: State, fetch: Fetch | None) -> None:
    @app.post("/v1/search")
    def search(asked: SearchRequest) -> dict[str, Any]:
        """The nearest images of the gallery."""
        box = None if asked.box is None else Box(*asked.box)
        image = image_of(asked.image, fetch, box)

        def answer(pair: Pair) -> dict[str, Any]:
            feature = pair.batcher.feature(image)
            least = None if asked.threshold == "none" else asked.threshold
            return pair.gallery.answers(feature[None], asked.topk, least, ["image"], [box])[0].as_json()

        return state.run(answer)

    @app.get("/v1/items")
    def items(label: str | None = None, key: str | None = None, after: Number = 0, limit: int = 100) -> dict[str, Any]:
        """Images by id, at most `limit` after the id `after`."""
        keys, labels = (None if value is None else [value] for value in (key, label))
        most = max(1, min(limit, MAX_PAGE))
        found = state.run(lambda pair: pair.gallery.items(keys, labels, after, most))
        return {"items": [item.as_json() for item in found], "images": state.run(_images)}

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
        image = image_of(given.image, fetch, box)

        def added(pair: Pair) -> int:
            feature = pair.batcher.feature(image)
            item = NewItem(given.key, feature, given.label, None, box, given.data, None, thumbnail(image))
            return pair.gallery.add_items([item])[0]

        return {"id": state.run(added), "key": given.key, "images": state.run(_images)}

    @app.delete("/v1/items")
    def remove(wanted: RemoveRequest) -> dict[str, Any]:
        """Remove images. When the answer comes, the change is on the disk."""
        count = state.run(lambda pair: pair.gallery.remove(wanted.keys, wanted.labels, wanted.ids))
        return {"removed": count, "images": state.run(_images)}


def _images(pair: Pair) -> int:
    return len(pair.gallery)


def _add_health(app: FastAPI, state: State) -> None:
    @app.get("/healthz")
    def health() -> dict[str, str]:
        """Whether the service answers."""
        state.run(_images)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        """Figures in Prometheus' text form."""
        with state.current() as pair:
            lines = ["# TYPE paddlex_feat_requests_total counter"]
            for (path, status), count in sorted(app.state.requests.items()):
                lines.append(f'paddlex_feat_requests_total{{path="{path}",status="{status}"}} {count}')
            lines.append("# TYPE paddlex_feat_request_seconds_total counter")
            for path, seconds in sorted(app.state.seconds.items()):
                lines.append(f'paddlex_feat_request_seconds_total{{path="{path}"}} {seconds:.6f}')
            lines += ["# TYPE paddlex_feat_embedded_images_total counter",
                      f"paddlex_feat_embedded_images_total {pair.batcher.images}",
                      "# TYPE paddlex_feat_embedded_batches_total counter",
                      f"paddlex_feat_embedded_batches_total {pair.batcher.batches}",
                      "# TYPE paddlex_feat_gallery_images gauge",
                      f"paddlex_feat_gallery_images {len(pair.gallery)}"]  # fmt: skip
            return "\n".join([*lines, ""])

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})


def _guard(app: FastAPI, token: str | None, max_body: int, max_requests: int) -> None:
    """Refuse requests without the token, from other sites' pages, too long, or too many at once; count the others."""
    working = Counter[str]()

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        problem = await _problem(request, token, max_body)
        if problem is None and working["now"] >= max_requests and request.url.path not in _OPEN:
            problem = _failure(request, 503, "service-busy", "The service has too many requests. Try again later.")
        started = time.perf_counter()
        working["now"] += 1
        try:
            response = problem or await go_on(request)
        finally:
            working["now"] -= 1
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # never what a client makes up
        app.state.requests[path, response.status_code] += 1
        app.state.seconds[path] += time.perf_counter() - started
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


async def _problem(request: Request, token: str | None, max_body: int) -> Response | None:
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if token is None and not is_loopback(_name_of(host)):  # a page whose name was made to lead here
        return _answer(403, "host-refused", f"Requests to the host {host[:80]!r} need a token.")
    if origin is not None and origin.partition("://")[2] != host:
        return _answer(403, "origin-refused", "Requests from pages of other sites are refused.")
    if token is not None and request.url.path not in _OPEN and request.url.path != "/":
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return _answer(401, "token-missing", "The request has no valid token: Authorization: Bearer TOKEN.")
    length = request.headers.get("content-length")
    if "transfer-encoding" in request.headers:  # its length is not known before it is read, whatever it says besides
        return _answer(411, "length-missing", "Send the length of the request.")
    if length is not None and (not length.isdecimal() or int(length) > max_body):
        return _answer(413, "request-too-long", f"A request has at most {max_body} bytes.")
    return None


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _explain(app: FastAPI) -> None:
    """Errors as {code, message, where, fix}; PaddleX's paths have a form of their own."""

    @app.exception_handler(FeatError)
    def ours(request: Request, error: FeatError) -> Response:
        status = 422 if error.code.endswith("-invalid") else _STATUS.get(error.code, 0)
        status = status or (409 if isinstance(error, GalleryError) else 400)
        return _failure(request, status, error.code, error.what, error.where, error.fix)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first.get("loc", ())))
        return _failure(request, 422, "request-invalid", str(first.get("msg")), where)

    @app.exception_handler(AnyHTTPException)
    def others(request: Request, error: AnyHTTPException) -> Response:
        return _failure(request, error.status_code, "request-refused", str(error.detail))


def _failure(
    request: Request, status: int, code: str, message: str, where: str | None = None, fix: str | None = None
) -> Response:
    """An error in the form of the path that was asked: PaddleX's have their own."""
    if request.url.path in paddlex.PATHS:
        return paddlex.failure(status, "\n".join(filter(None, (message, where, fix))))
    return _answer(status, code, message, where, fix)


def _answer(status: int, code: str, message: str, where: str | None = None, fix: str | None = None) -> Response:
    return JSONResponse({"code": code, "message": message, "where": where, "fix": fix}, status)
