"""What main.py pack tells of the shards of a data set, in pack.json beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import FindingSpec
from paddlex_feat.fileio.atomic import read_result

PACKED = "pack.json"
_MOST_SHARDS = 10**5  # of a list that are looked for, whatever the file says
MISSING = FindingSpec(
    "shard-missing",
    "error",
    "one of the shards that main.py pack writes of a data set is not there",
    "Run main.py pack again, which goes on where it was, or copy the shard too.",
)


def packed_name(part: str, number: int, form: str = "tar") -> str:
    """Name of a shard that main.py pack writes."""
    return f"{part}-{number:05d}.{form}"


def packed(root: Path, form: str) -> Iterator[str]:
    """Names of all shards of a data set that main.py pack has written in a form, or was writing, into a folder."""
    told = read_result(root / PACKED)
    images, of_a_shard = told.get("images"), told.get("of_a_shard")
    if not isinstance(images, dict) or type(of_a_shard) is not int or of_a_shard < 1 or told.get("form", "tar") != form:
        return
    for part, count in images.items():
        if isinstance(count, int) and count < 2**40:
            yield from (packed_name(part, n, form) for n in range(min(-(-count // of_a_shard), _MOST_SHARDS)))
