"""Items 1, 9 and 12: the environment, what predictors leave in the process, and errors that users meet."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from accept.bench import FAIL, ROOT, Bench, Failed, Line, features, last_words, records
from paddlex_feat import create_model
from paddlex_feat.errors import FeatError
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime import paddle_build
from paddlex_feat.runtime.paddle_import import prepare_paddle

# Others only change what the process reserves.
DECISIVE = ("FLAGS_conv_workspace_size_limit", "FLAGS_cudnn_deterministic", "FLAGS_use_mkldnn")
MEMORY_LIMIT = {"FLAGS_gpu_memory_limit_mb": "400"}  # environment: more is refused as if the card were full


def environment(bench: Bench) -> Iterator[Line]:
    """Versions, wheels, card, driver, switches, and Paddle's own check."""
    wheels = paddle_build.installed()
    yield bench.line("Paddle's wheels", " and ".join(wheels) or "none", "one", len(wheels) == 1)
    prepare_paddle()
    import paddle

    versions = run_record.versions()
    yield bench.line("versions", ", ".join(f"{n} {versions[n]}" for n in ("python", *wheels, "numpy") if n in versions))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        paddle.utils.run_check()
    works = "installed successfully" in said.getvalue()
    yield bench.line("paddle.utils.run_check()", "passes" if works else "fails", "passes", works)
    facts = paddle_build.describe(bench.device)
    if facts is None:
        yield bench.not_run("card, driver, CUDA, cuDNN, NCCL, TF32", "needs a GPU")
    else:
        for name, value in facts.items():
            yield bench.line(f"GPU: {name}", value)


def flags(bench: Bench) -> Iterator[Line]:
    """Paddle's flags before and after the first predictor of a process."""
    folder, files = bench.run_folder() / "best_model/inference", bench.photographs()
    prepare_paddle()
    before = _flags()
    features(folder, files, bench.device)
    after = _flags()
    changed = {name: f"{value} -> {after[name]}" for name, value in before.items() if after[name] != value}
    decisive = {name: text for name, text in changed.items() if name in DECISIVE}
    text = ", ".join(f"{name.removeprefix('FLAGS_')} {change}" for name, change in changed.items())
    yield bench.line("flags that the first predictor changes", text or "none", "none of computing", not decisive)


def _flags() -> dict[str, object]:
    import paddle

    registry, found = paddle.base.core.globals(), {}
    for name in registry.keys():  # noqa: SIM118 - not a mapping
        with contextlib.suppress(Exception):  # a few can be written alone
            found[name] = registry[name]
    return found


def predictors(bench: Bench) -> Iterator[Line]:
    """Memory after the second and after the fifth predictor; one at a time lives."""
    folder, files, sizes = bench.run_folder() / "best_model/inference", bench.photographs(), []
    for _ in range(5):
        features(folder, files, bench.device)
        gc.collect()
        sizes.append(_memory_mib(bench))
    growth = sizes[4] - sizes[1]
    yield bench.line("five predictors: growth of memory from the second on", f"{growth:.0f} MiB", "<= 64", growth <= 64)


def _memory_mib(bench: Bench) -> float:
    import paddle

    if bench.gpu:
        return int(paddle.device.cuda.memory_reserved()) / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def evaluations(bench: Bench) -> Iterator[Line]:
    """Peak memory of a training at its second and at its sixth evaluation: the GPU's; on a CPU only reported."""
    output = bench.trained("evaluations", "Train.epochs_iters=6", "Train.save_interval=6")
    peaks = [row["peak_memory_mib"] for row in records(output, "eval")]
    growth = peaks[5] - peaks[1]
    bound, ok = ("<= 64", growth <= 64) if bench.gpu else ("", True)
    yield bench.line("six evaluations in training: growth of peak memory", f"{growth:.0f} MiB", bound, ok)


def out_of_memory(bench: Bench) -> Iterator[Line]:
    """A training that does not fit ends with an error of this package."""
    bench.require_gpus()
    settings = ("Train.input_size=512", "Train.batch_size=64", "Train.samples_per_class=null")
    said = bench.main("train", bench.folder / "memory", *settings, code=1, env=MEMORY_LIMIT)
    ours = "memory" in said.lower() and "fault of paddlex_feat" not in said and "Traceback" not in said
    yield bench.line("training that does not fit", last_words(said)[:80], "names memory, no traceback", ours)


def unsupported(bench: Bench) -> Iterator[Line]:
    """A precision that the device has not is an error, not float32 in silence."""
    if bench.gpu:
        prepare_paddle()
        import paddle

        if paddle.amp.is_bfloat16_supported():
            yield bench.not_run("Train.amp bfloat16 on a card without it", "this card has bfloat16")
            return
    settings = ("Train.amp=O1", "Train.amp_dtype=bfloat16")
    said = bench.main("train", bench.folder / "unsupported", *settings, code=1)
    yield bench.line("Train.amp bfloat16 without support", last_words(said)[:60], "an error", "Unexpected" not in said)


def forked(bench: Bench) -> Iterator[Line]:
    """A model used after a fork: works on a CPU; a GPU's context does not survive, which has to be an error."""
    words = ", ".join(map(repr, (str(bench.run_folder()), bench.photographs(), bench.device)))
    code = f"from accept.machine import fork; fork({words})"
    search = os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    title, wanted = "predict in a forked process", "an error" if bench.gpu else "works"
    try:
        said = process.communicate(timeout=90)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield Line(bench.item, title, "hangs", wanted, FAIL)
        return
    verdicts = [line for line in said.splitlines() if line.startswith("child: ")]
    if not verdicts:
        raise Failed(last_words(said))
    yield bench.line(title, verdicts[0], wanted, verdicts[0].startswith(f"child: {wanted}"))


def fork(folder: str, files: list[str], device: str) -> None:
    """Predict, fork, predict in the child, and print what came of it."""
    model = create_model("PP-ShiTuV2_rec", Path(folder) / "best_model/inference", device)
    list(model.predict(files))
    child = os.fork()
    if not child:
        try:
            list(model.predict(files))
            print("child: works", flush=True)
        except FeatError as error:
            print(f"child: an error, {error.what}", flush=True)
        except BaseException as error:  # noqa: BLE001
            print(f"child: {type(error).__name__}", flush=True)
        os._exit(0)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            os._exit(0)
        time.sleep(0.1)
    print("child: hangs", flush=True)
    os.kill(child, signal.SIGKILL)
    os._exit(0)
