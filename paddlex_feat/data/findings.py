"""Findings of check_dataset: their kinds, their order, how many are kept, and how they are logged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from paddlex_feat.errors import sanitize

log = logging.getLogger(__name__)

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN_PER_CODE = 5
MAX_PER_CODE = 10_000  # findings of a kind that are kept in full: a million bad lines must not fill the memory


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
        count: number of findings: above 1 where those beyond MAX_PER_CODE are put together.
        captions: of the images, in their order; () for none.
    """

    code: str
    severity: Severity
    where: str
    message: str
    fix: str
    images: tuple[str, ...] = ()
    count: int = 1
    captions: tuple[str, ...] = ()

    def as_result(self) -> dict[str, str]:
        """The finding as the result file has it."""
        texts = ("code", "severity", "where", "message", "fix")
        return {name: getattr(self, name) for name in texts}


@dataclass(frozen=True)
class FindingSpec:
    """A kind of finding, as docs/check_dataset.md lists it.

    Attributes:
        code: kebab-case, stable between versions.
        severity: its usual severity.
        meaning: when it is given, for the documentation.
        fix: what to do, one sentence or more.
        otherwise: severities in other cases, for the documentation, such as "error if refused".
    """

    code: str
    severity: Severity
    meaning: str
    fix: str
    otherwise: str = ""

    def at(
        self,
        where: str,
        message: str,
        *,
        fix: str | None = None,
        severity: Severity | None = None,
        images: tuple[str, ...] = (),
        captions: tuple[str, ...] = (),
    ) -> Finding:
        """A finding of this kind.

        Args:
            where: file:line, or a file or key.
            message: what is wrong, one sentence or more.
            fix: what to do in this case; None: `self.fix`.
            severity: in this case; None: `self.severity`.
            images: files of the images it is about, for the report.
            captions: of the images.
        """
        severity = severity or self.severity
        return Finding(self.code, severity, where, message, fix or self.fix, images, captions=captions)


def grouped(findings: list[Finding]) -> dict[tuple[Severity, str], list[Finding]]:
    """Findings by (severity, code), errors first, otherwise in their order."""
    groups: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: SEVERITIES.index(f.severity)):
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    return groups


def cap_per_code(findings: Iterable[Finding]) -> list[Finding]:
    """The first MAX_PER_CODE findings of each kind, then one for each kind that has more, which counts the others."""
    kept: list[Finding] = []
    seen: Counter[tuple[str, str]] = Counter()
    rest: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        kind = (finding.severity, finding.code)
        if finding.count == 1 and seen[kind] < MAX_PER_CODE:
            kept.append(finding)
            seen[kind] += 1
        else:
            first = rest.get(kind)
            rest[kind] = replace(first or finding, count=finding.count + (first.count if first else 0))
    return kept + [
        replace(f, message=f"{f.count} more of this kind, of which this is the first.", images=())
        for f in rest.values()
    ]


def warnings_to_errors(findings: list[Finding]) -> list[Finding]:
    """The same findings with every warning turned into an error."""
    return [replace(f, severity="error") if f.severity == "warning" else f for f in findings]


def log_findings(findings: list[Finding]) -> None:
    """Log the findings by kind: the first few of each, and what to do."""
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
