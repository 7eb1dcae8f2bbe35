"""Engines, precisions, the choice between them, and what PaddleX's settings mean."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import yaml
from support import oracles
from support.networks import SPECS, TINY_CLIP
from support.runs import ROOT, run_here, run_main

paddle = pytest.importorskip("paddle")
for package in ("onnxruntime", "openvino", "paddle2onnx"):
    pytest.importorskip(package)

import paddlex_feat
from paddlex_feat.config.registry import Registry
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, DependencyError, DeviceError, OutputError, WeightsError
from paddlex_feat.inference import engines
from paddlex_feat.inference.engines import CPU_MICRO_BATCH, ENGINES, Engine, EngineOptions, EngineSpec, create
from paddlex_feat.inference.engines.onnx_engine import OnnxEngine, _provider
from paddlex_feat.inference.engines.options import resolve_engine_options
from paddlex_feat.inference.export import convert
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.models import recognizer
from paddlex_feat.runtime import cgroups, cpu, paddle_import

NAME = "PP-ShiTuV2_rec"
OTHERS = ("onnx", "openvino")
SMALL = {"PP-ShiTuV2_rec": (SPECS[NAME], 32), "tiny CLIP": (TINY_CLIP, 32)}


def export(spec, size: int, folder: Path, **options) -> None:
    paddle.seed(1)
    network = recognizer.build(spec, 2)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    Exporter(network, NAME, Preprocess(size), **options).write(state, folder)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Conversions go to a cache of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["PADDLE_PDX_CACHE_HOME"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small network in all three forms."""
    folder = tmp_path_factory.mktemp("exported") / "inference"
    export(SPECS[NAME], 32, folder)
    convert.write_forms(folder, OTHERS)
    return folder


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory) -> Path:
    """The same in Paddle's form alone."""
    plain = tmp_path_factory.mktemp("plain")
    for name in ("inference.json", "inference.pdiparams", "inference.yml"):
        shutil.copy(folder / name, plain)
    return plain


def create_engine(folder: Path, name: str = "paddle", device: str = "cpu", precision: str = "fp32") -> Engine:
    return create.create_engine(folder, EngineOptions(name, precision, device=device))


def pictures(size: int, faces: Path, count: int = 10) -> np.ndarray:
    resize = Preprocess(size).resize
    return np.stack([resize(read_rgb(str(faces / f"images/s{p:02d}/01.pgm"))) for p in range(1, count + 1)])


@pytest.mark.parametrize("network", SMALL)
def test_all_engines_give_the_same_features(network, faces, tmp_path):
    spec, size = SMALL[network]
    export(spec, size, tmp_path)
    images = pictures(size, faces)
    expected = FeatureExtractor(tmp_path)(images)
    for name in OTHERS:  # of the Paddle graph, converted
        extract = FeatureExtractor(tmp_path, engine=name)
        assert (extract.engine.name, extract.engine.precision) == (name, "fp32")
        assert np.abs(extract(images) - expected).max() <= 1e-4
    convert.write_forms(tmp_path, OTHERS)
    for name in OTHERS:
        assert np.abs(FeatureExtractor(tmp_path, engine=name)(images) - expected).max() <= 1e-4


EXPORT = """
import sys; sys.path[:0] = ["tests", "tests/integration"]
from pathlib import Path
from paddlex_feat.runtime.paddle_import import prepare_paddle
prepare_paddle()
import test_engines
from support import networks
name, folder = sys.argv[1:]
test_engines.export(networks.SPECS[name], 224, Path(folder))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=[pytest.mark.nightly] if "CLIP" in name else []) for name in SPECS],
)
def test_all_engines_give_the_same_features_at_full_size(network, faces, tmp_path):
    """One form and one engine at a time: the largest network has 1.1 GB of weights."""
    subprocess.run([sys.executable, "-c", EXPORT, network, tmp_path], cwd=ROOT, check=True)
    np.save(tmp_path / "images.npy", pictures(224, faces, 2))
    code = "import sys, numpy as np; from pathlib import Path; from paddlex_feat.inference import extractor\n"
    code += "from paddlex_feat.inference.export import convert\n"
    code += "name, folder = sys.argv[1], Path(sys.argv[2]); convert.write_forms(folder, [name])\n"
    code += "f = extractor.FeatureExtractor(folder, engine=name)(np.load(folder / 'images.npy'))\n"
    code += "np.save(folder / f'{name}.npy', f)"
    try:
        for name in ("paddle", *OTHERS):
            subprocess.run([sys.executable, "-c", code, name, tmp_path], cwd=ROOT, check=True)
            for form in ("onnx", "bin"):
                (tmp_path / f"inference.{form}").unlink(missing_ok=True)
            (tmp_path / "inference.xml").unlink(missing_ok=True)
        expected = np.load(tmp_path / "paddle.npy")
        for name in OTHERS:
            assert np.abs(np.load(tmp_path / f"{name}.npy") - expected).max() <= 1e-4
    finally:
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("name", "precision"), [("paddle", "bf16"), ("openvino", "bf16"), ("openvino", "fp16")])
def test_lower_precisions_keep_the_features_of_photographs(name, precision, folder, faces):
    images = pictures(32, faces, 20)
    try:
        extract = FeatureExtractor(folder, engine=name, precision=precision)
    except DeviceError:
        pytest.skip("this processor lacks it")
    expected, features = FeatureExtractor(folder)(images), extract(images)
    assert extract.engine.precision == precision
    assert (features * expected).sum(axis=1).min() >= 0.999
    assert np.abs(features - expected).max() > 1e-6  # it is another precision indeed


@pytest.mark.parametrize("name", ["paddle", *OTHERS])
def test_features_do_not_depend_on_the_batch(name, folder, faces):
    extract = FeatureExtractor(folder, engine=name)
    images = pictures(32, faces, 2 * CPU_MICRO_BATCH + 3)
    whole = extract(images)
    for size in (1, 5, CPU_MICRO_BATCH):
        parts = [extract(images[i : i + size]) for i in range(0, len(images), size)]
        assert np.abs(np.concatenate(parts) - whole).max() <= 1e-6


@pytest.mark.parametrize("name", ["paddle", *OTHERS])
def test_results_are_the_callers_own(name, folder):
    engine = create_engine(folder, name, "cpu")
    a, b = np.zeros((1, 3, 32, 32), np.float32), np.ones((1, 3, 32, 32), np.float32)
    first = engine.run(a)
    kept = first.copy()
    engine.run(b)
    assert (first == kept).all()


@pytest.mark.parametrize("name", ["paddle", *OTHERS])
def test_several_threads_may_share_an_engine(name, folder):
    engine = create_engine(folder, name)
    images = np.random.default_rng(0).standard_normal((8, 1, 3, 32, 32)).astype(np.float32)
    expected = [engine.run(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.run, [x for _ in range(20) for x in images]))
    assert max(np.abs(f - expected[i % 8]).max() for i, f in enumerate(found)) <= 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_onnx_and_openvino_run_where_paddle_is_not_installed(name, folder, faces, tmp_path):
    deployed = tmp_path / "deployed"
    shutil.copytree(folder, deployed, ignore=shutil.ignore_patterns("*.json", "*.pdiparams"))
    code = f"""
import sys; sys.modules["paddle"] = None
import paddlex_feat
model = paddlex_feat.create_model("{NAME}", r"{deployed}", engine="{name}")
print(next(model.predict(r"{faces / "images/s01/01.pgm"}")).json["res"]["feature"])
auto = paddlex_feat.create_model("{NAME}", r"{deployed}", engine="auto")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = FeatureExtractor(folder)(pictures(32, faces, 1))[0]
    assert np.abs(np.array(json.loads(done.stdout)) - expected).max() <= 1e-4


# Conversion


def test_a_paddle_graph_is_converted_once_and_other_weights_anew(plain, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level("INFO")
    for _ in range(2):
        for name in OTHERS:
            create_engine(plain, name, "cpu")
    assert caplog.text.count("was converted to ONNX") == 1
    assert capfd.readouterr().out == ""
    assert len(list((tmp_path / "cache/converted").rglob("*.onnx"))) == 1
    assert not list((tmp_path / "cache/converted").rglob(".*"))
    other = tmp_path / "other"
    shutil.copytree(plain, other)
    data = bytearray((other / "inference.pdiparams").read_bytes())
    data[-5:] = b"\0" * 5
    (other / "inference.pdiparams").write_bytes(data)
    create_engine(other, "onnx", "cpu")
    assert len(list((tmp_path / "cache/converted").rglob("*.onnx"))) == 2


def test_a_graph_that_cannot_be_converted_is_an_error_and_leaves_nothing(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "broken"
    shutil.copytree(plain, broken)
    (broken / "inference.json").write_text("{}")
    with pytest.raises(WeightsError, match="paddle2onnx cannot convert"):
        create_engine(broken, "onnx", "cpu")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_cache_that_cannot_be_written_is_named(plain, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(OutputError) as caught:
        create_engine(plain, "onnx", "cpu")
    assert "PADDLE_PDX_CACHE_HOME" in str(caught.value)


@pytest.mark.parametrize(("name", "file"), [("onnx", "inference.onnx"), ("openvino", "inference.xml")])
def test_a_damaged_graph_is_an_error_that_names_it(name, file, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / file).write_bytes(b"no graph")
    with pytest.raises(WeightsError, match="cannot load the graph") as caught:
        create_engine(tmp_path / "damaged", name, "cpu")
    assert file in caught.value.where


@pytest.mark.parametrize("name", ["paddle", *OTHERS])
def test_a_directory_without_a_graph_is_an_error(name, tmp_path):
    with pytest.raises(WeightsError) as caught:
        create_engine(tmp_path, name, "cpu")
    assert caught.value.code == "graph-missing"


@pytest.mark.nightly
@pytest.mark.slow
def test_a_directory_of_paddle_2_6_runs_on_every_engine(faces, tmp_path):
    preprocess, images = Preprocess(224), pictures(224, faces, 3)
    np.save(tmp_path / "images.npy", preprocess.normalise(images))
    oracles.ask("paddle26", "paddle26_export.py", tmp_path)
    content = {
        "Global": {"model_name": NAME},
        "PreProcess": {"transform_ops": preprocess.to_ops()},
        "PostProcess": {"NormalizeFeatures": None},
    }
    (tmp_path / "inference.yml").write_text(yaml.safe_dump(content))
    assert (tmp_path / "inference.pdmodel").is_file() and not (tmp_path / "inference.json").exists()
    expected = unit_rows(np.load(tmp_path / "features.npy"))
    for name in ("paddle", *OTHERS):
        assert np.abs(FeatureExtractor(tmp_path, engine=name)(images) - expected).max() <= 1e-5, name


# Names, precisions, devices


def test_what_does_not_exist_lists_what_does(folder):
    with pytest.raises(ConfigError, match="Did you mean openvino") as caught:
        create_engine(folder, "openvin")
    assert caught.value.code == "unknown-engine" and "paddle, onnx, openvino, auto" in caught.value.fix
    for name, precision, possible in (
        ("onnx", "bf16", "fp32"),
        ("paddle", "int8", "fp32, bf16, fp16"),
        ("auto", "tf32", "fp32, bf16, fp16"),
    ):
        with pytest.raises(ConfigError, match=precision) as caught:
            create_engine(folder, name, precision=precision)
        assert caught.value.fix.endswith(f"{possible}.")
    with pytest.raises(ConfigError) as caught:
        create_engine(folder, "paddle", "cpu", precision="fp16")
    assert caught.value.code == "fp16-on-cpu"


def test_a_precision_that_the_processor_lacks_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(paddle.base.core, "supports_bfloat16_fast_performance", lambda: False)
    with pytest.raises(DeviceError) as caught:
        create_engine(folder, "paddle", "cpu", precision="bf16")
    assert caught.value.code == "precision-unsupported"
    import openvino

    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    with pytest.raises(DeviceError, match="bf16 on this processor") as caught:
        create_engine(folder, "openvino", "cpu", precision="bf16")
    assert "fp32" in caught.value.fix


def test_devices_of_the_engines(folder):
    with pytest.raises(DeviceError, match="runs on cpu only") as caught:
        create_engine(folder, "openvino", "gpu:0")
    assert caught.value.code == "device-unsupported"
    with pytest.raises(DeviceError, match="is not a device"):
        create_engine(folder, "openvino", "tpu")
    only_cpu, both = ["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _provider("auto", only_cpu) == _provider("cpu", both) == ("CPUExecutionProvider", {})
    assert _provider("auto", both) == (
        "CUDAExecutionProvider",
        {"device_id": 0, "cudnn_conv_algo_search": "HEURISTIC"},
    )
    assert _provider("gpu:1", both)[1]["device_id"] == 1
    with pytest.raises(DeviceError) as caught:
        _provider("gpu:0", only_cpu)
    assert caught.value.code == "device-unsupported"


def test_a_missing_package_names_the_extra(folder, monkeypatch):
    for package, name in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DependencyError) as caught:
            create_engine(folder, name, "cpu")
        assert f"paddlex_feat[{name}]" in caught.value.fix


def test_threads_default_to_physical_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "processors", lambda: None)
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3", "4"]):
        place = tmp_path / f"cpu{number}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert cpu.physical_cores(tmp_path) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4})
    assert cpu.physical_cores(tmp_path) == 2
    assert cpu.physical_cores(tmp_path / "absent") == 3
    monkeypatch.setattr(cpu, "physical_cores", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert (cpu.cpu_threads(3), cpu.cpu_threads(0)) == (3, 5)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cpu.cpu_threads(0) == 7
    replaced: dict[str, str] = {}
    for module in (cpu, paddle_import):
        monkeypatch.setattr(module, "replaced_omp_threads", replaced)
    paddle_import.prepare_paddle(1)  # one model's threads do not apply to the next one
    assert os.environ["OMP_NUM_THREADS"] == "1" and cpu.cpu_threads(0) == 7


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros(8, np.float32), r"float32 of shape \(8,\) for 8 images"),
        (np.zeros((1, 4), np.float32), "returns float32 of shape"),
        (np.zeros((9, 4), np.float32), "returns float32 of shape"),
        (np.zeros((8, 4, 1), np.float32), "returns float32 of shape"),
        (np.zeros((8, 4), np.int64), "returns int64"),
        (np.full((8, 4), "a"), "for 8 images"),
        (RuntimeError("\n---\nError: no such shape\nmore"), r"RuntimeError: Error: no such shape\)"),
    ],
)
def test_a_graph_must_answer_with_a_row_for_each_image(folder, monkeypatch, answer, words):
    extract = FeatureExtractor(folder)

    def run(_: np.ndarray) -> np.ndarray:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(extract.engine, "run", run)
    with pytest.raises(WeightsError, match=words):
        extract(np.zeros((8, 32, 32, 3), np.uint8))


IDLE = """
import os, sys, time
import numpy as np
from pathlib import Path
from paddlex_feat.inference.engines import EngineOptions
from paddlex_feat.inference.engines.create import create_engine
engine = create_engine(Path(sys.argv[1]), EngineOptions(threads=2))
for _ in range(3):
    engine.run(np.zeros((8, 3, 32, 32), np.float32))
began = time.process_time()
time.sleep(0.3)
print(os.environ["KMP_BLOCKTIME"], time.process_time() - began)
"""


@pytest.mark.parametrize(("wish", "set_to", "most"), [(None, "1", 0.05), ("200", "200", 0.3)])
def test_idle_threads_leave_their_cores_to_others(folder, wish, set_to, most):
    """Processor time while nothing runs: Paddle's OpenMP would spin for 200 ms, and does if the user wants it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KMP_", "OMP_"))}
    environment = kept | ({"KMP_BLOCKTIME": wish} if wish else {})
    command = [sys.executable, "-c", IDLE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    value, seconds = done.stdout.split()
    assert value == set_to and float(seconds) <= most


FORKED = """
import os, sys
import numpy as np
from pathlib import Path
from paddlex_feat.inference.engines import EngineOptions
from paddlex_feat.inference.engines.create import create_engine
engine = create_engine(Path(sys.argv[1]), EngineOptions(sys.argv[2], threads=2))
x = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
expected = engine.run(x)
child = os.fork()
if child:
    assert np.array_equal(engine.run(x), expected)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
# Not by os._exit: the objects of the engine, whose threads are not here, are not destroyed at the end.
sys.exit(0 if all(np.abs(engine.run(x) - expected).max() < 1e-5 for _ in range(3)) else 3)
"""


@pytest.mark.parametrize("name", ["paddle", *OTHERS])
def test_a_forked_process_may_use_the_engine_of_its_parent(name, folder):
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(folder), name], cwd=ROOT, start_new_session=True
    ) as process:
        try:
            assert process.wait(timeout=60) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# The registry


def test_each_engine_names_an_extra_that_installs_its_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    provides = {"paddle": "paddlepaddle"}
    for name in ("paddle", *OTHERS):
        spec = ENGINES.get(name)
        extra = setup["options.extras_require"][re.fullmatch(r"paddlex_feat\[(\w+)]", spec.install)[1]]
        for package in (spec.package, *spec.form_packages):
            assert re.search(rf"^{provides.get(package, package)}\b", extra, re.MULTILINE), (name, package)


def test_naming_the_engines_imports_neither_paddle_nor_opencv():
    code = "import sys; from paddlex_feat.inference import ENGINES; print(ENGINES.names(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'openvino'" in done.stdout and not {"paddle", "cv2", "numpy"} & set(done.stdout.split())


PLUGIN = """
'''An engine of another package: ONNX Runtime with one thread, on a graph file of its own.'''
import onnxruntime
from paddlex_feat.inference.engines import EngineSpec
from paddlex_feat.inference.engines.paddle_engine import graph_files
from paddlex_feat.inference.export.convert import to_onnx

class Single:
    name, device, precision, micro_batch = "single", "cpu", "fp32", 0

    def __init__(self, folder, options):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession((folder / "inference.single").read_bytes(), settings)

    def run(self, x):
        return self._session.run(None, {self._session.get_inputs()[0].name: x})[0]

def write(folder):
    to_onnx(*graph_files(folder), folder / "inference.single")

ENGINE = EngineSpec("single", Single, "onnxruntime", "single_engine", aliases=("one",), graph_suffixes=(".single",),
                    run_modes={"single_fp32": "fp32"}, write_form=write, form_packages=("paddle2onnx",))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    """An installed package that adds an engine: one module, one entry."""
    site = tmp_path / "site"
    info = site / "single_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "single_engine.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: single_engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paddlex_feat.engines]\nsingle = single_engine:ENGINE\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(ENGINES, "_entries", dict(ENGINES._entries))
    yield site
    sys.modules.pop("single_engine", None)


def test_an_engine_of_another_package_is_used_like_our_own(plugin, plain, faces, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    convert.require_forms(["paddle", "single"])
    convert.write_forms(folder, ["paddle", "single"])
    assert (folder / "inference.single").is_file() and "inference.single" in convert.inference_file_names()
    images = pictures(32, faces)
    expected = FeatureExtractor(folder)(images)
    assert np.abs(FeatureExtractor(folder, engine="single")(images) - expected).max() <= 1e-4
    for given in (
        {"engine": "one"},
        {"pp_option": {"run_mode": "single_fp32"}},
        {"engine": "hpi", "hpi_config": {"backend": "single"}},
    ):
        assert resolve_engine_options(**given) == settings("single")
    with pytest.raises(DeviceError) as caught:
        create_engine(folder, "single", "gpu:0")
    assert caught.value.code == "device-unsupported"
    with pytest.raises(ConfigError) as caught:
        create_engine(folder, "sngle")
    assert "Did you mean single" in caught.value.what and "single" in caught.value.fix


@pytest.mark.slow
def test_auto_considers_an_engine_of_another_package(plugin, plain, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.copytree(plain, tmp_path / "model")
    convert.write_forms(tmp_path / "model", ["single"])
    create_engine(tmp_path / "model", "auto", "cpu")
    assert re.search(r"images/s in fp32: .*single \d", caplog.text)


def test_mode_predict_runs_an_engine_of_another_package(plugin, plain, faces, tmp_path):
    shutil.copytree(plain, tmp_path / "model")
    convert.write_forms(tmp_path / "model", ["single"])
    words = [f"Global.output={tmp_path / 'out'}", f"Predict.model_dir={tmp_path / 'model'}", "Predict.engine=single"]
    words += ["Global.mode=predict", "Global.device=cpu", f"Predict.input={faces}/images/s01/01.pgm"]
    search = os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])
    done = run_main("-c", NAME, *(word for key in words for word in ("-o", key)), PYTHONPATH=search)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/01_res.json").is_file()


def test_a_package_that_cannot_be_imported_does_not_disturb_the_other_engines(plugin, folder, caplog):
    (plugin / "single_engine.py").write_text("1 / 0")
    assert create_engine(folder, "onnxruntime", "cpu").name == "onnx"
    assert "single_engine cannot be imported" in caplog.text
    with pytest.raises(DependencyError) as caught:
        create_engine(folder, "single", "cpu")
    assert caught.value.code == "plugin-broken"


@pytest.mark.parametrize("form", ["onx", "auto"])
def test_an_unknown_form_of_export_is_an_error(form):
    with pytest.raises(ConfigError) as caught:
        convert.require_forms(["paddle", form])
    assert caught.value.code == "unknown-form" and "paddle, onnx, openvino" in caught.value.fix


# engine=auto


class Stub:
    """The real ONNX engine under another name, as fast and as wrong as a test wants it."""

    seconds: ClassVar[dict[str, float]] = {}
    error: ClassVar[dict[str, float]] = {}

    def __init__(self, name, folder):
        if self.error.get(name) == np.inf:
            raise WeightsError(f"{name} is broken.")
        self.name, self.micro_batch, self.precision, self.device = name, 0, "fp32", "cpu"
        self._real = OnnxEngine(folder, EngineOptions("onnx", device="cpu"))

    def run(self, x):
        features = self._real.run(x)
        features[:, 0] += self.error.get(self.name, 0) * np.linalg.norm(features, axis=1)
        return features


@pytest.fixture
def stubs(monkeypatch):
    stubs: Registry[EngineSpec] = Registry("engines", EngineSpec, "Predict.engine")
    for spec in [ENGINES.get(name) for name in ("paddle", *OTHERS)]:
        stubs.add(replace(spec, make=lambda folder, _, name=spec.name: Stub(name, folder)))
    monkeypatch.setattr(engines, "ENGINES", stubs)
    monkeypatch.setattr(create, "_seconds", lambda engine, _: Stub.seconds[engine.name])
    monkeypatch.setattr(Stub, "seconds", {"paddle": 3.0, "onnx": 1.0, "openvino": 2.0})
    monkeypatch.setattr(Stub, "error", {})
    return Stub


def test_auto_takes_the_fastest_and_says_what_it_measured(stubs, folder, caplog):
    caplog.set_level("INFO")
    assert create_engine(folder, "auto", "cpu").name == "onnx"
    assert "takes onnx" in caplog.text and "paddle 1, onnx 4, openvino 2" in caplog.text


@pytest.mark.parametrize(("wrong", "words"), [(1e-3, "disagree"), (np.nan, "disagree"), (np.inf, "broken")])
def test_auto_leaves_out_an_engine_that_disagrees_or_fails(stubs, folder, caplog, wrong, words):
    stubs.error["onnx"] = wrong
    assert create_engine(folder, "auto", "cpu").name == "openvino"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "leaves onnx out" in warnings[0] and words in warnings[0]


def test_auto_compares_lower_precisions_by_angle(stubs, folder):
    stubs.error["openvino"] = 0.02
    stubs.seconds["openvino"] = 0.5
    assert create_engine(folder, "auto", "cpu", precision="bf16").name == "openvino"
    stubs.error["openvino"] = 0.2
    assert create_engine(folder, "auto", "cpu", precision="bf16").name == "paddle"


def test_auto_without_paddle_starts_from_the_first_that_works(stubs, folder):
    stubs.error["paddle"] = np.inf
    assert create_engine(folder, "auto", "cpu").name == "onnx"
    stubs.error.update(onnx=np.inf, openvino=np.inf)
    with pytest.raises(WeightsError, match="paddle is broken"):
        create_engine(folder, "auto", "cpu")


def test_auto_raises_the_error_of_the_only_engine(stubs, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    stubs.error["paddle"] = np.inf
    with pytest.raises(WeightsError, match="paddle is broken"):
        create_engine(folder, "auto", "cpu")


def test_auto_on_the_real_engines(folder, caplog):
    caplog.set_level("INFO")
    assert create_engine(folder, "auto", "cpu").name in ("paddle", *OTHERS)
    assert "engine=auto takes" in caplog.text and "leaves" not in caplog.text


# Settings


def settings(engine="paddle", precision="fp32", threads=0, device="auto") -> EngineOptions:
    return EngineOptions(engine, precision, threads, device)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, settings()),
        ({"engine": "paddle_static"}, settings()),
        ({"engine": "onnxruntime"}, settings("onnx")),
        ({"engine": "openvino", "precision": "bf16", "threads": 4}, settings("openvino", "bf16", 4)),
        ({"engine": "hpi"}, settings("auto")),
        ({"use_hpip": True}, settings("auto")),
        ({"use_hpip": True, "engine": "auto"}, settings("auto")),
        ({"use_hpip": True, "engine": "onnx", "hpi_config": {"backend": "onnxruntime"}}, settings("onnx")),
        ({"engine": "hpi", "hpi_config": {"backend": "openvino", "auto_config": True}}, settings("openvino")),
        ({"engine": "hpi", "engine_config": {"backend": "paddle"}}, settings("paddle")),
        (
            {"use_hpip": True, "hpi_config": {"backend_config": {"cpu_num_threads": 3}, "device_type": "cpu"}},
            settings("auto", threads=3, device="cpu"),
        ),
        ({"pp_option": {"run_mode": "paddle"}, "engine": "onnx"}, settings("onnx")),
        ({"pp_option": {"run_mode": "paddle"}, "precision": "bf16"}, settings(precision="bf16")),
        ({"pp_option": {"run_mode": None}}, settings()),
        ({"pp_option": {"run_mode": "paddle_fp32"}}, settings()),
        ({"pp_option": {"run_mode": "paddle_fp16"}}, settings(precision="fp16")),
        ({"engine_config": {"run_mode": "mkldnn"}, "threads": 2}, settings(threads=2)),
        ({"engine_config": {"run_mode": "mkldnn_bf16", "cpu_threads": 2}}, settings(precision="bf16", threads=2)),
        ({"engine": "onnx", "engine_config": {"intra_op_num_threads": 2}}, settings("onnx", threads=2)),
        ({"pp_option": SimpleNamespace(run_mode="mkldnn", cpu_threads=5, trt_cfg_setting={})}, settings(threads=5)),
        ({"engine_config": {"device_type": "gpu", "device_id": 1}, "device": "gpu:1"}, settings(device="gpu:1")),
        ({"engine_config": {"device_type": "cpu", "device_id": None}, "device": "auto"}, settings(device="cpu")),
        ({"engine_config": {"device_id": 1}}, settings(device="gpu:1")),
        ({"engine_config": {"device_type": "gpu"}, "device": "gpu:0"}, settings(device="gpu:0")),
        ({"engine_config": {"device_type": "gpu", "device_id": 0}, "device": "GPU"}, settings(device="gpu:0")),
    ],
)
def test_every_way_to_ask_for_an_engine(given, expected):
    assert resolve_engine_options(**given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "onnx", "use_hpip": True}, ["engine=onnx", "use_hpip"]),
        ({"engine": "onnx", "engine_config": {"run_mode": "mkldnn"}}, ["engine=onnx", "run_mode=mkldnn"]),
        ({"precision": "fp32", "pp_option": {"run_mode": "mkldnn_bf16"}}, ["precision=fp32", "run_mode=mkldnn_bf16"]),
        ({"threads": 1, "engine_config": {"cpu_threads": 2}}, ["threads=1", "engine_config.cpu_threads=2"]),
        ({"device": "cpu", "engine_config": {"device_type": "gpu"}}, ["device=cpu", "engine_config.device_type=gpu"]),
        ({"use_hpip": True, "engine": "auto", "hpi_config": {"backend": "onnx"}}, ["engine=auto", "backend=onnx"]),
        ({"hpi_config": {"backend": "onnx"}}, ["hpi_config", "use_hpip"]),
        ({"engine": "hpi", "hpi_config": {"backend": "onnx"}, "engine_config": {"backend": "onnx"}}, ["not both"]),
        ({"engine": "tensorrt"}, ["tensorrt", "openvino"]),
        ({"pp_option": {"run_mode": "trt_fp16"}}, ["TensorRT is not supported", "paddle_fp16"]),
        ({"pp_option": {"run_mode": "fast"}}, ["'fast'", "mkldnn_bf16"]),
        ({"engine_config": {"enable_cinn": True, "cpu_threads": 1}}, ["enable_cinn", "run_mode, cpu_threads"]),
        ({"engine_config": {"threads": 1}}, ["threads", "run_mode, cpu_threads"]),
        ({"engine_config": 3}, ["engine_config must be a dictionary", "got 3"]),
        ({"engine_config": {"cpu_threads": 0}}, ["at least 1"]),
        ({"threads": -1}, ["threads must be"]),
        ({"use_hpip": True, "hpi_config": {"backend": "tensorrt"}}, ["'tensorrt'", "onnxruntime"]),
        ({"use_hpip": True, "hpi_config": {"back": "onnx"}}, ["back is an unknown key", "backend_config"]),
        ({"use_hpip": True, "hpi_config": {"backend_config": {"precision": "fp16"}}}, ["cpu_num_threads"]),
        ({"use_hpip": True, "hpi_config": {"auto_config": False}}, ["auto_config cannot be switched off"]),
    ],
)
def test_settings_that_contradict_or_do_not_exist(given, words):
    with pytest.raises(ConfigError) as caught:
        resolve_engine_options(**given)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_create_model_takes_paddlexs_settings(folder, faces):
    file = str(faces / "images/s01/01.pgm")
    expected = next(paddlex_feat.create_model(NAME, folder, "cpu", 1, "paddle").predict(file)).feature
    model = paddlex_feat.create_model(NAME, folder, use_hpip=True, hpi_config={"backend": "onnxruntime"})
    assert np.abs(next(model.predict(file)).feature - expected).max() <= 1e-4
    with pytest.raises(ConfigError, match="contradict"):
        paddlex_feat.create_model(NAME, folder, engine="onnx", pp_option={"run_mode": "mkldnn"})


@pytest.mark.parametrize(
    ("keys", "engine"),
    [
        (["Predict.engine=onnx"], "onnx"),
        (["Predict.use_hpip=True", "Predict.hpi_config={backend: openvino}"], "openvino"),
        (["Predict.engine_config={run_mode: mkldnn, cpu_threads: 2}"], "paddle"),
        (["Predict.kernel_option.run_mode=trt_fp16"], None),
    ],
)
def test_mode_predict_takes_its_engine_from_the_configuration(keys, engine, plain, faces, tmp_path):
    words = [f"Global.output={tmp_path}", f"Predict.model_dir={plain}", f"Predict.input={faces}/images/s01/01.pgm"]
    words += ["Global.mode=predict", "Global.device=cpu", *keys]
    done = run_here("-c", NAME, *(word for key in words for word in ("-o", key)))
    if engine is None:
        assert done.returncode == 1 and "TensorRT is not supported" in done.stderr
        return
    assert done.returncode == 0 and done.stdout.startswith("{'res'") and done.stdout.count("\n") == 1, done.stderr
    saved = json.loads((tmp_path / "01_res.json").read_text())["feature"]
    expected = FeatureExtractor(plain, engine=engine)(pictures(32, faces, 1))[0]
    assert np.abs(np.array(saved) - expected).max() <= 1e-6
