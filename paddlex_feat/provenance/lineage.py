"""Compare a resumed run with its predecessor: warn of changed data or settings; record the lineage in run.json."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config, value_of, walk
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.errors import FeatError
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.provenance import run_record

log = logging.getLogger(__name__)
# Keys that decide what a training computes.
_KEYS = re.compile(
    r"(Global\.model$|Model\.|Train\.(?!resume|(loader|num_workers|cache_mib|log_interval|dist_timeout|visualdl)$))"
)
_MAX_RUNS, _MAX_CHARACTERS = 100, 200  # of "resumed"; of one difference in the log


def resumed_from(folder: Path, config: Config, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run in `folder`, which is resumed, was made from, and the runs that it was resumed from; the last last.

    One warning tells how this run differs: lists of images by their fingerprints, keys by their values. The run
    may be anybody's: of its run.json nothing is taken but SHA-256s, of its config.yaml what is valid.

    Args:
        folder: the folder of the resumed run.
        config: the configuration of this run.
        dataset: as run.json holds it, of this run.

    Returns run.json's key "resumed": an entry {"config": SHA-256 or None, "dataset": {list: SHA-256}} for each run.
    """
    record = read_result(folder / run_record.NAME)
    made = _made_from(record)
    differences = [f"{name}.txt" for name, sha256 in made["dataset"].items() if sha256 != dataset[name]["sha256"]]
    differences += _keys_that_differ(folder / "config.yaml", config)
    if differences:
        log.warning("The resumed run was made with other data or settings: %s", "; ".join(differences))
    earlier = record.get("resumed")
    runs = (
        [_made_from(run) for run in earlier[-_MAX_RUNS:] if isinstance(run, dict)] if isinstance(earlier, list) else []
    )
    return [*(run for run in runs if run != made), made]


def _made_from(record: dict[str, Any]) -> dict[str, Any]:
    """Configuration and data of a run.json, or of an entry of its "resumed"."""
    data = record.get("dataset")
    prints = {name: data.get(name) if isinstance(data, dict) else None for name in LISTS}
    found = {name: _sha256(p.get("sha256") if isinstance(p, dict) else p) for name, p in prints.items()}
    return {
        "config": _sha256(record.get("config")),
        "dataset": {name: sha256 for name, sha256 in found.items() if sha256},
    }


def _sha256(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else None


def _keys_that_differ(path: Path, config: Config) -> list[str]:
    try:
        former = load(str(path), [("Global.mode", "train")], usable=False)[0]
    except FeatError as error:
        return [f"its config.yaml cannot be read ({' '.join(error.what[:_MAX_CHARACTERS].split())})"]
    lines = []
    for name in (name for name, _ in walk() if _KEYS.match(name)):
        before, now = value_of(former, name), value_of(config, name)
        if before != now:
            lines.append(f"{name} {before!r}, now {now!r}"[:_MAX_CHARACTERS])
    return lines
