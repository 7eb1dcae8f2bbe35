"""`bash run test TIER`: what is started. And the markers that folders give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import run
from support.runs import ROOT

CHECKS = ["ruff check .", "ruff format --check .", "mypy"]


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Commands that were started, without Python and -m; those that hold "fails" fail."""
    commands: list[str] = []

    def start(words, **_):
        commands.append(" ".join(map(str, words[2:])))
        return SimpleNamespace(returncode=3 * ("fails" in words))

    monkeypatch.setattr(run.subprocess, "run", start)
    return commands


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [*CHECKS, "pytest -n 2 --dist worksteal"]),
        (["-k", "perf"], [*CHECKS, "pytest -n 2 --dist worksteal -k perf"]),
        (["unit", "-x"], ["pytest tests/unit -m not nightly -n 2 --dist worksteal -x"]),
        (["perf"], ["pytest tests/perf -m not nightly"]),
        (
            ["landing"],
            [
                *CHECKS,
                "pytest tests --ignore=tests/perf -m not nightly -n 2 --dist worksteal --durations=60",
                "pytest tests/perf -m not nightly",
            ],
        ),
        (["nightly"], ["pytest tests -m nightly -n 2 --dist worksteal"]),
    ],
)
def test_a_tier_starts_its_tests(started, words, expected):
    assert run.test(words) == 0 and started == expected


def test_what_fails_ends_the_command_with_its_code(started):
    assert run.test(["landing", "fails"]) == 3 and len(started) == len(CHECKS) + 1


def test_every_folder_of_tests_is_a_tier_and_a_marker(request):
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and list(p.glob("test_*.py"))}
    assert folders <= set(run.TIERS)
    assert request.node.get_closest_marker("unit") and not request.node.get_closest_marker("perf")
