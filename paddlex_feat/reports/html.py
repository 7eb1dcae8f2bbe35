"""HTML pages that need no other file: their frame, base style, and pictures within them."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError
from paddlex_feat.fileio.atomic import write_bytes

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em;margin-bottom:.1em} h2{font-size:1.2em;margin-top:2em}
table{border-collapse:collapse;width:100%} td,th{padding:.25em .7em;text-align:left;vertical-align:top}
th{border-bottom:2px solid #ddd} td{border-bottom:1px solid #eee}
.num{text-align:right;font-variant-numeric:tabular-nums}
code{background:#f4f4f4;padding:0 .25em}
"""


def write_page(path: Path, title: str, style: str, body: str) -> None:
    """Write a page with `STYLE` and the style of its own; `body` is HTML, `title` plain text."""
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))  # file names need not be text


def small_image(path: str | Path, height: int, width: int) -> np.ndarray | None:
    """The image scaled to fit into a box: uint8 [h, w, 3], RGB; None if it cannot be decoded."""
    try:
        image = read_rgb(path, lambda w, h: w >= width or h >= height, warnings=[])  # its page tells of damage
    except ImageError:
        return None
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def jpeg(image: np.ndarray, name: str) -> str:
    """<img> of uint8 [h, w, 3], RGB."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return picture(data.tobytes(), "image/jpeg", name)


def picture(data: bytes, kind: str, name: str) -> str:
    """<img> that carries an encoded image; `name`, plain text, is shown in its stead and as a tooltip."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img src="data:{kind};base64,{encoded}" alt="{escape(name)}" title="{escape(name)}">'
