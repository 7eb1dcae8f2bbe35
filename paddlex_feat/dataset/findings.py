"""What check_dataset has to say, one thing at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

log = logging.getLogger(__name__)

SEVERITIES = ("error", "warning", "note")
SHOWN_PER_CODE = 5


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
    """

    code: str
    severity: str
    where: str
    message: str
    fix: str
    images: tuple[str, ...] = ()


def grouped(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by (severity, code), errors first, in the order in which they came."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: SEVERITIES.index(f.severity)):
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    return groups


def stricter(findings: list[Finding]) -> list[Finding]:
    """The same with every warning an error."""
    return [replace(f, severity="error") if f.severity == "warning" else f for f in findings]


def _printable(text: str) -> str:
    """File names may hold what would drive a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def log_findings(findings: list[Finding]) -> None:
    """The findings by kind, the first few of each with their way out."""
    levels = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}
    for (severity, code), rows in grouped(findings).items():
        level = levels[severity]
        log.log(level, "[%s] %d finding%s", code, len(rows), "" if len(rows) == 1 else "s")
        for row in rows[:SHOWN_PER_CODE]:
            log.log(level, "  %s: %s", _printable(row.where), _printable(row.message))
        if len(rows) > SHOWN_PER_CODE:
            log.log(level, "  … and %d more, all in check_dataset_result.json", len(rows) - SHOWN_PER_CODE)
        log.log(level, "  to do: %s", rows[0].fix)
