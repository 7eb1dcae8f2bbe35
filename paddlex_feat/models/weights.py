"""Weight files: reading pickles that may be hostile, writing them, filling a network.

`.pdparams`, `.pdopt` and `.pdstates` are pickles of plain dictionaries of arrays. They are
read by an unpickler that knows arrays and plain containers and nothing else, and written so
that NumPy 1 (PaddleClas's environment) and NumPy 2 both read them.
"""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.errors import WeightsError
from paddlex_feat.files import atomic_path, recover_folder

log = logging.getLogger(__name__)

BACKBONE, NECK, HEAD = "backbone.", "neck.", "head."  # prefixes of tensor names
# Paddle's own bookkeeping entry in a saved state dict; not a tensor.
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"

_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("builtins", "tuple"): tuple,  # how paddle.save marks a (name, array) pair
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): __import__("_codecs").encode,  # bytes in protocol-2 pickles
}
_reconstruct = np.zeros(0).__reduce__()[0]
_scalar = np.float32(0).__reduce__()[0]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED[_module, "_reconstruct"] = _reconstruct
    _ADMITTED[_module, "scalar"] = _scalar


class _PlainUnpickler(pickle.Unpickler):
    """Admits arrays, numbers, strings and plain containers; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise WeightsError(
                f"The file asks for {module}.{name}, which is neither an array nor a plain container.",
                fix="Do not use this file: loading it with a plain unpickler could run code.",
            ) from None


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
    return value


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a `.pdparams`, `.pdopt` or `.pdstates` file; tensors as NumPy arrays.

    Raises WeightsError if the file is missing, damaged, or holds anything but plain data.
    """
    if not path.is_file():
        recover_folder(path.parent)  # a run that was killed while it exchanged this checkpoint
    if not path.is_file():
        raise WeightsError("The weight file does not exist.", where=str(path), fix="Check the path, or train first.")
    try:
        with path.open("rb") as stream:
            state = _PlainUnpickler(stream).load()
    except WeightsError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(
            f"The weight file is damaged or of another format ({type(error).__name__}: {error}).",
            where=str(path),
            fix="Copy it again; where it was downloaded, delete it, and it is fetched again.",
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(
            f"The weight file holds a {type(state).__name__} where a dictionary of tensors is expected.",
            where=str(path),
        )
    return {str(k): _unwrap(v) for k, v in state.items() if k != _PADDLE_NAME_TABLE}


def _to_plain(value: Any) -> Any:
    if isinstance(value, paddle.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    return value


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict (tensors become arrays), whole or not at all; the same state gives the same bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        _PlainPickler(stream, protocol=4).dump({k: _to_plain(v) for k, v in state.items()})


@dataclass
class LoadReport:
    """Names of tensors: found in both, left as they were, in the file only."""

    loaded: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.reinitialised:
            text += f", initialised afresh: {', '.join(self.reinitialised)}"
        if self.unused:
            text += f", {len(self.unused)} in the file not used: {', '.join(self.unused[:5])}"
        return text


def load(model: nn.Layer, path: Path, head: Literal["required", "optional", "ignored"] = "required") -> LoadReport:
    """Fill `model` from a weight file by tensor name.

    A file of a backbone alone, whose names do not begin with "backbone.", is understood.

    Args:
        head: "optional", as at the start of training, leaves the head's fresh weights where the file
            has none or another class count, and those of a neck that the file does not have;
            "ignored" leaves the head in any case, where only features are wanted.

    Raises WeightsError that lists every tensor that is missing or has another shape.
    """
    state, report, faults, fill = _with_prefix(read(path), model), LoadReport(), [], {}
    adapt = getattr(getattr(model, "backbone", None), "adapt_state", None)
    if adapt is not None:
        adapt(state, BACKBONE)
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
            faults.append(f"{name} has shape {list(np.shape(value))}, the network has {shape}")
    report.unused = [name for name in state if name not in own and (head != "ignored" or not name.startswith(HEAD))]
    if faults:
        shown = "\n    ".join(faults[:20]) + (f"\n    … and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise WeightsError(
            f"{len(faults)} of {len(own)} tensors do not fit the network:\n    {shown}",
            where=str(path),
            fix="Use sound weights of the same model, or choose the configuration they were trained with.",
        )
    model.set_state_dict({**model.state_dict(), **fill})  # Paddle warns of names that are left out
    return report


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
