"""CSV files of evaluation and check, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.ranking.ranks import Ranking
from paddlex_feat.evaluation.summary import Summary
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.reports.examples import NEIGHBOURS

if TYPE_CHECKING:  # which other tables do not need
    from paddlex_feat.search.answers import Answer
    from paddlex_feat.search.items import Item

# A spreadsheet runs a cell that begins with one of = + - @ (also their full-width forms), possibly after blanks.
# If it splits at semicolons or tabs, a cell also begins after these.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@＝＋－＠']|[\t\r\n])")
_GUARD = re.compile(r"(?:^|(?<=[;\t\r\n]))'")


def guarded(text: str) -> str:
    """The text as a cell that no spreadsheet runs: an apostrophe is inserted where a formula could begin.

    `unguarded` removes it again; so that it can, an apostrophe of the text itself is doubled there.
    """
    return _FORMULA.sub("'", text)


def unguarded(cell: str) -> str:
    """The text of a cell that `guarded` made."""
    return _GUARD.sub("", cell)


def write_rows(path: Path, head: list[str], rows: Iterable[list[str | int | float]]) -> None:
    """Write rows: texts guarded and quoted, numbers unchanged, lone surrogates escaped as in the JSON files."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as f,
    ):
        writer = csv.writer(f, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(head)
        for row in rows:
            writer.writerow([guarded(cell) if isinstance(cell, str) else cell for cell in row])


def write_queries(ranking: Ranking, query: ImageList, gallery: ImageList, path: Path) -> None:
    """A row for every query, in the order of its list: the rank of its first match, its nearest images, names."""
    head = ["path", "label", "rank_of_first_match", "average_precision"]
    head += [f"top{k}_{name}" for k in range(1, NEIGHBOURS + 1) for name in ("path", "label", "similarity")]
    head += ["name", "top1_name"]

    near = ranking.nearest[:, :NEIGHBOURS]

    def rows() -> Iterable[list[str | int | float]]:
        for q in range(len(query)):
            first = int(ranking.first_match[q])
            row: list[str | int | float] = [query.paths[q], query.labels[q], first or ""]
            row.append(round(float(ranking.average_precision[q]), 6) if first else "")
            for g, similarity in zip(near[q].tolist(), ranking.similarity[q].tolist(), strict=False):
                row += [gallery.paths[g], gallery.labels[g], round(similarity, 6)] if g >= 0 else ["", "", ""]
            row += [""] * (len(head) - 2 - len(row))
            row += [
                query.name_of(query.labels[q]),
                gallery.name_of(gallery.labels[near[q, 0]]) if near[q, 0] >= 0 else "",
            ]
            yield row

    write_rows(path, head, rows())


def write_classes(summary: Summary, query: ImageList, path: Path) -> None:
    """A row for every class, worst first; after them the classes without a matched query."""
    unmatched = summary.unmatched_classes
    rows: list[list[str | int | float]] = [
        [
            c.label,
            c.queries,
            unmatched.get(c.label, 0),
            round(c.recall1, 6),
            round(c.mean_ap, 6),
            query.name_of(c.label),
        ]
        for c in summary.classes
    ]
    matched = {c.label for c in summary.classes}
    rows += [
        [label, 0, count, "", "", query.name_of(label)] for label, count in unmatched.items() if label not in matched
    ]
    write_rows(path, ["label", "queries", "unmatched_queries", "recall1", "mean_average_precision", "name"], rows)


def write_confusions(summary: Summary, query: ImageList, path: Path) -> None:
    """A row for every confused pair of classes, most frequent first, with one of its queries."""
    rows: list[list[str | int | float]] = [
        [c.label, c.taken_for, c.count, query.paths[c.query], query.name_of(c.label), query.name_of(c.taken_for)]
        for c in summary.confused
    ]
    write_rows(path, ["label", "taken_for", "count", "query_path", "name", "taken_for_name"], rows)


def write_items(path: Path, items: Iterable[Item]) -> None:
    """A row for every image of a gallery."""
    head = ["id", "key", "label", "path", "box", "data"]

    def rows() -> Iterable[list[str | int | float]]:
        for item in items:
            data = "" if item.data is None else json.dumps(item.data, ensure_ascii=False)
            yield [item.id, item.key, item.label or "", item.path or "", str(item.box or ""), data]

    write_rows(path, head, rows())


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """A row for every hit: the query, whether it is known, its answer, the rank and the image."""
    head = ["query", "box", "known", "answer", "rank", "score", "key", "label", "path"]

    def rows() -> Iterable[list[str | int | float]]:
        for answer in answers:
            for rank, hit in enumerate(answer.hits, 1):
                own: list[str | int | float] = [
                    answer.name,
                    str(answer.box or ""),
                    int(answer.known),
                    answer.label or "",
                ]
                item = hit.item
                yield [*own, rank, round(hit.score, 6), item.key, item.label or "", item.path or ""]

    write_rows(path, head, rows())


def write_advice(path: Path, advice: Iterable[dict[str, Any]]) -> None:
    """A row for every label of a gallery: what could be better about its images."""
    head = ["label", "images", "misplaced", "confused_with", "needed", "advice", "misplaced_ids", "needed_ids"]

    def rows() -> Iterable[list[str | int | float]]:
        for each in advice:
            ids = [" ".join(map(str, each[name])) for name in ("misplaced", "needed")]
            counts = [each["images"], len(each["misplaced"]), each["confused_with"] or "", len(each["needed"])]
            yield [each["label"], *counts, each["advice"], *ids]

    write_rows(path, head, rows())
