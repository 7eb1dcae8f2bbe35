"""The report of check_dataset as one HTML page that needs no other file."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from paddlex_feat.checks.context import DataSet
from paddlex_feat.data.findings import Finding, grouped
from paddlex_feat.reports.html import jpeg, picture, small_image, write_page

SHOWN = 50  # findings of a kind in full
_ILLUSTRATED = 12  # findings of a kind with thumbnails
_SIDE = 112  # of a thumbnail, in pixels

_STYLE = """
.verdict{display:inline-block;padding:.2em .8em;border-radius:.4em;color:#fff;font-weight:600}
.passed{background:#1a9850}.failed{background:#d73027}
details{border:1px solid #ddd;border-left-width:5px;border-radius:.4em;margin:.6em 0;padding:.4em .9em}
details.error{border-left-color:#d73027}details.warning{border-left-color:#efb118}details.note{border-left-color:#4269d0}
summary{cursor:pointer;font-weight:600} .fix{color:#555}
.pictures{white-space:nowrap;text-align:right}.pictures img{border-radius:.2em;height:84px;margin-left:.4em}
.samples{display:flex;flex-wrap:wrap;gap:.5em}.samples img{border-radius:.2em;height:112px}
.where{white-space:nowrap;width:9em}
.plots img{width:49%}
"""


def write_report(
    path: Path, data: DataSet, findings: list[Finding], root: Path, plots: list[Path], samples: dict[str, list[Path]]
) -> None:
    """Write the page.

    Args:
        plots: PNG files that the page takes in.
        samples: per list, the labelled sample images that it takes in.
    """
    passed = not any(f.severity == "error" for f in findings)
    verdict = f'<span class="verdict {"passed" if passed else "failed"}">{"passed" if passed else "not passed"}</span>'
    body = [
        f"<h1>Data set check {verdict}</h1><p><code>{escape(str(root))}</code></p>",
        _lists_table(data),
        f'<p class="plots">{"".join(picture(p.read_bytes(), "image/png", p.stem) for p in plots)}</p>',
        _findings_part(findings),
        "<h2>Samples</h2>",
        *(_samples_part(name, files) for name, files in samples.items()),
    ]
    write_page(path, "Data set check", _STYLE, "".join(body))


def _lists_table(data: DataSet) -> str:
    rows = []
    for name, records in data.lists.items():
        sizes = np.unique(records.labels, return_counts=True)[1] if len(records) else np.zeros(1, int)
        cells = (len(records), len(set(records.labels)), sizes.min(), int(np.median(sizes)), sizes.max())
        rows.append(f"<tr><td>{name}.txt</td>" + "".join(f'<td class="num">{c}</td>' for c in cells) + "</tr>")
    heads = "".join(
        f'<th class="num">{h}</th>' for h in ("images", "classes", "smallest class", "median class", "largest class")
    )
    return f"<table><tr><th>list</th>{heads}</tr>{''.join(rows)}</table>"


def _findings_part(findings: list[Finding]) -> str:
    groups = grouped(findings)
    if not groups:
        return "<h2>Findings</h2><p>None.</p>"
    parts = []
    for (severity, code), rows in groups.items():
        shown = "".join(_row(finding, i < _ILLUSTRATED) for i, finding in enumerate(rows[:SHOWN]))
        total = sum(finding.count for finding in rows)
        more = f"<p>… and {total - SHOWN} more in check_dataset_result.json</p>" if len(rows) > SHOWN else ""
        opened = " open" if severity != "note" else ""
        parts.append(
            f'<details class="{severity}"{opened}><summary>{severity}: {code} ({total})</summary>'
            f'<p class="fix">To do: {escape(rows[0].fix)}</p>'
            f"<table>{shown}</table>{more}</details>"
        )
    return f"<h2>Findings</h2>{''.join(parts)}"


def _row(finding: Finding, illustrated: bool) -> str:
    pictures = "".join(map(_thumbnail, finding.images)) if illustrated else ""
    text = escape(finding.message)
    return (
        f'<tr><td class="where"><code>{escape(finding.where)}</code></td><td>{text}</td>'
        f'<td class="pictures">{pictures}</td></tr>'
    )


def _samples_part(name: str, files: list[Path]) -> str:
    pictures = "".join(_thumbnail(str(file)) for file in files)
    return f'<h3>{name}.txt</h3><div class="samples">{pictures}</div>'


def _thumbnail(path: str) -> str:
    image = small_image(path, _SIDE, 3 * _SIDE)
    return "" if image is None else jpeg(image, Path(path).name)
