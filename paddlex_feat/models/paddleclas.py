"""Networks of an installed PaddleClas as backbones, named "paddleclas/NAME"."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

import paddle
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.config.registry import did_you_mean
from paddlex_feat.errors import ConfigError, DependencyError
from paddlex_feat.models.registry import BACKBONE_KEY, PADDLECLAS
from paddlex_feat.models.spec import NetworkSpec

log = logging.getLogger(__name__)


def build(spec: NetworkSpec, params: Section) -> nn.Layer:
    """Build a classification network of PaddleClas whose classes are the embedding: its last layer projects.

    Raises:
        ConfigError: the network does not exist, cannot be built, or does not return [N, embedding_size].
        DependencyError: the PaddleClas wheel cannot be imported.
    """
    name, module = spec.backbone.removeprefix(PADDLECLAS), _import_paddleclas()
    make = getattr(module, name, None)
    known = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
    if name not in known or make is None:
        raise ConfigError(
            f"The installed PaddleClas has no network {name!r}.{did_you_mean(name, known)}",
            where=BACKBONE_KEY,
            fix="Use a name of its model zoo, such as paddleclas/ResNet50.",
            code="unknown-name",
        )
    try:
        layer = make(pretrained=False, class_num=spec.embedding_size)
        shape = _output_shape(layer, spec.input_size)
    except Exception as error:  # whatever a network of another program can raise
        log.debug("PaddleClas's %s failed", name, exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise ConfigError(
            f"PaddleClas's {name} cannot be built for {spec.input_size} px ({type(error).__name__}: {reason}).",
            where=BACKBONE_KEY,
            fix="Use another network, or the input size that it was made for (Train.input_size).",
            code="paddleclas-build",
        ) from error
    if shape != [2, spec.embedding_size]:
        raise ConfigError(
            f"PaddleClas's {name} gives {shape or 'no single tensor'} for 2 images, not [2, {spec.embedding_size}].",
            where=BACKBONE_KEY,
            fix="Use a classification network: its classes become the embedding.",
            code="paddleclas-output",
        )
    return layer


def _import_paddleclas() -> ModuleType:
    try:
        return importlib.import_module("paddleclas.ppcls.arch.backbone")
    except ImportError as error:
        raise DependencyError(
            f"Backbones named {PADDLECLAS}NAME need the PaddleClas wheel, which cannot be imported ({error}).",
            where=BACKBONE_KEY,
            fix="pip install 'paddlex_feat[paddleclas]', then pip install --no-deps paddleclas==2.6.0: "
            "the wheel asks for versions of NumPy and OpenCV that are too old, and its networks do not need them.",
            code="paddleclas-missing",
        ) from error


def _output_shape(layer: nn.Layer, size: int) -> list[int]:
    """The output's shape for two images; [] if it is not a tensor."""
    layer.eval()  # BatchNorm statistics and random numbers stay untouched
    with paddle.no_grad():
        y = layer(paddle.zeros([2, 3, size, size]))
    layer.train()
    return list(y.shape) if isinstance(y, paddle.Tensor) else []
