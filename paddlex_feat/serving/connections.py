"""Connections: those that ask nothing are closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENT_SECONDS = 20.0  # after which a connection without a request is closed, twice that at most


class Protocol(H11Protocol):
    """HTTP/1.1 by h11, which limits the length of headers; uvicorn itself waits for them for ever."""

    _seen: Any = None  # the request at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look after the connection."""
        super().connection_made(transport)
        self.loop.call_later(SILENT_SECONDS, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self.loop.call_later(SILENT_SECONDS, self._look)
