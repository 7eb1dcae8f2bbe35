"""The text of a list file, whatever program saved it."""

from __future__ import annotations

import codecs
import re

from paddlex_feat.fileio.reading import decode_text, is_utf16

MAX_LIST_BYTES = 2**30  # of a file: some twenty million lines
_LINE_OF_BYTES = re.compile(rb"[./ \t][^\n]*\n")
_NOT_POWERSHELL = "; in PowerShell, append with Add-Content -Encoding UTF8 instead of >>."


def decode_list(data: bytes) -> tuple[str, str]:
    """The text of a list file and its encoding: UTF-8, UTF-16 (`reading.decode_text`), else GBK.

    Raises UnicodeDecodeError, as of UTF-8, where it is none of them or a mixture (`mixture`).
    """
    if mixed := mixture(data):
        raise UnicodeDecodeError("utf-8", data, 0, 1, mixed[1])
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        try:
            return data.decode("gbk"), "gbk"
        except UnicodeDecodeError:
            raise error from None


def mixture(data: bytes) -> tuple[int, str, str] | None:
    """Find where a list changes between UTF-16 and an encoding of bytes: (line, what is wrong, advice), else None.

    PowerShell's >> appends UTF-16 to a file of any encoding; other shells append bytes to a file of UTF-16.
    """
    nul = data.find(0)
    if nul < 0:
        return None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        end = b"\n\0" if data.startswith(codecs.BOM_UTF16_LE) else b"\0\n"
        start = data.rfind(end) + 2
        # Names of UTF-16 without a NUL are possible, but not with a separator and the end of a line.
        if start < 2 or 0 in data[start:] or not _LINE_OF_BYTES.search(data, start):
            return None
        number = data.count(end, 0, start) + 1
        what = f"The list is UTF-16 before line {number}, and another encoding from there on."
        return number, what, f"Write the lines before line {number} again as UTF-8{_NOT_POWERSHELL}"
    start = nul - 1  # the first ASCII character of little-endian text
    wide = any(is_utf16(data[at : at + 4096]) for at in (start, nul) if at > 0)
    if not (wide and _LINE_OF_BYTES.search(data, 0, start)):
        return None
    number = data.count(b"\n", 0, start) + 1
    what = f"The list is UTF-16 from line {number} on, and another encoding before."
    return number, what, f"Write line {number} and those after it again as UTF-8{_NOT_POWERSHELL}"
