"""Texts given to `predict` that are not paths of existing files: recognise what they are, and suggest a fix."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote

from paddlex_feat.data.images.formats import BEGINNING, SUFFIXES, looks_like_image
from paddlex_feat.fileio.lookup import Lookup
from paddlex_feat.hub.urls import without_password

ACCEPTED = (
    "an image file, a folder, a tar shard, a pattern as photos/*.jpg, a .txt file with a path a line, a URL, "
    "a NumPy array, a PIL image, a dict {'img': …}, or a list or iterator of these"
)
MAX_SHOWN = 100  # characters shown of a text that is not a path: it may be a whole picture
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MIN_DATA = 64  # characters; a shorter text may be a path that happens to look like base64
_SAVE = "{}, not a path: save it as a file, or in Python give cv2.imdecode(numpy.frombuffer({}, numpy.uint8), 1)."


class Found(NamedTuple):
    """One image file or address, or the problem of a text that is neither.

    Attributes:
        path: file or address; with a problem the text, shortened to MAX_SHOWN characters unless it may be a path.
        what: the problem, and what may have been meant; "" if there is none.
        fix: what to do about it.
        line: file:line of a name in a list file, else "".
    """

    path: str
    what: str = ""
    fix: str = ""
    line: str = ""


def cut(text: str, longest: int = MAX_SHOWN) -> str:
    """A text on one line; a long one is shortened to its beginning and its end."""
    line = _shown(text[:longest])
    if max(len(line), len(text)) <= longest:
        return line
    note = f"… ({len(text)} characters) …"
    return line[: longest - len(note) - 20] + note + _shown(text[-20:])[-20:]


def _shown(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def exists(path: str) -> bool:
    """Whether there is a file or folder of this name."""
    return bool(path) and os.path.exists(path)  # False, too, for a name that is too long for the file system


def local(text: str) -> str:
    """The local path of a text: ~/a.jpg is expanded, file:///tmp/a%20b.jpg decoded, other text unchanged."""
    if exists(text):
        return text
    if text.startswith("~"):
        return os.path.expanduser(text)
    if text[:5].lower() == "file:":
        path = re.sub(r"(?i)^file:(//localhost(?=/)|//(?=/))?", "", text)
        decoded = unquote(path, errors="surrogateescape")
        return path if exists(path) and not exists(decoded) else decoded
    return text


def not_a_path(text: str) -> Found | None:
    """The problem of a text that holds data or an unsupported address; None if it may be a path."""
    return _data(text) or _address(text)


def missing(text: str, path: str, lookup: Lookup) -> Found:
    """The problem of a text for which `path` does not exist; `lookup` finds what was meant."""
    problem = not_a_path(text)
    if problem is not None:
        return problem
    meant = lookup.explain(path, "any")
    # It may be a path only if its folder exists; anything else may be data, of any length.
    name = cut(text, 2 * MAX_SHOWN if os.path.isdir(os.path.dirname(path) or ".") else MAX_SHOWN)
    return Found(name, f"The input does not exist.{meant and ' '}{meant}", f"Give {ACCEPTED}.")


def several(text: str) -> Found | None:
    """The problem of a text that joins several names, such as by commas or blanks; None for other texts."""
    for separator in (",", ";", "|", ":", None):
        names = [name for part in text.split(separator, 10_000) if (name := part.strip(" \t\"'"))]
        if len(names) < 2:
            continue
        there = [exists(local(name)) for name in names[:20]]
        named = {os.path.splitext(name)[1].lower() for name in names} <= SUFFIXES
        if all(there) or (separator == "," and (any(there) or named)):
            listed = ", ".join(map(_quoted, names[:3])) + (", …" if len(names) > 3 else "")
            what = f"No file has this name. Several inputs are written as a list: -o 'Predict.input=[{listed}]'."
            return Found(cut(text), what, "In Python give a list of texts.")
    return None


def _quoted(name: str) -> str:
    """A name as YAML writes it in a list."""
    return name if re.fullmatch(r"[A-Za-z/][\w./~+-]*\.[A-Za-z]+", name) else json.dumps(name, ensure_ascii=False)


def _address(text: str) -> Found | None:
    """The problem of an unsupported address; None for other texts."""
    scheme = re.match(r"([A-Za-z][\w+.-]+):/", text)
    if scheme is None:
        return None
    kind, fix = scheme[1].lower(), "Give the downloaded file, or its folder."
    if kind in ("http", "https"):
        what, fix = f"{kind}: needs two slashes.", "Give the address as text, not as a pathlib.Path, which drops one."
    elif kind != "file":
        what = (
            f"Addresses with {cut(kind)}:// are not read, only those with http://, https:// and file://: download it."
        )
    elif re.match(r"(?i)file://(?!localhost/)[^/]", text):
        what = f"The address names the computer {cut(text[7:]).partition('/')[0]!r}; only files of this one are read."
        fix = "Write file:// and an absolute path, as in file:///home/me/a.jpg, or the path alone."
    else:
        return None
    return Found(cut(without_password(text)), what, fix)


def _data(text: str) -> Found | None:
    """The problem of a text that holds data or several lines; None for other texts."""
    stripped, name = text.strip(), cut(text)
    head = stripped[:BEGINNING]
    if not head:
        return Found(repr(name), "The input is an empty text.", f"Give {ACCEPTED}.")
    if head[:5].lower() == "data:":
        decode = "base64.b64decode(text.partition(',')[2])"
        return Found(name, _SAVE.format("This is a picture in a data: address", decode), f"Give {ACCEPTED}.")
    of_bytes = head.startswith(("b'\\x", 'b"\\x'))  # str() of bytes, which no file is called
    if (len(text) >= _MIN_DATA or of_bytes) and (decode := _encoding(head)):
        return Found(name, _SAVE.format("This looks like an encoded picture", decode), f"Give {ACCEPTED}.")
    if stripped[0] + stripped[-1] in ("{}", "[]") and re.search("[\"',:]", head):
        what = (
            "This is JSON, a list or a dict in one text, not a path; a command takes -o 'Predict.input=[a.jpg, b.jpg]'."
        )
        return Found(name, what, "In Python give the list or dict itself, as json.loads(text) makes it.")
    if "\n" in stripped or "\0" in stripped or head[0] == "<":
        what = "This text has several lines, or is XML or binary data: it is not a path."
        return Found(
            name, what, "Give a list of paths, as text.splitlines() makes it, or a .txt file with a path a line."
        )
    if len(text) > 4096 or max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/")) > 255:
        return Found(name, f"A text of {len(text)} characters is not a path.", f"Give {ACCEPTED}.")
    return None


def _encoding(head: str) -> str:
    """The Python expression that decodes a text, by its beginning, to the bytes of an image; "" if none does."""
    packed = re.sub(r"\s", "", head)
    packed = packed[: len(packed) // 4 * 4]
    ways: dict[str, Callable[[], bytes]] = {
        "base64.b64decode(text)": lambda: base64.b64decode(packed, validate=True),
        "base64.urlsafe_b64decode(text)": lambda: base64.b64decode(packed, b"-_", validate=True),
        "bytes.fromhex(text)": lambda: bytes.fromhex(packed),
        "ast.literal_eval(text)": lambda: _escaped(head),
        "text.encode('latin-1')": lambda: head.encode("latin-1"),
    }
    for expression, decode in ways.items():
        with suppress(ValueError):
            if looks_like_image(decode()):
                return expression
    return ""


def _escaped(head: str) -> bytes:
    r"""The bytes at the beginning of a text like b'\xff\xd8…', which str() makes of bytes."""
    of_bytes = head.startswith(("b'", 'b"'))
    return head[2:].encode("latin-1").decode("unicode_escape", "ignore").encode("latin-1") if of_bytes else b""
