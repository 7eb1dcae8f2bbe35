"""What a check is, for the registry of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.data.findings import Finding, FindingSpec


@dataclass(frozen=True)
class CheckSpec:
    """One check of a data set.

    Attributes:
        name: kebab-case, unique among the checks.
        run: finds what is wrong, (data set, settings) -> findings of the kinds in `findings`. It runs after the lists
            were read and the images inspected, once a data set; the order of the checks is that of the registry.
        findings: the kinds of findings that it gives; docs/check_dataset.md lists those of the built-in checks.
    """

    name: str
    run: Callable[[DataSet, CheckSettings], Iterable[Finding]]
    findings: tuple[FindingSpec, ...]
