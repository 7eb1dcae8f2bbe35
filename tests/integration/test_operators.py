"""Graphs that would do more than compute features."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.runs import run_main

pytest.importorskip("paddle")

import paddle

import paddlex_feat
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.engines import EngineOptions
from paddlex_feat.inference.engines.create import create_engine
from paddlex_feat.inference.engines.graph_check import check_graph_operators
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from paddlex_feat.inference.export import convert

NAME = "PP-ShiTuV2_rec"
RAW = paddle.base.core.VarDesc.VarType.RAW
X = np.zeros((1, 3, 8, 8), np.float32)


def graph(folder: Path, victim: Path | None) -> Path:
    """A graph of the older format; with `victim`, it writes features over that file whenever it runs."""
    folder.mkdir()
    paddle.enable_static()
    try:
        with paddle.pir_utils.OldIrGuard():
            main, startup = paddle.static.Program(), paddle.static.Program()
            with paddle.static.program_guard(main, startup):
                x = paddle.static.data("x", [-1, 3, 8, 8], "float32")
                out = paddle.static.nn.fc(paddle.flatten(x, 1), 4)
            executor = paddle.static.Executor(paddle.CPUPlace())
            executor.run(startup)
            if victim:
                block = main.global_block()
                block.append_op(
                    type="save_combine",
                    inputs={"X": [out.name]},
                    outputs={"Y": [block.create_var(name="y", type=RAW, persistable=True)]},
                    attrs={"file_path": str(victim), "overwrite": True},
                )
            clean = {"program": main, "skip_prune_program": True}
            paddle.static.save_inference_model(str(folder / "inference"), [x], [out], executor, **clean)
    finally:
        paddle.disable_static()
    return folder / "inference.pdmodel"


def test_a_graph_that_writes_a_file_is_refused_and_never_runs(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("the user's")
    evil = graph(tmp_path / "evil", victim)
    assert b"save_combine" in evil.read_bytes()
    with pytest.raises(WeightsError, match="save_combine"):
        create_engine(evil.parent).run(X)
    assert victim.read_text() == "the user's"
    sound = graph(tmp_path / "sound", None)
    assert create_engine(sound.parent).run(X).shape == (1, 4)


def test_a_graph_that_the_user_trusts_runs_whatever_it_does(tmp_path, caplog):
    victim = tmp_path / "victim"
    victim.write_text("the user's")
    trusted = EngineOptions(device="cpu", trust_graph=True)
    evil = graph(tmp_path / "evil", victim)
    assert create_engine(evil.parent, trusted).run(X).shape == (1, 4)
    assert victim.read_bytes() != b"the user's" and "trust_graph" in caplog.text
    parameters = evil.with_suffix(".pdiparams")
    parameters.write_bytes(parameters.read_bytes()[:-1])
    with pytest.raises(WeightsError) as caught:  # trust is about operators, not about damage
        create_engine(evil.parent, trusted)
    assert caught.value.code == "params-incomplete"


def test_trust_graph_of_create_model_and_of_the_configuration(tmp_path):
    evil = graph(tmp_path / "evil", tmp_path / "victim")
    content = {"Global": {"model_name": NAME}, "PreProcess": {"transform_ops": Preprocess(8).to_ops()}}
    (evil.parent / "inference.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(WeightsError) as caught:
        paddlex_feat.create_model(NAME, evil.parent, "cpu")
    assert caught.value.code == "graph-operators" and "Predict.trust_graph=True" in caught.value.fix
    model = pickle.loads(pickle.dumps(paddlex_feat.create_model(NAME, evil.parent, "cpu", trust_graph=True)))
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(next(model.predict(image)).feature) == 4
    Image.fromarray(image).save(tmp_path / "a.png")
    words = [f"Global.output={tmp_path / 'out'}", f"Predict.model_dir={evil.parent}", "Global.device=cpu"]
    words += ["Global.mode=predict", f"Predict.input={tmp_path / 'a.png'}", "Predict.trust_graph=True"]
    done = run_main("-c", NAME, *(word for key in words for word in ("-o", key)))
    assert done.returncode == 0, done.stderr


def test_nor_does_the_converter_run_it(tmp_path):
    pytest.importorskip("paddle2onnx")
    victim = tmp_path / "victim"
    victim.write_text("the user's")
    evil = graph(tmp_path / "evil", victim)
    with pytest.raises(WeightsError, match="save_combine"):
        convert.to_onnx(evil, evil.with_suffix(".pdiparams"), tmp_path / "a.onnx")
    assert victim.read_text() == "the user's"
    file, _ = exported(tmp_path / "cut")
    parameters = file.with_suffix(".pdiparams")
    parameters.write_bytes(parameters.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="missing"):
        convert.to_onnx(file, parameters, tmp_path / "a.onnx")


def exported(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A graph of the current format, and what it holds."""
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.ReLU(), paddle.nn.Flatten())
    spec = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]
    paddle.jit.save(layer, str(tmp_path / "inference"), input_spec=spec)
    file = tmp_path / "inference.json"
    check_graph_operators(file)
    return file, json.loads(file.read_text())


@pytest.mark.parametrize(
    "name",
    ["1.save_combine", "1.load", "1.py_func", "1.print", "1.recv_v2", "1.conv2d_", "1.unheard_of", "2.while", "2.if",
     "3.custom", "pd_op.save", "save", "0.t_f32 ", "1.conv2d\n", "", None, ["1.conv2d"]],
)  # fmt: skip
def test_every_other_operator_of_the_current_format_is_refused(tmp_path, name):
    file, content = exported(tmp_path)
    operators = content["program"]["regions"][0]["blocks"][0]["ops"]
    next(o for o in operators if o["#"] == "1.relu")["#"] = name
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="operators"):
        check_graph_operators(file)


def test_nothing_hides_in_a_block_within_or_behind_a_key_that_comes_twice(tmp_path):
    file, content = exported(tmp_path)
    sound = file.read_text()
    inner = {"regions": [{"#": "region_1", "blocks": [{"#": "block_1", "args": [], "ops": [{"#": "1.save"}]}]}]}
    content["program"]["regions"][0]["blocks"][0]["ops"][-1].update(inner)
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"1\.save"):
        check_graph_operators(file)
    for twice in ('"#": "1.save", "#": "1.relu"', '"#": "1.relu", "#": "1.save"'):
        file.write_text(sound.replace('"#":"1.relu"', '"#": "1.relu"').replace('"#": "1.relu"', twice))
        assert "1.save" in file.read_text()
        with pytest.raises(WeightsError, match=r"1\.save"):
            check_graph_operators(file)


@pytest.mark.parametrize("data", [b"", b"[" * 10**6, b"\xff\xfe{\x00}\x00", b"{", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_a_weights_error(tmp_path, data):
    for name in ("inference.json", "inference.pdmodel"):
        (tmp_path / name).write_bytes(data)
        if name.endswith("json") or data not in (b"",):  # an empty protobuf is a program without operators
            with pytest.raises(WeightsError, match="cannot be read"):
                check_graph_operators(tmp_path / name)


def test_the_engine_of_a_damaged_directory_never_starts(tmp_path):
    file, _ = exported(tmp_path / "a")
    shutil.copytree(file.parent, tmp_path / "b")
    (tmp_path / "b" / file.name).write_bytes(file.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="cannot be read"):
        create_engine(tmp_path / "b")


def test_parameters_that_are_cut_off_are_refused(tmp_path):
    """Paddle itself would take whatever was in memory for the numbers that the last tensor lacks."""
    file, _ = exported(tmp_path / "a")
    create_engine(file.parent)
    parameters = file.with_suffix(".pdiparams")
    whole = parameters.read_bytes()
    for kept in (*range(1, len(whole), 7), len(whole) - 1):
        parameters.write_bytes(whole[:kept])
        with contextlib.suppress(WeightsError):  # where a tensor ends Paddle says what is missing
            check_params_complete(parameters)
            with pytest.raises(WeightsError, match="Paddle cannot load"):
                create_engine(file.parent)
    parameters.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="1 bytes of a tensor are missing"):
        create_engine(file.parent)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 4,
        struct.pack("<IQ", 0, 2**63),
        struct.pack("<IQIi", 0, 0, 0, -1),
        struct.pack("<IQIi", 0, 0, 0, 2**31 - 1),
        struct.pack("<IQIi", 0, 0, 0, 3) + b"\x08\x63\x10",
        struct.pack("<IQIi", 0, 0, 0, 3) + b"\x08\x63\x00",
        struct.pack("<IQIi", 0, 0, 0, 12) + b"\x10" + b"\xff" * 11,
        struct.pack("<IQIi", 0, 0, 0, 13) + b"\x08\x05\x10" + b"\xff" * 8 + b"\x7f\x01",
        struct.pack("<IQIi", 0, 0, 0, 22) + b"\x08\x05" + (b"\x10" + b"\xff" * 8 + b"\x7f") * 2,
        struct.pack("<IQQIi", 0, 1, 2**64 - 8, 0, 4) + b"\x08\x05\x10\x04",
    ],
)
def test_what_are_no_parameters_is_a_weights_error(tmp_path, data):
    (tmp_path / "p.pdiparams").write_bytes(data)
    with pytest.raises(WeightsError, match="cannot be read"):
        check_params_complete(tmp_path / "p.pdiparams")


def test_sides_in_one_piece_are_understood(tmp_path):
    head = struct.pack("<IQQQIi", 0, 1, 8, 7, 0, 6) + b"\x08\x05\x12\x02\x02\x03"
    (tmp_path / "p.pdiparams").write_bytes((head + bytes(24)) * 2)
    check_params_complete(tmp_path / "p.pdiparams")
    (tmp_path / "p.pdiparams").write_bytes((head + bytes(24)) * 2 + b"\0")
    with pytest.raises(WeightsError):
        check_params_complete(tmp_path / "p.pdiparams")


NETWORKS = (
    "densenet121 googlenet inception_v3 mobilenet_v1 mobilenet_v2 mobilenet_v3_small resnet18 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_1"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS.split())
def test_graphs_of_other_networks_pass(tmp_path, name):
    network = getattr(paddle.vision.models, name)()
    network.eval()
    side = 299 if name == "inception_v3" else 224
    spec = [paddle.static.InputSpec([None, 3, side, side], "float32")]
    paddle.jit.save(network, str(tmp_path / "inference"), input_spec=spec)
    check_graph_operators(tmp_path / "inference.json")
