"""Backbones by name: float32 [N, 3, S, S] -> float32 [N, embedding_size]."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import paddle
from paddle import nn

from paddlex_feat.errors import ConfigError, DependencyError
from paddlex_feat.models.clip_vit import CLIPViT
from paddlex_feat.models.pplcnetv2 import PPLCNetV2ShiTu
from paddlex_feat.models.spec import NetworkSpec

log = logging.getLogger(__name__)
KEY = "Model.backbone"
PADDLECLAS = "paddleclas/"  # prefix of the names that an installed PaddleClas wheel answers


def _pplcnetv2(spec: NetworkSpec) -> nn.Layer:
    return PPLCNetV2ShiTu(spec.embedding_size, spec.dropout)


def _clip_vit(spec: NetworkSpec) -> nn.Layer:
    return CLIPViT(
        spec.input_size,
        spec.patch_size,
        spec.width,
        spec.depth,
        spec.heads,
        embedding_size=spec.embedding_size,
        class_token=spec.class_token,
    )


BACKBONES: dict[str, Callable[[NetworkSpec], nn.Layer]] = {
    "PPLCNetV2_base_ShiTu": _pplcnetv2,
    "CLIP_vit": _clip_vit,
}


def build(spec: NetworkSpec) -> nn.Layer:
    """The backbone `spec.backbone` with fresh weights: one of BACKBONES, or "paddleclas/" and a name there.

    Raises ConfigError for a name that nobody knows or a network that gives no [N, embedding_size],
    DependencyError if the PaddleClas wheel is asked for and cannot be imported.
    """
    if spec.backbone.startswith(PADDLECLAS):
        return _paddleclas(spec)
    if spec.backbone not in BACKBONES:
        raise ConfigError(
            f"There is no backbone {spec.backbone!r}.{_did_you_mean(spec.backbone, list(BACKBONES))}",
            where=KEY,
            fix=f"Use one of {', '.join(BACKBONES)}, or {PADDLECLAS}NAME for a network of an installed PaddleClas.",
        )
    return BACKBONES[spec.backbone](spec)


def _did_you_mean(name: str, known: list[str]) -> str:
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _paddleclas(spec: NetworkSpec) -> nn.Layer:
    """A classification network of PaddleClas whose classes are the embedding: its last layer is the projection."""
    name, module = spec.backbone.removeprefix(PADDLECLAS), _import_paddleclas()
    make = getattr(module, name, None)
    known = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
    if name not in known or make is None:
        raise ConfigError(
            f"The installed PaddleClas has no network {name!r}.{_did_you_mean(name, known)}",
            where=KEY,
            fix="Use a name of its model zoo, such as paddleclas/ResNet50.",
        )
    try:
        layer = make(pretrained=False, class_num=spec.embedding_size)
        shape = _output_shape(layer, spec.input_size)
    except Exception as error:  # whatever a network of another program can raise
        log.debug("PaddleClas's %s failed", name, exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise ConfigError(
            f"PaddleClas's {name} cannot be built for {spec.input_size} px ({type(error).__name__}: {reason}).",
            where=KEY,
            fix="Use another network, or the input size that it was made for (Train.input_size).",
        ) from error
    if shape != [2, spec.embedding_size]:
        raise ConfigError(
            f"PaddleClas's {name} gives {shape or 'no single tensor'} for 2 images, not [2, {spec.embedding_size}].",
            where=KEY,
            fix="Use a classification network: its classes become the embedding.",
        )
    return layer


def _import_paddleclas() -> ModuleType:
    try:
        return importlib.import_module("paddleclas.ppcls.arch.backbone")
    except ImportError as error:
        raise DependencyError(
            f"Backbones named {PADDLECLAS}NAME need the PaddleClas wheel, which cannot be imported ({error}).",
            where=KEY,
            fix="pip install 'paddlex_feat[paddleclas]', then pip install --no-deps paddleclas==2.6.0: "
            "the wheel asks for versions of NumPy and OpenCV that are too old, and its networks do not need them.",
        ) from error


def _output_shape(layer: nn.Layer, size: int) -> list[int]:
    """The output's shape for two images; [] if it is no tensor."""
    layer.eval()  # BatchNorm statistics and random numbers stay untouched
    with paddle.no_grad():
        y = layer(paddle.zeros([2, 3, size, size]))
    layer.train()
    return list(y.shape) if isinstance(y, paddle.Tensor) else []
