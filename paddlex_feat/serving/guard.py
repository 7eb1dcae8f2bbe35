"""What a request must satisfy before the service looks at it, and how many there were."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddlex_feat.serving import answers

_OPEN = ("/healthz",)  # paths without a token
BODY_SECONDS = 30  # in which a request has to arrive


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        token: that every request must bear; None: none.
        max_body: bytes of a request.
        max_requests: that are at work at once; others are answered with 503.
    """

    token: str | None = None
    max_body: int = 2**24
    max_requests: int = 64


@dataclass
class Counts:
    """Requests so far by path and status, and the seconds they took by path."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True)
class _Refusal:
    status: int
    code: str
    message: str


class Guard:
    """Refuses requests without the token, from other sites' pages, too long, or too many at once; counts all.

    It is plain ASGI: FastAPI's `middleware` decorator starts tasks for each request, which took a quarter of its time.
    """

    def __init__(self, app: ASGIApp, limits: Limits, counts: Counts):
        self._app, self._limits, self._counts = app, limits, counts
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[answers.NO_SNIFFING[0]] = answers.NO_SNIFFING[1]
                if refusal is not None:  # else the body, of any length, would be read to its end
                    headers["Connection"] = "close"
            await send(message)

        refusal = self._refusal(scope)
        self._working += 1
        try:
            if refusal is None:
                await self._app(scope, _in_time(receive), noted)
            else:
                answer = answers.failure(scope["path"], refusal.status, refusal.code, refusal.message)
                await answer(scope, receive, noted)
        finally:
            self._working -= 1
            path = getattr(scope.get("route"), "path", "other")  # never what a client makes up
            self._counts.requests[path, status] += 1
            self._counts.seconds[path] += time.perf_counter() - started

    def _refusal(self, scope: Scope) -> _Refusal | None:
        headers, path, token = Headers(scope=scope), scope["path"], self._limits.token
        host, origin = headers.get("host", ""), headers.get("origin")
        if token is None and not is_loopback(_name_of(host)):  # a page whose name was made to lead here
            return _Refusal(403, "host-refused", f"Requests to the host {host[:80]!r} need a token.")
        if origin is not None and origin.partition("://")[2] != host:
            return _Refusal(403, "origin-refused", "Requests from pages of other sites are refused.")
        if token is not None and path not in (*_OPEN, "/"):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return _Refusal(401, "token-missing", "The request has no valid token: Authorization: Bearer TOKEN.")
        length = headers.get("content-length")
        if "transfer-encoding" in headers:  # its length is not known before it is read, whatever it says besides
            return _Refusal(411, "length-missing", "Send the length of the request.")
        if length is not None and (not length.isdecimal() or int(length) > self._limits.max_body):
            return _Refusal(413, "request-too-long", f"A request has at most {self._limits.max_body} bytes.")
        if self._working >= self._limits.max_requests and path not in _OPEN:
            return _Refusal(503, "service-busy", "The service has too many requests. Try again later.")
        return None


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _in_time(receive: Receive) -> Receive:
    """As `receive`, but a request that has not arrived after BODY_SECONDS is given up: others wait for its place."""
    deadline = time.monotonic() + BODY_SECONDS
    whole = False

    async def received() -> Message:
        nonlocal whole
        if whole:  # what follows is the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            what = f"The request was not whole after {BODY_SECONDS} seconds."
            raise HTTPException(408, what, {"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return received
