"""Read large JSON files record by record, in little memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from paddlex_feat.fileio.reading import open_file

_CHUNK = 2**20  # characters that are read at once
MAX_RECORD = 2**26  # characters of a record
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n\]])")  # and a value after it
_DECODER = json.JSONDecoder()


class JsonError(ValueError):
    """A file is not JSON, or not of the expected form."""


class JsonStream:
    """The text of a JSON file, decoded piece by piece.

    Args:
        stream: the text.
        max_chars: after which it is not JSON, so that a claim reads little; None: no limit.
    """

    def __init__(self, stream: TextIO, max_chars: int | None = None):
        self._stream, self._left = stream, max_chars
        self._text, self._at, self._ended = "", 0, False

    def records(self, *keys: str) -> Iterator[tuple[str, Any]]:
        """(key, record) of the arrays of these keys of an object, in its order; without keys ("", record) of an array.

        Raises:
            JsonError: what follows is not JSON.
            OSError: it cannot be read.
        """
        start = self._next()
        if start != ("{" if keys else "["):
            raise JsonError(f"it does not begin with a JSON {'object' if keys else 'array'}")
        yield from self._object(keys) if keys else (("", record) for record in self._array())
        if self._next():
            raise JsonError("something follows its end")

    def _object(self, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        self._at += 1
        while self._next() != "}":
            key = self._value()
            if not isinstance(key, str) or self._next() != ":":
                raise JsonError("a key is expected")
            self._at += 1
            if self._next() == "[":  # not as one value, which might be large
                for record in self._array():
                    if key in keys:
                        yield key, record
            else:
                self._value()
            self._comma("}")
        self._at += 1

    def _array(self) -> Iterator[Any]:
        self._at += 1
        while self._next() != "]":
            yield self._value()
            match = _COMMA.match(self._text, self._at)
            if match:  # the usual case, in less time
                self._at = match.end()
            else:
                self._comma("]")
        self._at += 1

    def _comma(self, end: str) -> None:
        found = self._next()
        if found == ",":
            self._at += 1
            if self._next() == end:
                raise JsonError("a value is missing after a comma")
        elif found != end:
            raise JsonError("a comma is missing")

    def _next(self) -> str:
        """The next character that is not white space, which stays; "" at the end."""
        if self._at < len(self._text) and self._text[self._at] > " ":
            return self._text[self._at]
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read(_CHUNK)

    def _value(self) -> Any:
        """Decode the value that begins here."""
        more = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # a number may go on
                    self._at = end
                    return value
            except RecursionError:
                raise JsonError("it is nested too deeply") from None
            except ValueError as error:
                if self._ended:
                    raise JsonError(str(error)) from None
                if len(self._text) - self._at > MAX_RECORD:
                    raise JsonError(f"a record is damaged or has more than {MAX_RECORD:,} characters") from None
            self._read(more)
            more *= 2

    def _read(self, size: int) -> None:
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
        try:
            text = self._stream.read(size)
        except UnicodeDecodeError:
            raise JsonError("it is not UTF-8 text") from None
        self._text, self._at, self._ended = self._text[self._at :] + text, 0, not text


def json_records(path: Path, *keys: str, max_chars: int | None = None) -> Iterator[tuple[str, Any]]:
    """`JsonStream.records` of a file, which is closed with the iterator. Raises JsonError or OSError."""
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as stream:
        yield from JsonStream(stream, max_chars).records(*keys)


def reason(error: Exception) -> str:
    """Why a file cannot be read, for findings."""
    return getattr(error, "strerror", None) or str(error)
