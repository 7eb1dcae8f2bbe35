"""What check_dataset has to say, one thing at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from paddlex_feat.errors import sanitize

log = logging.getLogger(__name__)

SEVERITIES = ("error", "warning", "note")
SHOWN_PER_CODE = 5
KEPT = 10_000  # findings of a kind that are kept in full: a million faulty lines must not fill the memory


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: stable name of the kind of finding.
        severity: "error" (training or evaluation would be impossible or meaningless), "warning", or
            "note" (nothing to do, but good to know).
        where: file:line, or a file or key.
        message: what is wrong.
        fix: what to do.
        images: files of the images it is about, for the report.
        count: how many findings it is: more than one where those beyond KEPT are put together.
    """

    code: str
    severity: str
    where: str
    message: str
    fix: str
    images: tuple[str, ...] = ()
    count: int = 1


def grouped(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by (severity, code), errors first, in the order in which they came."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: SEVERITIES.index(f.severity)):
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    return groups


def first_of_each(findings: Iterable[Finding]) -> list[Finding]:
    """The first KEPT of each kind, then, for each kind that has more, one that counts the others."""
    kept: list[Finding] = []
    seen: Counter[tuple[str, str]] = Counter()
    rest: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        kind = (finding.severity, finding.code)
        if finding.count == 1 and seen[kind] < KEPT:
            kept.append(finding)
            seen[kind] += 1
        else:
            first = rest.get(kind)
            rest[kind] = replace(first or finding, count=finding.count + (first.count if first else 0))
    return kept + [
        replace(f, message=f"{f.count} more of this kind, of which this is the first.", images=())
        for f in rest.values()
    ]


def stricter(findings: list[Finding]) -> list[Finding]:
    """The same with every warning an error."""
    return [replace(f, severity="error") if f.severity == "warning" else f for f in findings]


def log_findings(findings: list[Finding]) -> None:
    """The findings by kind, the first few of each with their way out."""
    levels = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}
    for (severity, code), rows in grouped(findings).items():
        level = levels[severity]
        total = sum(row.count for row in rows)
        log.log(level, "[%s] %d finding%s", code, total, "" if total == 1 else "s")
        for row in rows[:SHOWN_PER_CODE]:
            log.log(level, "  %s: %s", sanitize(row.where), sanitize(row.message))
        if len(rows) > SHOWN_PER_CODE:
            log.log(level, "  … and %d more, in check_dataset_result.json", total - SHOWN_PER_CODE)
        log.log(level, "  to do: %s", rows[0].fix)
