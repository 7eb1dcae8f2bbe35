"""Settings of inference.yml: followed, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.model_info import read_info

EXPORTED = Preprocess(64, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5)


def ops_with(operation: str, option: str, value: Any) -> list[dict[str, Any]]:
    ops: list[dict[str, Any]] = [{"DecodeImage": {"to_rgb": True}}, *EXPORTED.to_ops()]
    entry = next(op for op in ops if operation in op)
    entry[operation] = {**(entry[operation] or {}), option: value}
    return ops


@pytest.mark.parametrize(
    ("operation", "option", "value"),
    [
        ("DecodeImage", "to_rgb", False),
        ("DecodeImage", "to_bgr", True),
        ("DecodeImage", "img_mode", "BGR"),
        ("DecodeImage", "channel_first", True),
        ("DecodeImage", "backend", "pil"),
        ("ResizeImage", "backend", "PIL"),
        ("ResizeImage", "resize_short", 256),
        ("ResizeImage", "keep_ratio", True),
        ("ResizeImage", "size", [64, 80]),
        ("ResizeImage", "size", [64, 64, 3]),
        ("ResizeImage", "size", 64.5),
        ("ResizeImage", "size", True),
        ("ResizeImage", "interpolation", "nearest"),
        ("ResizeImage", "interpolation", 3),
        ("ResizeImage", "antialias", True),
        ("NormalizeImage", "order", "chw"),
        ("NormalizeImage", "order", "whc"),
        ("NormalizeImage", "channel_num", 4),
        ("NormalizeImage", "output_fp16", True),
        ("ToCHWImage", "layout", "nhwc"),
    ],
)
def test_a_setting_that_would_change_features_is_refused_by_name(operation, option, value):
    with pytest.raises(WeightsError) as caught:
        Preprocess.from_ops(ops_with(operation, option, value), "that.yml")
    assert option in caught.value.what and "that.yml" in caught.value.where


@pytest.mark.parametrize(
    ("operation", "option", "value"),
    [
        ("DecodeImage", "channel_first", False),
        ("DecodeImage", "to_np", False),
        ("DecodeImage", "img_mode", "RGB"),
        ("ResizeImage", "backend", "CV2"),
        ("ResizeImage", "resize_short", None),
        ("ResizeImage", "return_numpy", True),
        ("ResizeImage", "size", 64),
        ("ResizeImage", "size", [64.0, 64]),
        ("ResizeImage", "interpolation", "BICUBIC"),
        ("NormalizeImage", "order", ""),
        ("NormalizeImage", "scale", "1.0/2.0"),
        ("NormalizeImage", "output_fp16", False),
        ("NormalizeImage", "whatever", None),
    ],
)
def test_a_setting_that_means_what_is_done_is_accepted(operation, option, value):
    assert Preprocess.from_ops(ops_with(operation, option, value), "x") == EXPORTED


def test_defaults_are_those_of_paddleclas_and_paddlex():
    ops = [{"ResizeImage": {"size": 224}}, {"NormalizeImage": None}, {"ToCHWImage": None}]
    assert Preprocess.from_ops(ops, "x") == Preprocess()


def test_the_order_of_the_operations_counts():
    resize, normalise, planes = EXPORTED.to_ops()
    for ops, named in (
        ([normalise, resize, planes], "the order NormalizeImage, ResizeImage, ToCHWImage"),
        ([planes, resize, normalise], "the order"),
        ([resize, planes, normalise], "order hwc does not fit"),
        ([resize, normalise, planes, resize], "ResizeImage is given twice"),
        ([resize, normalise, planes, {"CropImage": {"size": 64}}], "CropImage"),
    ):
        with pytest.raises(WeightsError, match=named):
            Preprocess.from_ops(ops, "x")
    after = {"NormalizeImage": {**normalise["NormalizeImage"], "order": "chw"}}
    assert Preprocess.from_ops([resize, planes, after], "x") == EXPORTED


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ({"NormalizeFeatures": None}, None),
        ({}, None),
        ({"NormalizeFeatures": None, "Topk": {"topk": 5}}, "Topk"),
        ({"NormalizeFeatures": {"axis": 0}}, "NormalizeFeatures"),
        ([{"NormalizeFeatures": None}], "not a valid"),
    ],
)
def test_post_processing_is_the_norm_or_nothing(steps, named, tmp_path):
    content = {
        "Global": {"model_name": "m"},
        "PreProcess": {"transform_ops": EXPORTED.to_ops()},
        "PostProcess": steps,
    }
    (tmp_path / "inference.yml").write_text(yaml.safe_dump(content))
    if named is None:
        assert read_info(tmp_path).normalise_features == bool(steps)
        return
    with pytest.raises(WeightsError, match=named):
        read_info(tmp_path)


@pytest.mark.parametrize(("value", "unit"), [(None, True), ({}, True), (True, True), (False, False)])
def test_normalize_features_is_followed(value, unit, tmp_path):
    content = {"Global": {"model_name": "x"}, "PreProcess": {"transform_ops": EXPORTED.to_ops()}}
    (tmp_path / "inference.yml").write_text(yaml.safe_dump({**content, "PostProcess": {"NormalizeFeatures": value}}))
    assert read_info(tmp_path).normalise_features is unit
    (tmp_path / "inference.yml").write_text(yaml.safe_dump({**content, "PostProcess": {"NormalizeFeatures": {"p": 1}}}))
    with pytest.raises(WeightsError, match="not implemented"):
        read_info(tmp_path)


def test_a_scale_of_zero_makes_all_images_equal_and_is_refused():
    with pytest.raises(WeightsError, match="not a usable number"):
        Preprocess.from_ops(ops_with("NormalizeImage", "scale", 0), "inference.yml")


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ([{"ResizeImage": {"size": 32}}], "has no NormalizeImage"),
        ([{"NormalizeImage": None}], "has no ResizeImage"),
        ([{"ResizeImage": None}, {"NormalizeImage": None}], "has no ResizeImage.size"),
        ([], "has no ResizeImage"),
        (None, "must be a list of operations"),
        (["ResizeImage"], "must be a list of operations"),
        ([{"ResizeImage": 32}, {"NormalizeImage": None}], "needs options by name in ResizeImage, got 32"),
    ],
)
def test_a_list_of_operations_of_another_form_is_explained(ops, said):
    with pytest.raises(WeightsError, match=f"transform_ops {said}") as caught:
        Preprocess.from_ops(ops, "x")
    assert "Error" not in caught.value.what


@pytest.mark.parametrize(
    ("operation", "option", "value", "said"),
    [
        ("NormalizeImage", "mean", 0.5, "needs three numbers in NormalizeImage.mean, got 0.5"),
        ("NormalizeImage", "std", [0.5], "needs three numbers in NormalizeImage.std"),
        ("NormalizeImage", "mean", [0.1, 0.2, 0.3, 0.4], "needs three numbers in NormalizeImage.mean"),
        ("NormalizeImage", "mean", "123", "needs three numbers in NormalizeImage.mean, got 123"),
        ("NormalizeImage", "std", [0.1, "x", None], "needs three numbers in NormalizeImage.std"),
        ("NormalizeImage", "scale", "1/0", "needs a number in NormalizeImage.scale, got 1/0"),
        ("NormalizeImage", "scale", [1], "needs a number in NormalizeImage.scale"),
        ("ResizeImage", "size", "big", "needs one or two whole numbers in ResizeImage.size, got big"),
        ("ResizeImage", "size", [32, 32, 3], "needs one or two whole numbers in ResizeImage.size"),
    ],
)
def test_a_value_of_another_form_names_the_form(operation, option, value, said):
    with pytest.raises(WeightsError) as caught:
        Preprocess.from_ops(ops_with(operation, option, value), "x")
    assert caught.value.what == f"PreProcess.transform_ops {said}." or f"{said}, got [" in caught.value.what
