"""The answers of a search as one HTML page that needs no other file: each query with its nearest images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paddlex_feat.reports.html import write_page
from paddlex_feat.reports.images import data_uri, thumbnail_uri
from paddlex_feat.search.answers import Answer
from paddlex_feat.search.gallery import Gallery

SHOWN = 8  # images beside a query


@dataclass(frozen=True)
class Shown:
    """A query or a hit on the page.

    Attributes:
        uri: of its picture; "" if there is none.
        name: path or key.
        label: of a hit.
        score: of a hit.
        near: whether a hit reaches the threshold; None for a query.
    """

    uri: str
    name: str
    label: str = ""
    score: str = ""
    near: bool | None = None


def write_search_page(path: Path, gallery: Gallery, answers: list[Answer], total: int) -> None:
    """Write the page.

    Args:
        path: file to write.
        gallery: whose thumbnails are shown.
        answers: shown ones.
        total: number of all answers.

    Raises OutputError if it cannot be written.
    """
    rows = [(answer, _query(answer), _hits(gallery, answer)) for answer in answers]
    threshold = answers[0].threshold if answers else None
    write_page(path, "search.html", rows=rows, total=total, threshold=threshold, images=len(gallery))


def _query(answer: Answer) -> Shown:
    part = "" if answer.box is None else f" [{answer.box}]"
    return Shown(thumbnail_uri(answer.image), f"{answer.name}{part}") if answer.image else Shown("", answer.name)


def _hits(gallery: Gallery, answer: Answer) -> list[Shown]:
    hits = []
    for hit in answer.hits[:SHOWN]:
        data = gallery.thumbnail(hit.item.id)
        near = answer.threshold is None or hit.score >= answer.threshold
        uri = data_uri(data, "image/jpeg") if data else ""
        hits.append(Shown(uri, hit.item.key, hit.item.label or "", f"{hit.score:.3f}", near))
    return hits
