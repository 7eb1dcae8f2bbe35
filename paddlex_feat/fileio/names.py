"""Compare file names regardless of case, Unicode form and encoding."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator

_ENCODINGS = ("gbk", "big5", "cp932", "euc_kr", "cp1252")  # of names that are not UTF-8, the most frequent first
# Text that was decoded by the first encoding where it is of the second; cp437 is unzip's.
_MISREAD = (("cp437", "gbk"), ("cp437", "utf-8"), ("latin-1", "utf-8"), ("cp1252", "utf-8"), ("gbk", "utf-8"))


def fold(name: str) -> str:
    """The key for comparing names: case, Unicode form, blanks, widths and invisible characters do not count."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        name = "".join(c for c in name if unicodedata.category(c) != "Cf")
    return " ".join(name.lower().split())


def keys(name: str) -> Iterator[tuple[str, str]]:
    """The keys of a name: its own, and its readings in other encodings, each with the encoding."""
    yield fold(name), ""
    if name.isascii():
        return
    if _escaped(name):
        raw = os.fsencode(name)
        for encoding in _ENCODINGS:
            try:
                yield fold(raw.decode(encoding)), encoding
            except UnicodeDecodeError:
                continue
        return
    for wrong, right in _MISREAD:
        try:
            yield fold(name.encode(wrong).decode(right)), right
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue


def _escaped(name: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in name)


def difference(given: str, name: str, given_encoding: str, encoding: str) -> str:
    """How two names with a common key differ."""
    if encoding and _escaped(name):
        return f"its name is in {encoding.upper()}, not in UTF-8; rename it, e.g. with convmv -f {encoding} -t utf-8"
    if given_encoding and _escaped(given):
        return f"the path given is in {given_encoding.upper()}, the name is in UTF-8"
    if encoding or given_encoding:
        return "one of the two names was decoded by the wrong encoding"
    if unicodedata.normalize("NFC", given) == unicodedata.normalize("NFC", name):
        form = "NFD" if unicodedata.is_normalized("NFD", name) else "NFC"
        return f"the same characters in another Unicode form; on disk it is {form}"
    if given.casefold() == name.casefold():
        return "upper and lower case differ"
    return "blanks, widths or invisible characters differ"
