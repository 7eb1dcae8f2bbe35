"""Names and forms of the visual towers of other programs, and what does not fit."""

from __future__ import annotations

import json
import logging
import struct
from dataclasses import replace

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.load import load
from paddlex_feat.errors import WeightsError
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.clip_names import read_tower
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes.build import preprocess_of

W, PATCH, DEPTH, SIZE = 24, 8, 2, 16  # of the tiny tower, at 32 px
SPEC = NetworkSpec(
    "CLIP_vit", embedding_size=SIZE, patch_size=PATCH, width=W, depth=DEPTH, heads=3, neck="linear", input_size=32
)
SPEC = replace(SPEC, pooling="cls", activation="quick_gelu")


def openai(root: str = "visual.", dtype: str = "float32") -> dict[str, np.ndarray]:
    """A tiny tower under OpenAI's names, beside parts of a text tower."""
    shapes = {
        "class_embedding": (W,),
        "positional_embedding": (17, W),
        "proj": (W, SIZE),
        "conv1.weight": (W, 3, PATCH, PATCH),
        **{f"{norm}.{kind}": (W,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
    }
    for block in (f"transformer.resblocks.{i}" for i in range(DEPTH)):
        shapes |= {f"{block}.{norm}.{kind}": (W,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * W, W), f"{block}.attn.in_proj_bias": (3 * W,)}
        shapes |= {f"{block}.attn.out_proj.weight": (W, W), f"{block}.attn.out_proj.bias": (W,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * W, W), f"{block}.mlp.c_fc.bias": (4 * W,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (W, 4 * W), f"{block}.mlp.c_proj.bias": (W,)}
    rng = np.random.default_rng(0)
    tower = {root + name: (0.2 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    text = {
        "positional_embedding": np.zeros((77, 8), dtype),
        "transformer.resblocks.0.attn.in_proj_weight": np.zeros((24, 8), dtype),
        "logit_scale": np.zeros((), dtype),
    }
    return (text if root else {}) | tower


def hugging_face() -> dict[str, np.ndarray]:
    """The same tower under the names of CLIPModel."""
    parts = {
        "transformer.resblocks": "encoder.layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "c_fc": "fc1",
        "c_proj": "fc2",
        "attn.out_proj": "self_attn.out_proj",
        "conv1": "embeddings.patch_embedding",
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    state = {
        "logit_scale": np.zeros((), np.float32),
        "text_model.embeddings.token_embedding.weight": np.zeros((9, 8), np.float32),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    for name, value in openai("").items():
        for old, new in parts.items():
            name = name.replace(old, new)
        if name == "proj":
            state["visual_projection.weight"] = value.T
        elif "in_proj_" in name:
            stem, kind = name.split(".attn.in_proj_")
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                state[f"vision_model.{stem}.self_attn.{letter}_proj.{kind}"] = part
        else:
            state[f"vision_model.{name}"] = value
    return state


def loaded(tmp_path, state, spec=SPEC, **options):
    """A network with the tensors of a file."""
    paddle.seed(0)
    model = recognizer.build(spec, None)
    weights.write(tmp_path / "tower.safetensors", state)
    report = weights.load(model, tmp_path / "tower.safetensors", head="ignored", **options)
    return model, report


def tensors(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("root", ["visual.", "model.visual.", ""])
def test_openais_names_fill_the_whole_network(tmp_path, root):
    model, report = loaded(tmp_path, openai(root))
    given, own = openai(root), tensors(model)
    assert report.unused == report.reinitialised == [] and len(report.loaded) == len(own)
    block = f"{root}transformer.resblocks.1"
    assert np.array_equal(own["backbone.cls_token"][0, 0], given[f"{root}class_embedding"])
    assert np.array_equal(own["backbone.pos_embed"][0], given[f"{root}positional_embedding"])
    assert np.array_equal(own["backbone.proj"], given[f"{root}proj"])
    assert np.array_equal(own["backbone.blocks.1.attn.qkv.weight"], given[f"{block}.attn.in_proj_weight"].T)
    assert np.array_equal(own["backbone.blocks.1.attn.proj.weight"], given[f"{block}.attn.out_proj.weight"].T)
    assert np.array_equal(own["backbone.blocks.1.mlp.fc2.weight"], given[f"{block}.mlp.c_proj.weight"].T)
    assert np.array_equal(own["neck.fc.weight"], np.eye(SIZE)) and not own["neck.fc.bias"].any()


def test_hugging_faces_names_give_the_same_network(tmp_path):
    expected = tensors(loaded(tmp_path, openai())[0])
    model, report = loaded(tmp_path, hugging_face())
    assert report.unused == []
    for name, value in tensors(model).items():
        assert np.array_equal(value, expected[name]), name


def test_half_precision_is_widened(tmp_path):
    own = tensors(loaded(tmp_path, openai(dtype="float16"))[0])
    assert own["backbone.proj"].dtype == np.float32
    assert np.array_equal(own["backbone.proj"], openai(dtype="float16")["visual.proj"].astype(np.float32))


def test_bfloat16_in_safetensors_is_widened(tmp_path):
    tensors = {
        "a": ("BF16", [2, 1], np.array([1.5, -2], "<f4").view("<u4") >> 16, "<u2"),
        "b": ("F16", [1], np.array([0.5]), "<f2"),
        "c": ("I64", [], np.array(-7), "<i8"),
        "d": ("BOOL", [2], np.array([True, False]), "|b1"),
    }
    header, body = {}, b""
    for name, (kind, shape, values, dtype) in tensors.items():
        data = values.astype(dtype).tobytes()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    state = weights.read(tmp_path / "t.safetensors")
    assert state["a"].dtype == np.float32 and state["a"].tolist() == [[1.5], [-2]]
    assert state["b"].dtype == np.float16 and state["b"].tolist() == [0.5]
    assert state["c"].dtype == np.int64 and state["c"] == -7 and state["d"].tolist() == [True, False]


def test_a_tower_without_projection_gets_the_identity(tmp_path):
    state = {name: value for name, value in openai().items() if name != "visual.proj"}
    model, _ = loaded(tmp_path, state, replace(SPEC, embedding_size=W))
    assert np.array_equal(model.backbone.proj.numpy(), np.eye(W))
    with pytest.raises(WeightsError, match=r"proj is missing(.|\n)*Model.embedding_size=24"):
        loaded(tmp_path, state)


def test_a_batchnorm_neck_passes_the_features_on(tmp_path):
    linear, _ = loaded(tmp_path, openai())
    bn, report = loaded(tmp_path, openai(), replace(SPEC, neck="bn"))
    assert report.unused == []
    images = paddle.to_tensor(np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype("float32"))
    linear.eval()
    bn.eval()
    assert np.allclose(linear(images).numpy(), bn(images).numpy(), rtol=1e-4, atol=1e-6)
    assert np.allclose(linear(images).numpy(), linear.backbone(images).numpy(), atol=1e-6)


def test_positions_of_another_size_are_resampled(tmp_path):
    model, _ = loaded(tmp_path, openai(), replace(SPEC, input_size=48))
    positions = model.backbone.pos_embed.numpy()
    assert positions.shape == (1, 37, W)
    assert np.array_equal(positions[0, 0], openai()["visual.positional_embedding"][0])


def test_what_is_ignored_and_another_pooling_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        loaded(tmp_path, openai())
        loaded(tmp_path, hugging_face())
    assert "and 3 tensors besides the tower (text, logit scale) are ignored" in caplog.text
    assert "and 2 tensors besides the tower" in caplog.text and "Model.pooling" not in caplog.text
    loaded(tmp_path, openai(), replace(SPEC, pooling="mean"))
    assert "trained with Model.pooling=cls; it is mean here" in caplog.text


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"depth": 1}, r"visual.transformer.resblocks.1.ln_1.weight \[24\] has no place in the network"),
        ({"depth": 3}, r"blocks.2.norm1.weight is missing"),
        ({"width": 48}, r"visual.class_embedding has shape \[1, 1, 24\], the network has \[1, 1, 48\]"),
        ({"patch_size": 16}, r"visual.conv1.weight has shape \[24, 3, 8, 8\], the network has \[24, 3, 16, 16\]"),
        ({"embedding_size": 8}, r"visual.proj has shape \[24, 16\], the network has \[24, 8\]"),
    ],
)
def test_a_tower_of_another_size_lists_what_differs_and_the_keys_to_set(tmp_path, changes, listed):
    keys = "Model.patch_size=8, Model.width=24, Model.depth=2, Model.embedding_size=16"
    with pytest.raises(WeightsError, match=f"{listed}(.|\n)*{keys}") as caught:
        loaded(tmp_path, openai(), replace(SPEC, **changes))
    assert caught.value.code == "weights-mismatch" and caught.value.where.endswith("tower.safetensors")


def test_parts_that_the_network_does_not_compute_are_listed(tmp_path):
    state = openai() | {"visual.transformer.resblocks.0.ls_1.gamma": np.ones(W, np.float32)}
    with pytest.raises(WeightsError, match=r"1 tensors (.|\n)*resblocks.0.ls_1.gamma \[24\] has no place"):
        loaded(tmp_path, state)


def test_incomplete_attention_is_listed(tmp_path):
    state = hugging_face()
    del state["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(WeightsError, match=r"self_attn.q_proj.bias \[24\] has no place") as caught:
        loaded(tmp_path, state)
    assert "blocks.0.attn.qkv.bias is missing" in caught.value.what


def test_a_tower_of_unicoms_first_release_is_named(tmp_path):
    state = {
        "pos_embed": np.zeros((1, 16, W), np.float32),
        "patch_embed.proj.weight": np.zeros((W, 3, PATCH, PATCH), np.float32),
        "feature.0.weight": np.zeros((W, 16 * W), np.float32),
    }
    with pytest.raises(WeightsError, match="UNICOM's first release") as caught:
        loaded(tmp_path, state)
    assert caught.value.code == "weights-architecture"


@pytest.mark.parametrize("value", ["text", 3, np.zeros((), np.float32), np.zeros((2, 0, 3), np.int64)])
@pytest.mark.parametrize("name", ["class_embedding", "positional_embedding", "conv1.weight", "proj"])
def test_values_that_are_no_such_tensors_are_listed(value, name):
    state = openai() | {f"visual.{name}": value}
    with pytest.raises(WeightsError, match=rf"visual\.{name} "):
        recognizer.build(SPEC, None).backbone.adapt_state(state, "backbone.")


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("backbone.cls_token", "backbone.proj"),
        ("class_embedding",),
        ("visual.class_embedding", "conv1.weight"),
        ("old_class_embedding", "old_conv1.weight"),
    ],
)
def test_a_file_without_such_a_tower_is_left_alone(names):
    assert read_tower({name: np.zeros(3) for name in names}) is None


def test_normalization_is_a_key():
    for words, mean in (([], 0.485), (["imagenet"], 0.485), (["clip"], 0.48145466)):
        config, _ = load("PP-ShiTuV2_rec_CLIP_vit_base", [("Train.normalization", word) for word in words])
        assert preprocess_of(config).mean[0] == mean
    config, _ = load("PP-ShiTuV2_rec", [("Model.backbone", "EfficientNet_Lite0")])
    assert preprocess_of(config).mean[0] == 127 / 255
