"""Weight files from others: what would run code, take the memory or lie is refused; what Paddle writes is read."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from support import hostile, oracles
from support.runs import QUICK, run_main

paddle = pytest.importorskip("paddle")

from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio import atomic_folder
from paddlex_feat.models import weights

GIB = 2**20  # KiB, the unit of VmHWM


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_would_run_code_is_refused_with_its_name(tmp_path, protocol):
    marker = tmp_path / "was_here"
    for pattern, state in hostile.touching(marker).items():
        data = pickle.dumps(state, protocol)
        for suffix in ("pdparams", "pdopt", "pdstates", "pdema"):
            (tmp_path / f"evil.{suffix}").write_bytes(data)
            with pytest.raises(WeightsError, match=f"asks for ({pattern})") as caught:
                weights.read(tmp_path / f"evil.{suffix}")
            assert f"evil.{suffix}" in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", hostile.numpys())
def test_what_numpys_pickles_can_be_bent_to_is_refused(tmp_path, name):
    data, pattern = hostile.numpys()[name]
    (tmp_path / "evil.pdparams").write_bytes(data)
    with pytest.raises(WeightsError, match=pattern):
        weights.read(tmp_path / "evil.pdparams")


def state_of(folder: Path) -> dict[str, np.ndarray]:
    """What tests/support/oracles/paddle_save.py saves."""
    return dict(np.load(folder / "expected.npz"))


def require_the_saved(folder: Path) -> None:
    expected = state_of(folder)
    for protocol in (2, 3, 4):
        found = weights.read(folder / f"{protocol}.pdparams")
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and np.array_equal(found[name], value), (protocol, name)
        nested = weights.read(folder / f"{protocol}.pdopt")
        assert np.array_equal(nested["LR"]["weights"][0], expected["weight"])
        assert nested["epoch"] == 3 and nested["rate"] == 0.1 and nested["name"] == "x" and nested["half"] == 0.5


def test_what_this_paddle_saves_is_read_in_every_protocol(tmp_path):
    subprocess.run([sys.executable, oracles.HERE / "paddle_save.py", tmp_path], check=True, capture_output=True)
    require_the_saved(tmp_path)


@pytest.mark.slow
def test_what_paddle_2_6_saves_is_read_in_every_protocol(tmp_path):
    oracles.ask("paddle26", "paddle_save.py", tmp_path)
    require_the_saved(tmp_path)


@pytest.fixture(scope="module")
def commands(run_folder, small_faces, tmp_path_factory):
    """Every way in which a mode takes a weight file: its name -> (the file that is exchanged, the settings)."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(run_folder, folder / "run")
    latest = folder / "run/latest/latest.pdparams"
    shutil.copy(latest, latest.with_suffix(".pdema"))
    data = f"Global.dataset_dir={small_faces}"
    resumed = ("Global.mode=train", data, *QUICK, f"Train.resume_path={latest}", "Train.epochs_iters=4")
    commands = {
        f"resume {s}": (latest.with_suffix(f".{s}"), resumed) for s in ("pdparams", "pdopt", "pdstates", "pdema")
    }
    best = folder / "run/best_model/best_model.pdparams"
    return {
        **commands,
        "pretrained": (best, ("Global.mode=train", data, *QUICK, f"Train.pretrain_weight_path={best}")),
        "evaluate": (best, ("Global.mode=evaluate", data, f"Evaluate.weight_path={best}")),
        "export": (best, ("Global.mode=export", f"Export.weight_path={best}")),
    }


WAYS = [*(f"resume {s}" for s in ("pdparams", "pdopt", "pdstates", "pdema")), "pretrained", "evaluate", "export"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_mode_refuses_a_weight_file_that_would_run_code(commands, way, tmp_path):
    file, settings = commands[way]
    whole, marker = file.read_bytes(), tmp_path / "was_here"
    state = {**(weights.read(file)), "w": hostile.touching(marker)["posix.system"]["w"]}
    try:
        file.write_bytes(pickle.dumps(state, 4))
        output = ("-o", f"Global.output={tmp_path / 'out'}", "-o", "Global.device=cpu")
        done = run_main("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)), *output)
    finally:
        file.write_bytes(whole)
    assert done.returncode == 1 and not marker.exists()
    assert "asks for posix.system" in done.stderr and f"where: {file}" in done.stderr and "to do:" in done.stderr
    mode = settings[0].partition("=")[2]
    result = json.loads((tmp_path / f"out/{mode}_result.json").read_text())
    assert result["done_flag"] is False and "posix.system" in result["err_msg"]


def test_a_checkpoint_is_read_whole_while_a_run_exchanges_it(tmp_path):
    """The reader renames nothing, so the run never fails, and the reader always finds a file."""
    path, stop = tmp_path / "latest/latest.pdparams", threading.Event()
    faults: list[Exception] = []

    def exchange() -> None:
        number = 0
        try:
            while not stop.is_set():
                with atomic_folder.atomic_folder(path.parent) as folder:
                    weights.write(folder / path.name, {"a": np.full(1000, number), "b": np.full(1000, number)})
                number += 1
        except Exception as error:  # noqa: BLE001 - the test asks whether there was any
            faults.append(error)

    run = threading.Thread(target=exchange)
    run.start()
    try:
        while not path.exists():
            pass
        seen = set()
        for _ in range(300):
            state = weights.read(path)
            assert len({*state["a"], *state["b"]}) == 1
            seen.add(int(state["a"][0]))
    finally:
        stop.set()
        run.join()
    assert not faults and len(seen) > 1 and [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_safetensors_come_back_as_they_were_written_and_their_bytes_repeat(tmp_path):
    state = OrderedDict(z=np.arange(6, dtype="f4").reshape(2, 3).T, a=np.zeros((), "f4"), h=np.ones((0, 3), "f2"))
    weights.write(tmp_path / "a.safetensors", state)
    weights.write(tmp_path / "b.safetensors", dict(reversed(state.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = weights.read(tmp_path / "a.safetensors")
    for name, value in state.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value)
    with pytest.raises(WeightsError, match="neither"):
        weights.write(tmp_path / "c.safetensors", {"epoch": 3, "w": np.zeros(2)})
    assert not (tmp_path / "c.safetensors").exists()


def tensors(header: dict | bytes, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        tensors(b"[" * 10**5),
        tensors({"a": entry(0, 16), "b": entry(0, 16)}),
        tensors({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
        tensors({"a": entry(0, 32)}),
        tensors({"a": entry(16, 0)}),
        tensors({"a": entry(0, 16, "F64")}),
        tensors({"a": entry(0, 16, "O")}),
        tensors({"a": entry(0, 16, "F8_E4M3", (16,))}),
        tensors({"a": entry(0, 16, shape=(2**40, 2**40))}),
        tensors({"a": entry(0, 16, shape=(2**62, 4))}),
        tensors({"a": entry(0, 16)}, bytes(99)),
        tensors(b'{"a": 3}'),
        tensors(b"not JSON"),
        pickle.dumps({"w": np.zeros(3, "f4")}),
    ],
    ids=range(17),
)
def test_hostile_safetensors_are_weights_errors(tmp_path, data):
    (tmp_path / "evil.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"evil\.safetensors"):
        weights.read(tmp_path / "evil.safetensors")
