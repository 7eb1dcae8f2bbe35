"""Backbones and heads by name. Importing this module does not import Paddle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paddlex_feat.config.base import Section
from paddlex_feat.config.parts import Builder, NoParams
from paddlex_feat.config.registry import Registry
from paddlex_feat.errors import ConfigError
from paddlex_feat.models.head_params import CosFaceParams, CosineParams, SubCenterArcFaceParams
from paddlex_feat.models.spec import NetworkSpec

BACKBONE_KEY, HEAD_KEY = "Model.backbone", "Model.head"
PADDLECLAS = "paddleclas/"  # prefix of the networks of an installed PaddleClas


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone that configurations can name.

    The builder is called as `build(spec, params)` with a NetworkSpec and an instance of `params`, and returns a
    `paddle.nn.Layer`: float32 [N, 3, S, S] -> float32 [N, spec.embedding_size]. A layer with methods `fuse()` and
    `unfuse()` is fused for inference. A method `adapt_state(state, prefix)` may change the arrays of a weight file in
    place before they are loaded.

    Attributes:
        name: in `Model.backbone`.
        build: the builder.
        params: the backbone's own keys, in `Model.params`.
        stride: what `Train.input_size` must be a multiple of, in pixels; or a function of the NetworkSpec.
        fixed_size: whether the network takes images of the trained size only.
        unused_parameters: whether some parameters get no gradient, which data parallelism must know.
        size_from_keys: whether configuration keys decide how large the network is. The size of a weight file is then
            checked before the network takes memory; the builder must work under `paddle.LazyGuard`.
        mean: what is subtracted from each RGB channel of an image whose values are in 0 .. 1; None: ImageNet's mean.
        std: what that is divided by; None: ImageNet's standard deviation.
        poolings: values of `Model.pooling` that it can build.
        inits: values of `Train.init_backbone` beside "recipe"; the layer has a method `init_VALUE()` for each, which is
            called before weights are loaded.
    """

    name: str
    build: Builder
    params: type[Section] = NoParams
    stride: int | Callable[[NetworkSpec], int] = 1
    fixed_size: bool = False
    unused_parameters: bool = False
    size_from_keys: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    poolings: tuple[str, ...] = ("mean",)
    inits: tuple[str, ...] = ()

    def stride_of(self, spec: NetworkSpec) -> int:
        """Return the stride of this network, in pixels."""
        return self.stride if isinstance(self.stride, int) else self.stride(spec)


@dataclass(frozen=True)
class HeadSpec:
    """A classifier that configurations can name; it is used in training only.

    The builder is called as `build(spec, num_classes, params)` with a NetworkSpec, the number of classes and an
    instance of `params`, and returns a `paddle.nn.Layer` whose `forward(features, labels)` turns float32 [N, D] and
    labels int64 [N], or None, into logits float32 [N, num_classes]. A layer that is also a
    `config.parts.HasClassVectors` can be started at class means.

    Attributes:
        name: in `Model.head`.
        build: the builder.
        params: the head's own keys, in `Model.head_params`.
        scores: called as `scores(spec, params)`, returns the head's arithmetic as `models.class_scores.ClassScores`,
            for `Model.head_sample`; the head is then a `GivesClassVectors` too. None: it cannot draw classes.
    """

    name: str
    build: Builder
    params: type[Section] = NoParams
    scores: Builder | None = None


BACKBONES = Registry("backbones", BackboneSpec, BACKBONE_KEY)
BACKBONES.add(
    BackboneSpec(
        name="PPLCNetV2_base_ShiTu",
        build="paddlex_feat.models.pplcnetv2:pplcnetv2",
        poolings=("mean", "gem"),
        inits=("delta_orthogonal",),
        stride=8,
        size_from_keys=True,
    )
)
BACKBONES.add(
    BackboneSpec(
        name="CLIP_vit",
        build="paddlex_feat.models.clip_vit:clip_vit",
        poolings=("mean", "cls"),
        stride=lambda spec: spec.patch_size,
        fixed_size=True,  # its positions are learnt for one
        size_from_keys=True,
    )
)
BACKBONES.add(
    BackboneSpec(
        name="EfficientNet_Lite0",
        build="paddlex_feat.models.efficientnet_lite:efficientnet_lite0",
        poolings=("mean", "gem"),
        stride=32,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )
)

HEADS = Registry("heads", HeadSpec, HEAD_KEY)
for _name, _params in (
    ("linear", NoParams),
    ("arc_margin", NoParams),
    ("cosine", CosineParams),
    ("cosface", CosFaceParams),
    ("subcenter_arcface", SubCenterArcFaceParams),
):
    HEADS.add(
        HeadSpec(
            name=_name,
            build=f"paddlex_feat.models.heads:{_name}",
            params=_params,
            scores=f"paddlex_feat.models.class_scores:{_name}",
        )
    )


def find_backbone(name: str) -> BackboneSpec:
    """Return the specification of a name in BACKBONES, or of "paddleclas/" and a name of PaddleClas.

    Raises:
        ConfigError: the name is unknown.
        DependencyError: the package that provides it cannot be imported.
    """
    if name.startswith(PADDLECLAS):
        return BackboneSpec(name=name, build="paddlex_feat.models.paddleclas:build", unused_parameters=True)
    try:
        return BACKBONES.get(name)
    except ConfigError as error:
        fix = f"{(error.fix or '').rstrip('.')}, or {PADDLECLAS}NAME for a network of an installed PaddleClas."
        raise ConfigError(error.what, where=error.where, fix=fix, code=error.code) from None
