"""Describe the problems of a configuration: one line per key, with the correction."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import ValidationError

from paddlex_feat.config.aliases import KEYS, current_key
from paddlex_feat.config.schema import INPUTS, TEXT_KEYS, Config, value_of, walk
from paddlex_feat.fileio import paths

# Keys whose value is a mapping with keys of its own.
_MAPPINGS = {name for name, info in walk() if get_origin(info.annotation) is dict}
MAX_PROBLEMS = 20  # that are listed; each may take a search for the key that was meant
# Names of keys in other programs.
_ELSEWHERE = {
    "lr": "Train.learning_rate",
    "base_lr": "Train.learning_rate",
    "lr0": "Train.learning_rate",
    "epochs": "Train.epochs_iters",
    "num_epochs": "Train.epochs_iters",
    "max_epochs": "Train.epochs_iters",
    "bs": "Train.batch_size",
    "imgsz": "Train.input_size",
    "img_size": "Train.input_size",
    "image_size": "Train.input_size",
    "wd": "Train.weight_decay",
    "nc": "Train.num_classes",
    "class_num": "Train.num_classes",
    "workers": "Train.num_workers",
    "warmup_epochs": "Train.warmup_steps",
    "patience": "Train.early_stopping",
    "pretrained": "Train.pretrain_weight_path",
    "pretrained_model": "Train.pretrain_weight_path",
    "resume_from": "Train.resume_path",
    "checkpoints": "Train.resume_path",
    "save_dir": "Global.output",
    "save_path": "Global.output",
    "output_dir": "Global.output",
    "out": "Global.output",
    "data": "Global.dataset_dir",
    "data_dir": "Global.dataset_dir",
    "dataset": "Global.dataset_dir",
    "gpus": "Global.device",
    "gpu": "Global.device",
    "source": "Predict.input",
    "infer_imgs": "Predict.input",
}
# Paths that each mode uses; those of other modes may belong to another machine.
_PATHS = {
    "check_dataset": ("Global.dataset_dir",),
    "train": ("Global.dataset_dir", "Train.pretrain_weight_path", "Train.resume_path"),
    "evaluate": ("Global.dataset_dir", "Evaluate.weight_path"),
    "export": ("Global.dataset_dir", "Export.weight_path"),
    "predict": ("Predict.model_dir", "Predict.input"),
    "index": ("Predict.model_dir", "Index.path", "Index.input"),
    "search": ("Predict.model_dir", "Index.path", "Search.input"),
    "serve": ("Predict.model_dir", "Index.path"),
}


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def meant_key(dotted: str) -> str:
    """The key that was probably meant by an unknown one, "" if none is near.

    Looked up by its name in other programs, by the whole name, then by the last part in its section and in any.
    """
    names = [name for name, _ in walk()]
    names += KEYS  # former names
    section, _, last = dotted.lower().rpartition(".")
    if last in _ELSEWHERE:
        own = [name for name in names if name.lower() == f"{section}.{_ELSEWHERE[last].rpartition('.')[2]}"]
        return own[0] if own else _ELSEWHERE[last]
    if not section:
        names += list(Config.model_fields)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(dotted.lower(), lowered, 1, cutoff=0.75)
    if near:
        return current_key(lowered[near[0]])
    for within in (f"{section.capitalize()}.", ""):
        tails = {n.rsplit(".", 1)[-1].lower(): n for n in reversed(names) if n.startswith(within)}
        near = difflib.get_close_matches(last, tails, 1, cutoff=0.8)
        if near:
            return current_key(tails[near[0]])
    return ""


def _hint(dotted: str) -> str:
    meant = meant_key(dotted)
    return f" Did you mean {meant}?" if meant else ""


def listed(error: ValidationError, sources: Mapping[str, str], texts: Mapping[str, str]) -> tuple[list[str], int]:
    """One line per key, for the failing alternatives of a union are one problem; and how many are not listed.

    Args:
        error: as pydantic raises it for the whole configuration.
        sources: dotted key -> file:line, or "-o".
        texts: dotted key -> source text, of values that YAML does not read as text.
    """
    names = {name for name, _ in walk()}
    rows: dict[str, str] = {}
    items = error.errors()
    for item in items[:MAX_PROBLEMS]:
        parts = [str(p) for p in item["loc"]]
        if item["type"] == "extra_forbidden" and len(parts) == 1:
            parts = next((s for s in sources if s.startswith(f"{parts[0]}.")), parts[0]).split(".")
        while len(parts) > 1 and ".".join(parts) not in names and item["type"] != "extra_forbidden":
            if any(name.startswith(".".join(parts) + ".") for name in names):
                break
            parts.pop()
        dotted = ".".join(parts)
        if item["type"] == "extra_forbidden":
            message = "unknown key." + _hint(dotted)
        else:
            message = f"{item['msg'].removeprefix('Value error, ')}, got {_got(item, texts.get(dotted))}"
            if item["type"] == "string_type":
                message += _as_text(dotted, item["input"], texts.get(dotted))
        rows[dotted] = (
            f"{rows[dotted]}; or {message}" if dotted in rows else f"{dotted}{source(dotted, sources)}: {message}"
        )
    return list(rows.values()), max(0, len(items) - MAX_PROBLEMS)


def _got(item: Any, text: str | None) -> str:
    shown = short(item["input"]) if text is None or item["type"] != "string_type" else text
    return shown or "an empty value"


def _as_text(dotted: str, value: Any, text: str | None) -> str:
    if dotted == "Global.device":
        return f"; write gpu:{value} or cpu" if type(value) is int else "; write auto, cpu or gpu"
    if isinstance(value, (bool, int, float)) or text == "~":
        return f"; as text it is \"'{value if text is None else text}'\""
    return ""


def source(dotted: str, sources: Mapping[str, str]) -> str:
    """Where a key is set, in brackets, to append to its name; of a mapping, where -o sets a key in it."""
    inside = next((place for name, place in sources.items() if place == "-o" and name.startswith(f"{dotted}.")), "")
    place = inside if inside and dotted in _MAPPINGS else sources.get(dotted)
    return f" ({place})" if place else ""


def null_means(dotted: str) -> str:
    """What null does, by the key's description; "" if that does not mention null."""
    found = re.search(r"\bnull: (.+?)(?=\.\s|\.$|;|$)", dict(walk())[dotted].description or "")
    return found[1] if found else ""


def empty(dotted: str) -> str:
    """What to write where a key has an empty value."""
    if dotted in Config.model_fields:
        return f"it is a section; set keys in it, as {dotted}.KEY=VALUE"
    meaning = null_means(dotted)
    if meaning or TEXT_KEYS.get(dotted):
        return f"the value is empty; write {dotted}=null" + (f" (null: {meaning})" if meaning else "")
    if dotted in INPUTS:
        return "the value is empty; give an image, a folder, a URL or a list of these"
    return "the value is empty; give one, or leave the key out"


def unusable_paths(config: Config, sources: Mapping[str, str]) -> list[str]:
    """The paths of the mode that cannot be meant as they stand."""
    rows = []
    for dotted in ("Global.output", *_PATHS.get(config.Global.mode, ())):
        value = value_of(config, dotted)
        if not isinstance(value, str) or re.match("https?://", value, re.IGNORECASE):
            continue
        text = paths.expand_home(value)  # which Predict.input leaves to its reader
        reason = paths.fault(text, dotted == "Global.output", dotted in INPUTS) if value.strip() else empty(dotted)
        if reason:
            rows.append(f"{dotted}{source(dotted, sources)}: {reason}, got {short(value)}")
    return rows
