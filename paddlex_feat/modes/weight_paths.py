"""Resolve the weight file of a configuration key; explain a path that holds no weights and what to give instead."""

from __future__ import annotations

import logging
import os
from itertools import islice
from pathlib import Path

from paddlex_feat.config.base import STARTER, official_weights
from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.hub.fetch import fetch_weights
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.model_info import PREFIX, missing_files, models_within
from paddlex_feat.models import torch_files

log = logging.getLogger(__name__)
_SUFFIXES = (".pdparams", ".safetensors", *torch_files.SUFFIXES)  # of weight files, the first suggested first
_OF_A_CHECKPOINT = {
    ".pdopt": "the optimizer's state of a checkpoint",
    ".pdstates": "the progress of a checkpoint",
}
_OF_A_MODEL = (".pdiparams", ".pdmodel", ".pdiparams.info", f"{PREFIX}.json", f"{PREFIX}.yml")
_FORMATS = "Give a .pdparams, .safetensors or PyTorch (.pth) file"
_CHECKPOINT = "Give the .pdparams file of a checkpoint, with its .pdopt and .pdstates beside it"
_ARCHIVE = "an archive", "Unpack it first and give the weight file in it."
_NOT_TORCH = "a file that torch.save did not write", ""
_ZIP = b"PK\x03\x04"  # how a file of torch.save begins; the older form begins as other pickles do
# By the end of a name: what the file is, and what to do.
_BY_NAME = {
    **dict.fromkeys((".onnx", ".ort"), ("an ONNX graph", "")),
    ".xml": ("an OpenVINO graph", ""),
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".pb", ".tflite"), ("a file of TensorFlow", "")),
    **dict.fromkeys((".npz", ".npy"), ("a file of NumPy", "")),
    **dict.fromkeys((".engine", ".trt"), ("a TensorRT engine", "")),
    ".msgpack": ("a file of Flax", ""),
    ".gguf": ("a file of llama.cpp", ""),
    ".safetensors.index.json": ("an index of weights in several parts", "Put the parts into one .safetensors file."),
    ".info.json": ("a note about a checkpoint", ""),
    **dict.fromkeys(lookup.ARCHIVES, _ARCHIVE),
    **dict.fromkeys((".yaml", ".yml", ".json", ".log", ".txt"), ("a text file", "")),
}
# The same by the first bytes, whatever the name.
_BY_BEGINNING = {
    b"\x89HDF": ("a file of TensorFlow", ""),
    b"\x1f\x8b": _ARCHIVE,
    b"version https://git-lfs": ("a pointer of Git LFS", "Fetch the file itself with `git lfs pull`."),
    b"<": ("a web page", "Download the weights again: the server sent a page in their place."),
}


def weight_file(key: str, weight_path: str | None, model: str) -> Path:
    """The file that the configuration key `key` names, fetched if it is a URL; null: the official weights of `model`.

    Raises WeightsError unless it may be a weight file; DownloadError; DependencyError.
    """
    if weight_path is None:
        weight_path = official_weights(model)
        log.info("%s is null: the official weights of %s, %s", key, model, weight_path)
    if is_url(weight_path) or weight_path == STARTER:
        return fetch_weights(weight_path, f"Give a local file with -o {key}=FILE.")
    path = resolve_during_swap(Path(weight_path))
    require_weights(key, path)
    return path


def require_checkpoint(key: str, path: Path) -> None:
    """Raise WeightsError unless `path` is a weight file with .pdopt and .pdstates beside it."""
    names = [path.with_suffix(suffix).name for suffix in _OF_A_CHECKPOINT] if path.name else []
    beside = f"{' and '.join(names)} must be beside it" if path.suffix == ".pdparams" else ""
    require_weights(key, path, beside, whole=True)
    missing = _missing(path)
    if missing:
        raise WeightsError(
            f"The file is not a whole checkpoint: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            "beside it.",
            where=f"{key}={path}",
            fix=f"To start from these weights alone: -o Train.pretrain_weight_path={path} -o {key}=null.",
            code="checkpoint-incomplete",
        )


def require_weights(key: str, path: Path, beside: str = "", graphs: bool = False, whole: bool = False) -> None:
    """Raise WeightsError, with what the path is and what to give, unless it is a file that may hold weights.

    Args:
        key: the configuration key that gives the path, for messages.
        path: as `resolve_during_swap` returns it.
        beside: an addition to the advice.
        graphs: accept an inference directory too.
        whole: suggest only checkpoints that training can resume from, the latest of a run first.
    """
    if path.is_dir():
        if not (graphs and not missing_files(path)):
            raise _folder_error(key, path, graphs, whole)
        return
    if not path.is_file():
        if _in_a_model(path):
            raise WeightsError(
                f"The weight file does not exist. {path.parent} holds an inference model, which consists of several "
                "files.",
                where=f"{key}={path}",
                fix=_advice("", _beside(path.with_name(f"{path.name}.pdiparams"), graphs, whole), whole),
                code="weights-missing",
            )
        fix = "Check the path, or train first" + (f"; {beside}" if beside else "")
        what = lookup.problem("The weight file", path, "file")
        raise WeightsError(what, where=f"{key}={path}", fix=f"{fix}.", code="weights-missing")
    kind, todo = _kind(path)
    if kind:
        raise WeightsError(
            f"{path.name} is {kind}, not weights.",
            where=f"{key}={path}",
            fix=_advice(todo, _beside(path, graphs, whole), whole),
            code="not-weights",
        )


def _in_a_model(path: Path) -> bool:
    """Whether a missing file would be among the files of an inference model, such as their common prefix."""
    if os.path.isfile(f"{path}.pdparams"):  # noqa: PTH113 - pathlib raises for a name that is too long
        return False
    is_prefix = os.path.isfile(f"{path}.pdiparams")  # noqa: PTH113
    return is_prefix or not (missing_files(path.parent) or weights_within(path.parent))


def _advice(todo: str, meant: list[str], whole: bool) -> str:
    given = f"Give {' or '.join(meant)}." if meant else ""
    fix = " ".join(filter(None, (todo, given))) or f"{_FORMATS}."
    return fix.replace(_FORMATS, _CHECKPOINT) if whole else fix


def _folder_error(key: str, folder: Path, graphs: bool, whole: bool) -> WeightsError:
    lacks = missing_files(folder)
    if not lacks:
        what = "The folder is an inference directory; its graph has no weights to train or to export again."
    elif graphs:
        what = f"The folder is not an inference directory: it lacks {', '.join(lacks)}."
    else:
        what = "The path is a folder, not a weight file."
    meant = weights_within(folder, whole) + (models_within(folder) if graphs else [])
    if not lacks and not meant:
        meant = weights_within(folder.parent, whole)
    todo = "" if meant or not graphs else f"{_FORMATS}, or a folder that mode export wrote."
    return WeightsError(what, where=f"{key}={folder}", fix=_advice(todo, meant, whole), code="weights-are-folder")


def weights_within(folder: Path, whole: bool = False) -> list[str]:
    """The weight file in a folder, in its best_model or in another folder below it: one path, or none.

    whole: only files of whole checkpoints, and in `latest` before other folders.
    """
    first = "latest" if whole else "best_model"
    try:
        below = sorted(islice((f for f in folder.iterdir() if f.is_dir()), 100))
        below.sort(key=lambda f: f.name != first)
        found = (p for f in (folder, *below) for s in _SUFFIXES for p in sorted(f.glob(f"*{s}")))
        return [str(next(file for file in found if _suits(file, whole)))]
    except (OSError, StopIteration):
        return []


def _suits(file: Path, whole: bool) -> bool:
    """Whether a file may hold weights, of a whole checkpoint if `whole`."""
    return not _kind(file)[0] and not (whole and _missing(file))


def _missing(path: Path) -> list[str]:
    """The names of the files that the checkpoint `path` (.pdparams) lacks."""
    names = [path.with_suffix(suffix).name for suffix in _OF_A_CHECKPOINT]
    return [name for name in names if not resolve_during_swap(path.with_name(name)).is_file()]


def _kind(path: Path) -> tuple[str, str]:
    """The kind of a file without weights, and what to do; two empty texts if it may hold weights.

    The name decides, unless the first bytes are those of weights.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError:
        return "", ""  # the reader says why
    name = path.name.lower()
    for suffix, part in _OF_A_CHECKPOINT.items():
        if name.endswith(suffix):
            return part, ""
    if not start:
        return "an empty file", ""
    begun = next((kind for begin, kind in _BY_BEGINNING.items() if start.startswith(begin)), ("", ""))
    if start[:1] == b"\x80" or name.endswith((".pdparams", ".pdema", ".safetensors")):
        return begun
    if name.endswith(_OF_A_MODEL):
        return "part of an inference directory", ""
    if name.endswith(torch_files.SUFFIXES):
        return begun if begun[0] or start.startswith(_ZIP) else _NOT_TORCH
    return next((kind for suffix, kind in _BY_NAME.items() if name.endswith(suffix)), begun)


def _beside(path: Path, graphs: bool, whole: bool) -> list[str]:
    """Suggestions for a file without weights."""
    same = [path.with_suffix(suffix) for suffix in _SUFFIXES]
    meant = [str(file) for file in same if file != path and file.is_file() and _suits(file, whole)][:1]
    meant = meant or weights_within(path.parent, whole)
    if path.name.lower().endswith(_OF_A_MODEL):
        meant = meant or weights_within(path.parent.parent, whole)
        if graphs and not missing_files(path.parent):
            meant.append(f"{path.parent}, the inference directory")
    return meant
