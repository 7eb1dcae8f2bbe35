"""The files that mode evaluate leaves: tables, pictures, the page, and the part of the result file."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation import analysis
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.evaluation.metrics import metrics_of
from paddlex_feat.evaluation.ranking.ranks import rank_gallery
from paddlex_feat.evaluation.summary import summarise
from paddlex_feat.reports import evaluation_report
from paddlex_feat.reports.csv_tables import guarded, unguarded
from paddlex_feat.reports.examples import Examples, number, shortened
from paddlex_feat.reports.images import small_image
from paddlex_feat.reports.query_sheets import choose_worst

FILES = set(evaluation_report.FILES)


class Case:
    """An evaluation of 2-D features given as angles, with an image for each."""

    def __init__(self, root, query, gallery, self_pairs=None):
        self.lists = [self._list(root, name, rows) for name, rows in (("query", query), ("gallery", gallery))]
        unit = [np.array([(np.cos(row[0]), np.sin(row[0])) for row in rows], np.float32) for rows in (query, gallery)]
        labels = [records.labels for records in self.lists]
        ranking = rank_gallery(unit[0], labels[0], unit[1], labels[1], self_pairs)
        self.evaluation = Evaluation(metrics_of(ranking), ranking, *unit, self_pairs)

    @staticmethod
    def _list(root, name, rows):
        records = ImageList(name, root)
        for i, (angle, label, *path) in enumerate(rows):
            records.paths.append(path[0] if path else f"{name}/{i}.png")
            records.labels.append(label)
            records.lines.append(i + 1)
            if not path:
                (root / name).mkdir(exist_ok=True)
                picture = np.full((20 + i, 30, 3), int(angle * 40) % 256, np.uint8)
                cv2.imwrite(str(root / records.paths[-1]), picture)
        return records

    def write(self, folder):
        result = evaluation_report.write(self.evaluation, *self.lists, folder, "w.pdparams")
        json.dumps(result, allow_nan=False)
        assert {f.name for f in folder.iterdir()} == FILES
        assert set(result["files"]) == {f"{folder.name}/{name}" for name in FILES}
        for name in FILES:
            if name.endswith(".png"):
                with Image.open(folder / name) as image:
                    image.load()
        return result, (folder / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Checks that elements close in order, and gathers the tags and sources."""

    VOID = frozenset(("meta", "img", "br", "input", "link"))

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def mixed(tmp_path):
    """Three classes in the gallery; one right query, two wrong ones, one without a match."""
    gallery = [(0.0, 1), (1.0, 2), (2.0, 3), (2.1, 3), (2.2, 3), (3.0, 2)]
    return Case(tmp_path, [(0.1, 1), (1.2, 1), (1.9, 2), (0.4, 9)], gallery)


def test_the_result_and_the_tables_by_hand(mixed, tmp_path):
    result, _ = mixed.write(tmp_path / "evaluate")
    assert result["recall"] == {"1": 1 / 3, "5": 1.0} and result["MRR"] == pytest.approx((1 + 1 / 5 + 1 / 4) / 3)
    assert (result["queries"], result["unmatched_queries"], result["gallery"], result["classes"]) == (3, 1, 6, 2)
    assert result["unmatched"] == [{"path": "query/3.png", "label": 9, "line": 4}]
    assert result["worst_classes"][0] == {
        "label": 2,
        "queries": 1,
        "recall1": 0,
        "mAP": pytest.approx((1 / 4 + 2 / 5) / 2),
    }
    assert result["confused"] == [
        {"label": 1, "taken_for": 2, "count": 1, "query": "query/1.png"},
        {"label": 2, "taken_for": 3, "count": 1, "query": "query/2.png"},
    ]
    low, high = result["recall1_interval"]
    assert low <= 1 / 3 <= high and result["retrieval"] == "evaluate/retrieval.png"
    # Nearest are cos(0.1), right; cos(0.1), wrong, equal but for rounding to float32; cos(0.2) and cos(0.4), wrong.
    best = result["thresholds"][0]
    assert best["threshold"] == result["suggested_threshold"] and np.cos(0.2) < best["threshold"] < np.cos(0.0999)
    assert best["goal"] == "largest F1" and best["correct"] == 1 and best["accepted"] in (1, 2)

    queries = rows_of(tmp_path / "evaluate" / "queries.csv")
    assert [row["path"] for row in queries] == mixed.lists[0].paths
    assert [row["rank_of_first_match"] for row in queries] == ["1", "5", "4", ""]
    assert queries[3]["average_precision"] == "" and queries[3]["top1_label"] == "1"
    assert queries[0]["top1_path"] == "gallery/0.png" and float(queries[0]["top1_similarity"]) == pytest.approx(
        np.cos(0.1), abs=1e-6
    )
    assert float(queries[0]["top5_similarity"]) < 0  # negative numbers stay numbers
    classes = rows_of(tmp_path / "evaluate" / "classes.csv")
    assert [(c["label"], c["queries"], c["unmatched_queries"], c["recall1"]) for c in classes] == [
        ("2", "1", "0", "0.0"),
        ("1", "2", "0", "0.5"),
        ("9", "0", "1", ""),
    ]
    assert [c["query_path"] for c in rows_of(tmp_path / "evaluate" / "confusions.csv")] == [
        "query/1.png",
        "query/2.png",
    ]


def test_the_page_stands_alone(mixed, tmp_path):
    _, page = mixed.write(tmp_path / "evaluate")
    parsed = Parsed(page)
    assert "script" not in parsed.tags and "link" not in parsed.tags and "url(" not in page
    assert parsed.sources and all(re.match(r"data:image/(png|jpeg);base64,", s) for s in parsed.sources)
    text = " ".join(" ".join(parsed.text).split())
    for part in (
        "3 queries of 2 classes, against 6 gallery images",
        "1 query without",
        "query.txt:4",
        "taken for",
        "rank 4",
    ):
        assert part in text


def test_the_same_evaluation_gives_the_same_bytes(mixed, tmp_path):
    first, again = mixed.write(tmp_path / "a" / "evaluate"), mixed.write(tmp_path / "b" / "evaluate")
    assert first[0] == again[0]
    for name in FILES:
        assert (tmp_path / "a/evaluate" / name).read_bytes() == (tmp_path / "b/evaluate" / name).read_bytes(), name


def test_without_a_failure_and_with_a_small_gallery(tmp_path):
    case = Case(tmp_path, [(0.1, 1), (1.1, 2)], [(0.0, 1), (1.0, 2)])
    result, page = case.write(tmp_path / "evaluate")
    assert result["recall1_interval"] == [1, 1] and result["confused"] == [] and result["thresholds"][2]["recall"] == 1
    assert "the nearest image of every query is of its class" in page
    row = rows_of(tmp_path / "evaluate" / "queries.csv")[0]
    assert row["top2_path"] == "gallery/1.png" and row["top3_path"] == row["top3_similarity"] == ""


def test_everything_wrong(tmp_path, caplog):
    case = Case(tmp_path, [(0.1, 2), (0.9, 1)], [(0.0, 1), (1.0, 2)])
    with caplog.at_level(logging.INFO):
        result, page = case.write(tmp_path / "evaluate")
    assert result["suggested_threshold"] is None and result["thresholds"][0]["precision"] is None
    assert page.count("not reached by any threshold") == 3
    assert "No threshold is suggested" in caplog.text


def test_a_single_query_and_a_single_gallery_image(tmp_path):
    result, _ = Case(tmp_path, [(0.1, 1)], [(0.0, 1)]).write(tmp_path / "evaluate")
    assert result["queries"] == 1 and result["suggested_threshold"] == pytest.approx(0.995)


def test_self_pairs_are_left_out_everywhere(tmp_path):
    """Each query is in the gallery too; the pair with itself must neither be shown nor counted."""
    rows = [(0.0, 1), (0.3, 1), (0.1, 2), (0.9, 2)]
    case = Case(tmp_path, rows, rows, self_pairs=np.stack([np.arange(4)] * 2, axis=1))
    case.write(tmp_path / "evaluate")
    pairs = summarise(case.evaluation, *case.lists).pairs
    assert (len(pairs.matching), len(pairs.other)) == (4, 8)
    examples = Examples(case.evaluation, *case.lists)
    for q in range(4):
        match = examples.first_match(q)
        shown = [e.path for e in examples.neighbours(q)]
        assert f"gallery/{q}.png" not in [*shown, match.path] and len(shown) == 3
        assert match.right and shown[match.rank - 1] == match.path
    assert rows_of(tmp_path / "evaluate" / "queries.csv")[0]["top4_path"] == ""


def test_the_page_says_of_what_the_histogram_is(tmp_path, monkeypatch):
    case = Case(tmp_path, [(0.0, 1), (0.3, 2), (0.6, 1)], [(0.1, 1), (0.4, 2), (0.9, 3)])
    assert "The histogram is of" not in case.write(tmp_path / "whole")[1]
    monkeypatch.setattr(analysis, "MAX_PAIRS", 1)
    monkeypatch.setattr(analysis, "SAMPLE", 2)
    page = case.write(tmp_path / "sampled")[1]
    said = "a random 2 queries: pairs of different classes with a random 2 gallery images, and up to 10 matches"
    assert said in " ".join(page.split())


def test_the_first_match_beyond_the_neighbours_kept(tmp_path):
    gallery = [(i / 10, 5) for i in range(8)] + [(1.5, 1), (1.2, 1)]
    case = Case(tmp_path, [(0.0, 1), (0.2, 5)], gallery)
    match = Examples(case.evaluation, *case.lists).first_match(0)
    assert (match.path, match.rank) == ("gallery/9.png", 9) and match.similarity == pytest.approx(np.cos(1.2))


HOSTILE = (
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "' onmouseover='x.png",
    "=HYPERLINK(1).png",
    "$\\frac{1}{0$ 图片.png",
    "lone \udcff surrogate.png",
    "long" * 200 + ".png",
)


def test_hostile_names_of_files_that_are_gone(tmp_path, caplog):
    """Names that are markup, a formula, no text, too long; and no image can be decoded."""
    query = [(i / 10, i % 2, name) for i, name in enumerate(HOSTILE)] + [(0.3, 10**17, "<b>.png")]
    gallery = [(1 - i / 10, i % 2, f"g/{name}") for i, name in enumerate(HOSTILE)]
    case = Case(tmp_path, query, gallery)
    with caplog.at_level(logging.WARNING):
        _, page = case.write(tmp_path / "evaluate")
    tags = Parsed(page).tags
    assert "script" not in tags and "b>" not in tags and "onerror=alert(1)>" not in page
    assert tags.count("img") == 2 and "not readable" in page  # the plots alone
    assert "query.txt:8 <b>.png" in caplog.text
    rows = rows_of(tmp_path / "evaluate" / "queries.csv")
    as_written = [name.encode("utf-8", "backslashreplace").decode() for name in HOSTILE]
    assert [unguarded(row["path"]) for row in rows][:-1] == as_written
    assert rows[3]["path"] == "'=HYPERLINK(1).png"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'=1", "a;=1", "\tx"])
def test_no_cell_begins_as_a_formula(text):
    cell = guarded(text)
    assert unguarded(cell) == text
    for part in re.split(r"[;\t\r\n]", cell):  # however a spreadsheet splits it
        assert part.lstrip()[:1] not in tuple("=+-@＝＋－＠")
    assert cell[0] not in "\t\r"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="=+-@'\t\r\n ;,\"a/＝", max_size=12))
def test_what_guards_a_cell_can_be_taken_away(text):
    cell = guarded(text)
    assert unguarded(cell) == text
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_NONNUMERIC).writerow([cell, -0.5])
    assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [cell, "-0.5"]
    assert not re.search(r"(?:^|[;\t\r\n])\s*[=+\-@＝]", cell.replace("'", "x"))


def test_ordinary_paths_stay_as_they_are():
    assert guarded("images/s21/a-b+c=d@e's; f.pgm") == "images/s21/a-b+c=d@e's; f.pgm"


def test_large_images_are_shrunk(tmp_path):
    cv2.imwrite(str(tmp_path / "large.jpg"), np.full((1500, 3000, 3), 90, np.uint8))
    assert small_image(tmp_path / "large.jpg", 112, 112).shape == (56, 112, 3)
    cv2.imwrite(str(tmp_path / "line.png"), np.full((1, 3000, 3), 90, np.uint8))
    assert small_image(tmp_path / "line.png", 112, 112).shape == (1, 112, 3)
    assert small_image(tmp_path / "missing.png", 112, 112) is None


def test_the_worst_queries_are_of_different_classes_first():
    first, labels = np.array([9, 8, 1, 0, 3, 8]), [1, 1, 1, 1, 2, 3]
    assert choose_worst(first, labels, 10) == [0, 5, 4, 1]
    assert choose_worst(first, labels, 2) == [0, 5]
    assert choose_worst(np.array([1, 0]), [1, 2], 5) == []


def test_texts_fit_their_places():
    assert shortened("123456789", 9) == "123456789" and shortened("1234567890", 5) == "12…90"
    assert number(-0.001, 2) == "0.00" and number(-0.5, 2) == "-0.50" and number(None, 2) == ""


def test_unmatched_queries_are_listed_up_to_a_limit(tmp_path, caplog):
    query = [(0.1, 1)] + [(0.2, 1000 + i, f"gone/{i}.png") for i in range(120)]
    with caplog.at_level(logging.INFO):
        result, page = Case(tmp_path, query, [(0.0, 1)]).write(tmp_path / "evaluate")
    assert len(result["unmatched"]) == 100 and result["unmatched_queries"] == 120
    assert page.count("<li>") == 50 and "70 more in queries.csv" in page
    warning = next(r for r in caplog.records if r.levelno == logging.WARNING).getMessage()
    assert "left out: 120, the first" in warning and "query.txt:2 gone/0.png" in warning and warning.endswith("…")
    assert 5 <= sum(r.levelno == logging.INFO for r in caplog.records) <= 10
