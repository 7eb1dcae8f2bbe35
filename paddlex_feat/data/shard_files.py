"""Files that jobs leave which do not know of each other, each of its shard, and of which a last job takes all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import FeatError, ShardError
from paddlex_feat.fileio.npz import NpzReader

RECORD = "record"  # name of a shard's record in its file


@dataclass(frozen=True)
class ShardedJob:
    """What the files of all shards of a job agree in.

    Attributes:
        stem: how their names begin.
        version: of the form.
        images: of all shards together.
        digest: of their names, see `digest_of`.
        more: what else must agree, by how an error calls it.
    """

    stem: str
    version: int
    images: int
    digest: str
    more: Mapping[str, str] = field(default_factory=dict)

    def record(self, shard: Shard) -> str:
        """What the file of a shard says of itself, as JSON."""
        same = {"images": self.images, "digest": self.digest, **self.more}
        return json.dumps({"version": self.version, "shard": asdict(shard), **same})

    def require(self, path: Path, reader: NpzReader, count: int) -> Shard:
        """The shard of a file that must be one of `count` of this job.

        Raises ShardError for the shard of another job, ValueError for a file that is not what it is called.
        """
        told = self._told(reader)
        shard = Shard.parse("{number}/{count}".format(**told["shard"]))
        if path.name != shard.file(self.stem) or shard.count != count:
            raise ValueError(f"it is shard {shard}")
        difference = ""
        if told["images"] != self.images:
            difference = f"is of {told['images']} images, and this job has {self.images}"
        elif told["digest"] != self.digest:
            difference = f"is of images of other names, or in another order, than the {self.images} of this job"
        for name, value in self.more.items():
            if not difference and told[name] != value:
                difference = f"has another {name} than this job"
        if difference:
            raise ShardError(
                f"{path.name} {difference}.",
                where=str(path),
                fix="Move the shards of another job, or of an earlier state of the data set, away.",
                code="shard-mixed",
            )
        return shard

    def count_of(self, path: Path) -> int:
        """How many shards there are, by one of them."""
        with readable(path) as reader:
            return int(self._told(reader)["shard"]["count"])

    def files(self, place: Path, mode: str, key: str) -> list[Path]:
        """The files of all shards of a job, in their order.

        Args:
            place: the folder of the files, or the folder Global.output of the jobs.
            mode: whose folder in there has them.
            key: by which these jobs were given their shards.

        Raises ShardError for shards that are missing, repeated or damaged.
        """
        name = re.compile(re.escape(self.stem) + r"-\d+-of-\d+\.npz")
        found = [path for folder in (place, place / mode) for path in _files_of(folder) if name.fullmatch(path.name)]
        if not found:
            fix = f"Give Global.output of the jobs that ran with {key}=i/n."
            raise ShardError("There are no shards.", where=str(place), fix=fix, code="shard-missing")
        count, names = self.count_of(found[0]), [path.name for path in found]
        wanted = {Shard(number, count).file(self.stem) for number in range(count)}
        lacking, more = sorted(wanted - set(names)), sorted(set(names) - wanted)
        if lacking or more or len(names) > count:
            what = f"{names[0]} is one of {count} shards"
            if lacking:
                what += f", of which {len(lacking)} are missing, such as {lacking[0]}."
            else:
                what += f", unlike {more[0]}." if more else ", and some are there twice."
            fix = "Run the missing ones, or move those of another job away."
            raise ShardError(what, where=str(place), fix=fix, code="shard-missing")
        return found

    def _told(self, reader: NpzReader) -> dict[str, Any]:
        [text] = reader.texts(RECORD)
        told: dict[str, Any] = json.loads(text)
        if told["version"] != self.version:
            raise ValueError(f"it is of version {told['version']!r} of the form, and {self.version} is needed")
        return told


def digest_of(names: Iterable[str]) -> str:
    """SHA-256 of names in their order."""
    digest = sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[NpzReader]:
    """A shard's file, open. Raises ShardError for whatever is wrong with it, in the block too."""
    try:
        reader = NpzReader(path)
        try:
            yield reader
        finally:
            reader.close()
    except (FeatError, MemoryError):
        raise
    except OSError as error:
        fix = "Check the disk and the permissions."
        what = f"The shard cannot be read: {error.strerror}."
        raise ShardError(what, where=str(path), fix=fix, code="shard-unreadable") from error
    except Exception as error:  # of zipfile, NumPy and JSON, which have many for a damaged file
        raise ShardError(
            f"The shard cannot be used: {error}.",
            where=str(path),
            fix="Remove it, and run that shard again.",
            code="shard-unusable",
        ) from error


def _files_of(folder: Path) -> Sequence[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
