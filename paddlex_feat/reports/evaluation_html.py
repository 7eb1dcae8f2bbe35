"""The report of an evaluation as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.analysis import MATCHES
from paddlex_feat.evaluation.summary import Summary
from paddlex_feat.reports.examples import NEIGHBOURS, Example, Examples, number, shortened
from paddlex_feat.reports.html import jpeg, picture, write_page

CLASSES, CONFUSED, UNMATCHED = 12, 12, 50  # shown of each

_STYLE = """
h2{margin:2.4em 0 .3em} h2+p{margin-top:0} p.note{color:#666;margin:.2em 0 .8em} .path{overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:.8em;margin:1.4em 0 .8em}
.card{flex:1 1 8em;border:1px solid #e4e4e4;border-radius:.6em;padding:.7em 1em}
.card b{display:block;font-size:1.75em;line-height:1.2;font-weight:600;font-variant-numeric:tabular-nums}
.card span{color:#666;font-size:.87em} .card:first-child{flex-grow:2;background:#f7f9fc;border-color:#d5deed}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24em),1fr));gap:.8em}
.plots img{width:100%;height:auto;display:block}
.wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap}
.row{display:grid;grid-template-columns:repeat(7,minmax(5em,1fr));gap:.5em;padding:.7em 0;border-bottom:1px solid #eee}
.rows{overflow-x:auto}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18em),1fr));gap:.8em}
.pair{border:1px solid #e4e4e4;border-radius:.6em;padding:.7em .8em;min-width:0}
.pair>p{margin:0 0 .5em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.two{display:grid;grid-template-columns:1fr 1fr;gap:.5em}
figure{margin:0;min-width:0;font-size:.8em;line-height:1.35}
.frame{aspect-ratio:1;display:flex;align-items:center;justify-content:center;border-radius:.35em;background:#f4f4f4;
border:3px solid #888;overflow:hidden} .frame img{width:100%;height:100%;object-fit:contain;display:block}
.classes .two{width:8em} .classes td{vertical-align:middle} .classes figcaption{display:none}
.bar{width:30%;min-width:5em}.bar i{display:block;height:.6em;background:#4269d0;border-radius:.3em}
@media(max-width:600px){.bar{display:none}}
.classes .frame{border-width:2px} .classes td:last-child,.classes th:last-child{width:8em}
figcaption{margin-top:.25em;color:#666;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
figcaption b{color:#222}
.right .frame{border-color:#1a9850}.wrong .frame{border-color:#d73027}
.right figcaption b{color:#1a9850}.wrong figcaption b{color:#d73027}
.lost{white-space:normal;padding:.4em;color:#777;font-size:.9em;overflow-wrap:anywhere;max-height:100%}
dt{font-weight:600;margin-top:.6em}dd{margin:0;color:#444} ul.unmatched{columns:20em;padding-left:1.2em}
"""

_DEFINITIONS = (
    ("recall@k", "Share of the queries that have an image of their class among the k nearest gallery images."),
    ("mAP", "Mean of the queries' average precisions over the full ranking of the gallery."),
    ("mAP@R", "The same over the first R images alone, R being the number of the query's gallery matches."),
    ("MRR", "Mean of 1 / rank of the first match."),
    ("Ties", "An image of another class that is as similar as a match counts as nearer: ties count against us."),
    ("Unmatched queries", "Queries whose class the gallery does not hold are left out of all these figures."),
    (
        "Interval",
        "95 % bootstrap interval over queries: how far recall@1 would move with other queries of the same kind. "
        "It has no width where all queries are right, or none.",
    ),
    (
        "Threshold",
        "If the nearest image is believed from a similarity on: precision is the share of right ones among the "
        "accepted queries, unmatched ones included; recall the share of right and accepted ones among all that "
        "have a match.",
    ),
)


def write_report(
    path: Path,
    summary: Summary,
    examples: Examples,
    query: ImageList,
    worst: Sequence[int],
    chosen: Sequence[int],
    plots: Sequence[Path],
    weights: str = "",
) -> None:
    """Write the page.

    Args:
        worst: query indices, shown with their first match; chosen: others.
        plots: PNG files that the page takes in.
        weights: what was evaluated.
    """
    if worst:
        failures = (
            '<p class="note">Failed queries whose first match stands lowest, the worst of each class first; '
            "in the last column that match with its rank.</p>" + _rows(examples, worst, True)
        )
    else:
        failures = '<p class="note">None: the nearest image of every query is of its class.</p>'
    subject = "<br>".join(f"<code>{escape(text)}</code>" for text in (weights, str(query.root)) if text)
    body = [
        "<h1>Retrieval evaluation</h1>",
        f'<p class="path">{subject}</p>',
        _headline(summary),
        f"<h2>Similarities and thresholds</h2>{_thresholds_part(summary, plots)}",
        f"<h2>Worst queries</h2>{failures}",
        f"<h2>Classes with the lowest recall@1</h2>{_classes_part(summary, examples)}",
        f"<h2>Most confused classes</h2>{_confused_part(summary, examples)}",
        '<h2>Random queries</h2><p class="note">Failures and successes in the proportion in which they occur, '
        f"failures first, from different classes.</p>{_rows(examples, chosen, False)}",
        f"<h2>Queries without a gallery image of their class</h2>{_unmatched_part(summary, query)}",
        "<h2>Definitions</h2><dl>" + "".join(f"<dt>{t}</dt><dd>{text}</dd>" for t, text in _DEFINITIONS) + "</dl>",
    ]
    write_page(path, "Retrieval evaluation", _STYLE, "".join(body))


def _headline(summary: Summary) -> str:
    counts = summary.metrics
    low, high = summary.interval
    interval = f"95 % interval {low:.3f} – {high:.3f}"
    values = [(f"recall@{k}", value, interval if k == 1 else "") for k, value in counts.recall.items()]
    values += [("mAP", counts.mean_ap, ""), ("mAP@R", counts.mean_ap_at_r, ""), ("MRR", counts.mrr, "")]
    cards = "".join(
        f'<div class="card"><span>{name}</span><b>{value:.3f}</b><span>{more}</span></div>'
        for name, value, more in values
    )
    left_out = (
        f"{_count(counts.unmatched_queries, 'query', 'queries')} without a gallery image of their class left out"
        if counts.unmatched_queries
        else "each query has a gallery image of its class"
    )
    return (
        f'<div class="cards">{cards}</div><p>{_count(counts.matched_queries, "query", "queries")} of '
        f"{_count(len(summary.classes), 'class', 'classes')}, against "
        f"{_count(summary.gallery, 'gallery image', 'gallery images')}; "
        f"{left_out}.</p>"
    )


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _thresholds_part(summary: Summary, plots: Sequence[Path]) -> str:
    pairs = summary.pairs
    sample = (
        f" The histogram is of a random {_count(pairs.queries, 'query', 'queries')}: pairs of different classes with "
        f"a random {_count(pairs.gallery, 'gallery image', 'gallery images')}, and up to {MATCHES} matches of each."
        if pairs.sampled
        else ""
    )
    heads = ("threshold", "accepted", "right", "precision", "recall", "F1")
    rows = []
    for row in summary.thresholds:
        goal = row.goal + (" (suggested)" if row is summary.suggested else "")
        if row.threshold is None:
            cells = '<td colspan="6" class="note">not reached by any threshold</td>'
        else:
            texts = [f"{row.threshold:.4f}", f"{row.accepted:,}", f"{row.correct:,}"]
            texts += [f"{value:.3f}" for value in (row.precision, row.recall, row.f1)]
            cells = "".join(f'<td class="num">{text}</td>' for text in texts)
        rows.append(f"<tr><td>{goal}</td>{cells}</tr>")
    return (
        f'<p class="plots">{"".join(picture(p.read_bytes(), "image/png", p.stem) for p in plots)}</p>'
        f'<div class="wide"><table><tr><th>goal</th>{"".join(f"<th class=num>{h}</th>" for h in heads)}</tr>'
        f'{"".join(rows)}</table></div><p class="note">For a retrieval that answers with the label of the nearest '
        f"gallery image if it is at least this similar, and with nothing otherwise.{sample}</p>"
    )


def _rows(examples: Examples, queries: Sequence[int], first_match: bool) -> str:
    rows = []
    for q in queries:
        cells = [_figure(examples.query(q), "query")]
        cells += map(_figure, examples.neighbours(q))
        if first_match:
            cells += ["<figure></figure>"] * (NEIGHBOURS + 1 - len(cells))
            match = examples.first_match(q)
            cells.append(_figure(match, f"rank {match.rank:,}"))
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    return f'<div class="rows">{"".join(rows)}</div>'


def _figure(example: Example, note: str = "") -> str:
    """An image in a frame of its colour, with what is to be said below it."""
    tone = "" if example.right is None else "right" if example.right else "wrong"
    mark = {None: "", True: "✓ ", False: "✗ "}[example.right]
    more = " · ".join(text for text in (note, number(example.similarity, 3)) if text)
    name = escape(example.path)
    if example.image is None:
        inside = f'<span class="lost" title="{name}">not readable: {name}</span>'
    else:
        inside = jpeg(example.image, example.path)
    return (
        f'<figure class="{tone}"><div class="frame">{inside}</div>'
        f'<figcaption title="{example.label}"><b>{mark}{_label(example.label)}</b><br>{more}</figcaption></figure>'
    )


def _classes_part(summary: Summary, examples: Examples) -> str:
    failed = [(c, c.failure) for c in summary.classes if c.failure is not None]
    if not failed:
        return '<p class="note">None: every class has a recall@1 of 1.</p>'
    rows = []
    for c, q in failed[:CLASSES]:
        pair = [examples.query(q), *examples.neighbours(q, 1)]
        rows.append(
            f'<tr><td>{c.label}</td><td class="num">{c.queries:,}</td><td class="num">{c.recall1:.3f}</td>'
            f'<td class="bar"><i style="width:{100 * c.recall1:.1f}%"></i></td><td class="num">{c.mean_ap:.3f}</td>'
            f'<td><div class="two">{_figures(pair)}</div></td></tr>'
        )
    return (
        '<p class="note">With the query of the class whose first match stands lowest, and what is nearest to it.</p>'
        '<div class="wide"><table class="classes"><tr><th>class</th><th class="num">queries</th>'
        '<th class="num">recall@1</th><th class="bar"></th><th class="num">mAP</th><th>worst query</th></tr>'
        f"{''.join(rows)}</table></div>{_more(len(failed) - CLASSES, 'classes.csv')}"
    )


def _confused_part(summary: Summary, examples: Examples) -> str:
    if not summary.confused:
        return '<p class="note">None.</p>'
    parts = []
    for c in summary.confused[:CONFUSED]:
        near = examples.neighbours(c.query, 1)
        parts.append(
            f'<div class="pair"><p title="{c.label} taken for {c.taken_for}"><b>{c.count:,} ×</b> '
            f"{_label(c.label)} taken for {_label(c.taken_for)}</p>"
            f'<div class="two">{_figure(examples.query(c.query), "query")}{_figures(near)}</div></div>'
        )
    more = _more(len(summary.confused) - CONFUSED, "confusions.csv")
    return (
        '<p class="note">How often the nearest gallery image was of that other class, with the first such query.</p>'
        f'<div class="pairs">{"".join(parts)}</div>{more}'
    )


def _unmatched_part(summary: Summary, query: ImageList) -> str:
    if not summary.unmatched:
        return '<p class="note">None.</p>'
    rows = "".join(
        f"<li><code>{escape(query.where(q))}</code> {escape(query.paths[q])} ({query.labels[q]})</li>"
        for q in summary.unmatched[:UNMATCHED]
    )
    more = _more(len(summary.unmatched) - UNMATCHED, "queries.csv")
    return f'<ul class="unmatched path">{rows}</ul>{more}'


def _label(label: int) -> str:
    return shortened(str(label), 11)


def _figures(examples: Iterable[Example]) -> str:
    return "".join(map(_figure, examples))


def _more(count: int, file: str) -> str:
    return f'<p class="note">… and {count:,} more in {file}</p>' if count > 0 else ""
