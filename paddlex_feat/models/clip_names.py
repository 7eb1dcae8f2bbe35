"""Visual towers of other programs under the names of CLIP_vit.

Two sets of names are known: that of OpenAI's CLIP (A. Radford et al., arXiv:2103.00020), which open_clip and MLCD
share, and that of Hugging Face's CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection. PyTorch keeps the matrix
of a linear layer as [outputs, inputs], Paddle as [inputs, outputs].
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.errors import WeightsError, sanitize

log = logging.getLogger(__name__)

_MAX_FAULTS = 20  # listed in an error
_HF_VISION = "vision_model."
_HF_PROJECTION = "visual_projection.weight"
_HF_COUNTER = "embeddings.position_ids"  # 0, 1, 2, …: not a weight
# The class token of a tower, and a tensor that a tower has beside it: no text tower has both.
_MARKS = {
    "class_embedding": "conv1.weight",  # OpenAI
    "embeddings.class_embedding": "embeddings.patch_embedding.weight",  # Hugging Face
}
_TENSORS = {
    "class_embedding": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "proj": "proj",
    _HF_PROJECTION: "proj",
}
_LAYERS = {
    "conv1": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "ln_pre": "ln_pre",
    "pre_layrnorm": "ln_pre",  # spelt so in the files
    "pre_layernorm": "ln_pre",
    "ln_post": "norm",
    "post_layernorm": "norm",
}
_BLOCK = re.compile(r"(?:transformer\.resblocks|encoder\.layers)\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "ln_1": "norm1",
    "layer_norm1": "norm1",
    "ln_2": "norm2",
    "layer_norm2": "norm2",
    "attn.in_proj": "attn.qkv",
    "attn.out_proj": "attn.proj",
    "self_attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class Tower:
    """The visual tower of another program, renamed.

    Attributes:
        tensors: by the names of CLIP_vit; values that are not arrays are as the file has them.
        sources: the names in the file of each of them.
        strangers: tensors of the tower that CLIP_vit has no name for, by their names in the file.
        ignored: how many tensors of the file are not of the visual tower.
    """

    tensors: dict[str, Any]
    sources: dict[str, str]
    strangers: dict[str, np.ndarray]
    ignored: int


def read_tower(state: Mapping[str, Any]) -> Tower | None:
    """The visual tower in a weight file; None if the file has none of a known program.

    Args:
        state: tensors by their names in the file.
    """
    root = _root(state)
    if root is None:
        return None
    projection = f"{root.removesuffix(_HF_VISION)}{_HF_PROJECTION}"  # beside the tower
    within = [name for name in state if name.startswith(root)]
    known = {name[len(root) :]: name for name in within if not name.endswith(_HF_COUNTER)}
    if projection in state:
        known[_HF_PROJECTION] = projection
    ignored = len(state) - len({*within, *known.values()})
    values = {short: state[name] for short, name in known.items()}
    _join_queries_keys_values(values, known)
    tower = Tower({}, {}, {}, ignored)
    for short, value in values.items():
        own = _own_name(short)
        if own is not None:
            tower.tensors[own] = _own_form(short, own, value)
            tower.sources[own] = known[short]
        elif isinstance(value, np.ndarray):
            tower.strangers[known[short]] = value
    return tower


def _root(state: Mapping[str, Any]) -> str | None:
    """What the names of the visual tower begin with, such as "visual."."""
    for name in state:
        for mark, companion in _MARKS.items():
            root = name.removesuffix(mark)
            if root != name and (not root or root.endswith(".")) and f"{root}{companion}" in state:
                return root
    return None


def _join_queries_keys_values(values: dict[str, Any], known: dict[str, str]) -> None:
    """Put Hugging Face's three matrices of an attention into one, in the order of PyTorch's `in_proj`."""
    for short in [name for name in values if ".self_attn.q_proj." in name]:
        parts = [short.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        arrays = [value for value in map(values.get, parts) if isinstance(value, np.ndarray) and value.ndim]
        if len(arrays) < len(parts) or len({array.shape for array in arrays}) > 1:
            continue  # listed as tensors without a place
        joined = short.replace(".self_attn.q_proj.", ".attn.in_proj.")
        values[joined] = np.concatenate(arrays)
        known[joined] = known[short].replace(".q_proj.", ".{q,k,v}_proj.")
        for part in parts:
            del values[part]


def _own_name(short: str) -> str | None:
    """The name in CLIP_vit of a tensor of a tower."""
    if short in _TENSORS:
        return _TENSORS[short]
    block = _BLOCK.fullmatch(short.replace(".in_proj_", ".in_proj."))
    if block:
        number, layer, kind = block.groups()
        return f"blocks.{number}.{_IN_BLOCK[layer]}.{kind}" if layer in _IN_BLOCK else None
    layer, _, kind = short.rpartition(".")
    return f"{_LAYERS[layer]}.{kind}" if layer in _LAYERS and kind in ("weight", "bias") else None


def _own_form(short: str, own: str, value: Any) -> Any:
    """The tensor as CLIP_vit has it."""
    if not isinstance(value, np.ndarray):
        return value
    if own == "cls_token":
        return value.reshape(1, 1, -1)
    if own == "pos_embed":
        return value[None]
    return value.T if value.ndim == 2 and short.endswith("weight") else value


def require_fit(tower: Tower, own: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError that lists each tensor of the tower that does not fit, and the keys of its network.

    Args:
        tower: with positions of this network's grid.
        own: shapes of the network's tensors.
    """
    faults = []
    for name, shape in own.items():
        value = tower.tensors.get(name)
        if value is None:
            faults.append(f"{name} is missing")
        elif not isinstance(value, np.ndarray):
            faults.append(f"{_shown(tower.sources[name])} is a {type(value).__name__}")
        elif value.shape != shape:
            faults.append(f"{_shown(tower.sources[name])} has shape {list(value.shape)}, the network has {list(shape)}")
    left = {tower.sources[name]: tower.tensors[name] for name in tower.tensors if name not in own} | tower.strangers
    faults += [f"{_shown(name)} {list(np.shape(v))} has no place in the network" for name, v in left.items()]
    if not faults:
        return
    listed = "\n    ".join(faults[:_MAX_FAULTS])
    more = f"\n    … and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    raise WeightsError(
        f"{len(faults)} tensors of the visual tower do not fit the network:\n    {listed}{more}",
        fix=_keys_of(tower),
        code="weights-mismatch",
    )


def _shown(name: str) -> str:
    return sanitize(name, 200)


def _keys_of(tower: Tower) -> str:
    """The configuration keys of the tower's network, as far as its tensors show them."""
    token, patches, proj = (tower.tensors.get(name) for name in ("cls_token", "patch_embed.proj.weight", "proj"))
    depth = len({name.split(".")[1] for name in tower.tensors if name.startswith("blocks.")})
    if not isinstance(token, np.ndarray) or not isinstance(patches, np.ndarray) or patches.ndim != 4 or not depth:
        return "Use an intact file of a ViT tower of CLIP."
    size = proj.shape[1] if isinstance(proj, np.ndarray) and proj.ndim == 2 else token.size
    return (
        f"The file's tower has Model.patch_size={patches.shape[3]}, Model.width={token.size}, Model.depth={depth}, "
        f"Model.embedding_size={size}: set these keys. Only the ViT towers of CLIP fit."
    )


def refuse_unicom(state: Mapping[str, Any], prefix: str) -> None:
    """Raise WeightsError for a tower of UNICOM's first release, whose names resemble those of CLIP_vit."""
    if f"{prefix}feature.0.weight" in state and f"{prefix}cls_token" not in state:
        raise WeightsError(
            "This is a tower of UNICOM's first release, another network: it has no class token, no LayerNorm before "
            "the blocks, ReLU6, and a linear layer over all tokens.",
            fix="Use a tower of MLCD, UNICOM's second release, or of CLIP.",
            code="weights-architecture",
        )
