"""Weight files: reading what may be hostile, writing, filling a network.

`.pdparams`, `.pdopt` and `.pdstates` are pickles of plain dictionaries of arrays. They are
read by an unpickler that knows arrays and plain containers and nothing else, and written so
that NumPy 1 (PaddleClas's environment) and NumPy 2 both read them. `.safetensors` holds arrays alone.
Files of PyTorch are read, not written (`torch_files`).
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.errors import WeightsError, sanitize
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.atomic_folder import open_during_swap
from paddlex_feat.models import safe_pickle, torch_files

log = logging.getLogger(__name__)

BACKBONE, NECK, HEAD = "backbone.", "neck.", "head."  # prefixes of tensor names
# Paddle's own bookkeeping entry in a saved state dict; not a tensor.
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"


class _PlainPickler(pickle.Pickler):
    """Writes an array as (shape, dtype, bytes), a form that every NumPy reads."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, (obj.shape, obj.dtype.str, obj.tobytes())
        return NotImplemented


def _unwrap(value: Any) -> Any:
    """paddle.save writes some tensors as (name, array)."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        return value[1]
    if isinstance(value, dict):
        return {k: _unwrap(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(v) for v in value)
    return value


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a `.pdparams`, `.pdopt`, `.pdstates`, `.safetensors` or PyTorch file; tensors as NumPy arrays.

    The name decides about `.safetensors`, the first bytes about the others.

    Raises WeightsError if the file is missing, damaged, or holds anything but plain data.
    """
    try:
        with open_during_swap(path) as stream:
            state = _read(stream, path)
    except WeightsError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix, code=error.code) from None
    except FileNotFoundError:
        what = lookup.problem("The weight file", path, "file")
        fix = "Check the path, or train first."
        raise WeightsError(what, where=str(path), fix=fix, code="weights-missing") from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise WeightsError(
            f"The weight file is damaged or of another format ({type(error).__name__}: {str(error)[:200]}).",
            where=str(path),
            fix="Copy it again; if it was downloaded, delete it, and it is downloaded again.",
            code="weights-damaged",
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(
            f"The weight file holds a {type(state).__name__} where a dictionary of tensors is expected.",
            where=str(path),
            code="weights-not-tensors",
        )
    return {k: _unwrap(v) for k, v in state.items() if k != _PADDLE_NAME_TABLE}


def _read(stream: BinaryIO, path: Path) -> Any:
    if is_safetensors(path):
        return _read_safetensors(stream)
    if torch_files.is_torch(stream):
        return _state_dict(torch_files.load(stream))
    return safe_pickle.load(stream)


def _state_dict(content: Any) -> Any:
    """The tensors of a PyTorch checkpoint, which may lie one level down; the prefix of its data parallelism goes."""
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if isinstance(content, dict) and content and all(str(k).startswith("module.") for k in content):
        return {str(k).removeprefix("module."): v for k, v in content.items()}
    return content


def is_safetensors(path: Path) -> bool:
    """Does the name say `.safetensors`?"""
    return path.suffix.lower() == ".safetensors"


def _read_safetensors(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Every tensor of the open file, in memory of its own; bfloat16 as float32."""
    from safetensors import deserialize
    from safetensors.numpy import load_file

    try:
        # By its number the very file that was opened, though a run may exchange the name meanwhile.
        return load_file(f"/dev/fd/{stream.fileno()}")
    except TypeError:  # NumPy has no bfloat16
        content = deserialize(stream.read())  # type: ignore[no-untyped-call]
        return {name: _tensor(**about) for name, about in content}


def _tensor(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """A tensor of a .safetensors file, whose types are BF16, F32, I64 and the like."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    kind = "|b1" if dtype == "BOOL" else f"<{dtype[0].lower()}{int(dtype[1:]) // 8}"
    return np.frombuffer(data, kind).reshape(shape)


def _to_plain(value: Any) -> Any:
    if isinstance(value, paddle.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    return value


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict (tensors become arrays), whole or not at all; the same state gives the same bytes.

    A name that ends in `.safetensors` gets that format. Raises WeightsError if not all is arrays then.
    """
    plain = {k: _to_plain(v) for k, v in state.items()}
    others = [k for k, v in plain.items() if not isinstance(v, np.ndarray)]
    if is_safetensors(path) and others:
        raise WeightsError(
            f"This format holds tensors alone, and {others[0]} is neither array nor tensor.",
            where=str(path),
            fix="Write a .pdparams file.",
            code="safetensors-content",
        )
    with atomic_path(path) as temporary:
        if is_safetensors(path):
            from safetensors.numpy import save_file

            # It writes memory as it lies there.
            save_file({k: np.asarray(v, order="C") for k, v in plain.items()}, temporary)
        else:
            with temporary.open("wb") as stream:
                _PlainPickler(stream, protocol=4).dump(plain)


@dataclass
class LoadReport:
    """Names of tensors: found in both, left as they were, in the file only."""

    loaded: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.reinitialised:
            text += f", newly initialised: {', '.join(self.reinitialised)}"
        if self.unused:
            names = ", ".join(sanitize(name, 200) for name in self.unused[:5])
            text += f", {len(self.unused)} in the file not used: {names}"
        return text


Head = Literal["required", "optional", "fresh", "ignored"]


def load(model: nn.Layer, path: Path, head: Head = "required") -> LoadReport:
    """Fill `model` from a weight file by tensor name.

    A file of a backbone alone, whose names do not begin with "backbone.", is understood.

    Args:
        model: a Recognizer, or another network whose tensors have the names of the file.
        path: the weight file, in any form that `read` knows.
        head: "optional", as at the start of training, leaves the head's fresh weights where the file
            has none or another class count, and those of a neck that the file does not have;
            "fresh" does so with the head in any case;
            "ignored" leaves the head in any case, where only features are wanted.

    Raises WeightsError that lists every tensor that is missing or has another shape.
    """
    state, report, faults, fill = _with_prefix(read(path), model), LoadReport(), [], {}
    if head == "fresh":
        state, head = {n: t for n, t in state.items() if not n.startswith(HEAD)}, "optional"
    _adapt(model, state, path)
    own = {n: t for n, t in model.state_dict().items() if head != "ignored" or not n.startswith(HEAD)}
    absent = tuple(p for p in (NECK, HEAD) if head == "optional" and not any(n.startswith(p) for n in state))
    for name, tensor in own.items():
        value = state.get(name)
        shape = list(tensor.shape)
        if isinstance(value, np.ndarray) and list(value.shape) == shape:
            fault = _unsound(value)
            if fault:
                faults.append(f"{name} {fault}")
            else:
                fill[name] = value.astype(np.float32, copy=False)
                report.loaded.append(name)
        elif name.startswith(absent) or (head == "optional" and name.startswith(HEAD)):
            report.reinitialised.append(name)
        elif value is None:
            faults.append(f"{name} is missing")
        else:
            found = (
                f"has shape {list(value.shape)}" if isinstance(value, np.ndarray) else f"is a {type(value).__name__}"
            )
            faults.append(f"{name} {found}, the network has {shape}")
    report.unused = [name for name in state if name not in own and (head != "ignored" or not name.startswith(HEAD))]
    if faults:
        shown = "\n    ".join(faults[:20]) + (f"\n    … and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise WeightsError(
            f"{len(faults)} of {len(own)} tensors do not fit the network:\n    {shown}",
            where=str(path),
            fix="Use intact weights of the same model, or choose the configuration they were trained with.",
            code="weights-mismatch",
        )
    model.set_state_dict({**model.state_dict(), **fill})  # Paddle warns of names that are left out
    return report


def _adapt(model: nn.Layer, state: dict[str, Any], path: Path) -> None:
    """Let the backbone change the file's tensors; of those it adds for a neck, keep the ones that the network has."""
    adapt = getattr(getattr(model, "backbone", None), "adapt_state", None)
    if adapt is None:
        return
    kept = {*state, *model.state_dict()}
    try:
        adapt(state, BACKBONE)
    except WeightsError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix, code=error.code) from None
    for name in [n for n in state if n.startswith(NECK) and n not in kept]:
        del state[name]


def _unsound(value: np.ndarray) -> str:
    """What is wrong with a tensor's content, empty if nothing is."""
    if value.dtype.kind != "f":
        return f"has type {value.dtype}, the network has float32"
    return "" if np.isfinite(value).all() else "holds numbers that are not finite"


def _with_prefix(state: dict[str, Any], model: nn.Layer) -> dict[str, Any]:
    """Names as in the whole network, for a file that was saved from the backbone alone."""
    own = set(model.state_dict())
    if any(name in own for name in state) or not any(BACKBONE + name in own for name in state):
        return state
    return {BACKBONE + name: value for name, value in state.items()}
