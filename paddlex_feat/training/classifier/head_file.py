"""The file of all class vectors and their optimizer's state in a checkpoint, in the format of safetensors.

Its tensors are "weight" and the optimizer's states, float32 [classes * K, D] each, in the order of the classes: any
number of processes can go on from it. It is written from the arrays as they are, without a copy in the process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from paddlex_feat.errors import ConfigError, WeightsError, as_output_error
from paddlex_feat.fileio.atomic import require_disk_space
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.training.classifier.protocols import Classifier

SUFFIX = "head.safetensors"
_KIND = "class vectors of paddlex_feat"
_CHUNK = 2**14  # rows that are written, read, and sent to the process that writes, at a time


def write(path: Path, classifier: Classifier) -> None:
    """Write the file; all processes call it, and the first writes.

    It is not yet on the disk when this returns, but with the operating system: training may go on and change the
    vectors. Raises OutputError.
    """
    part, names = classifier.part, classifier.rows.names
    if part.group.rank:
        for name in names:
            _send(None, name, classifier)
        return
    shape = [classifier.rows.centers * part.classes, classifier.rows.dim]
    size = 4 * shape[0] * shape[1]
    header: dict[str, object] = {
        "__metadata__": {"kind": _KIND, "classes": str(part.classes), "step": str(classifier.steps)}
    }
    for number, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    require_disk_space(path.parent, len(names) * size)
    with as_output_error(path), path.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _send(stream, name, classifier)


def _send(stream: BinaryIO | None, name: str, classifier: Classifier) -> None:
    """Write an array of all processes, in their order, a chunk of each at a time."""
    rows, part = classifier.rows, classifier.part
    start, most = stream.tell() if stream else 0, part.size * rows.centers  # what a process holds at most
    for at in range(0, most, _CHUNK):
        own = rows.chunk(name, at, min(at + _CHUNK, most))
        for rank, chunk in enumerate(part.group.all_gather_rows(own)):
            if stream is not None:
                stream.seek(start + 4 * rows.dim * (rank * most + at))
                chunk.tofile(stream)


def read(parameters: Path, classifier: Classifier, step: int) -> None:
    """Load this process's class vectors of the checkpoint `parameters` (.pdparams), which was made after `step`.

    Raises WeightsError if the file is missing, is damaged, or belongs to another classifier or step.
    """
    path = resolve_during_swap(parameters.with_suffix(f".{SUFFIX}"))
    if not path.is_file():
        raise WeightsError(
            "The checkpoint has no file of class vectors, without which it cannot be resumed.",
            where=str(path),
            fix="Resume from latest/ of a run with the same Model.head_sample; its other checkpoints hold the network "
            "alone, from which Train.pretrain_weight_path starts a new run.",
            code="head-file-missing",
        )
    try:
        problem = _read(path, classifier, step)
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything
        problem = f"it is damaged ({type(error).__name__}: {str(error)[:200]})"
    if problem:
        raise WeightsError(
            f"The file of class vectors cannot be used: {problem}.",
            where=str(path),
            fix="Resume from an intact latest/ of the same run.",
            code="head-file-unusable",
        )


def require_none(parameters: Path) -> None:
    """Raise ConfigError if the checkpoint `parameters` (.pdparams) has such a file: its network has no classifier."""
    path = resolve_during_swap(parameters.with_suffix(f".{SUFFIX}"))
    if path.is_file():
        raise ConfigError(
            "The resumed run draws the classes of its classifier, and Model.head_sample is null.",
            where=str(path),
            fix="Resume with its Model.head_sample, or start a new run from the weights with "
            "Train.pretrain_weight_path.",
            code="head-sample-changed",
        )


def _read(path: Path, classifier: Classifier, step: int) -> str:
    """Fill the vectors; returns what is wrong with the file, "" if nothing is."""
    from safetensors import safe_open

    part, rows = classifier.part, classifier.rows
    with safe_open(path, "numpy") as file:
        about = file.metadata() or {}
        expected = {"kind": _KIND, "classes": str(part.classes), "step": str(step)}
        for name, value in expected.items():
            if about.get(name) != value:
                return f"its {name} is {about.get(name)}, and not {value}"
        if sorted(file.keys()) != sorted(rows.names):
            return f"it holds {', '.join(sorted(file.keys()))}, and not {', '.join(sorted(rows.names))}"
        start, count = part.first * rows.centers, part.count * rows.centers
        for name in rows.names:
            stored = file.get_slice(name)
            shape = [part.classes * rows.centers, rows.dim]
            if list(stored.get_shape()) != shape or stored.get_dtype() != "F32":
                return f"{name} has shape {stored.get_shape()} of {stored.get_dtype()}, and not {shape} of F32"
            for at in range(0, count, _CHUNK):
                chunk = stored[start + at : start + min(at + _CHUNK, count)]
                if not np.isfinite(chunk).all():
                    return f"{name} holds numbers that are not finite"
                rows.set_chunk(name, at, chunk)
    classifier.steps = step
    return ""
