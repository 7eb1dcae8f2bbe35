"""Render HTML pages that need no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from paddlex_feat.fileio.atomic import write_bytes
from paddlex_feat.reports.examples import number, shortened
from paddlex_feat.reports.images import jpeg_uri, png_uri, thumbnail_uri

_LABEL_LENGTH = 11  # characters of a label below an image


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of `reports/templates`, which escapes every value, and write the page.

    Args:
        path: file to write.
        template: name of the template, such as "evaluation.html".
        values: variables of the template.

    Raises:
        OutputError: If the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": counted,
        "number": number,
        "file_name": lambda file: Path(file).name,
        "jpeg_uri": jpeg_uri,
        "png_uri": png_uri,
        "short": lambda label: shortened(str(label), _LABEL_LENGTH),
        "thumbnail_uri": thumbnail_uri,
    }
    page = environment.get_template(template).render(values)
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))  # a file name may contain lone surrogates


def counted(count: int, one: str, many: str) -> str:
    """The number with its noun: "1 query", "1,200 queries"."""
    return f"{count:,} {one if count == 1 else many}"
