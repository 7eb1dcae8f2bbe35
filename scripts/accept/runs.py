"""Items 5 to 8: whole runs of main.py, their repetition, and what comes out of their exports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from accept.bench import (
    CLIP,
    METRICS,
    NO_TF32,
    SHITU,
    SWAPPED,
    TINY_CLIP,
    Bench,
    Line,
    features,
    forms,
    installed_engines,
    result,
    run,
)
from paddlex_feat.errors import ConfigError, DeviceError

BEST = "best_model/best_model.pdparams"


def _digests(output: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's weights and momentum."""
    names = ("latest/latest.pdparams", "latest/latest.pdopt")
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}


def repeated(bench: Bench) -> Iterator[Line]:
    """Train.deterministic: a second run has the same bytes."""
    first = bench.run_folder()
    second = bench.trained("again", "Train.deterministic=True")
    same = _digests(first) == _digests(second)
    yield bench.line("two deterministic runs: latest", "same bytes" if same else "differ", "same bytes", same)


def resumed(bench: Bench) -> Iterator[Line]:
    """Train.deterministic: one epoch, another process for the second one."""
    whole = bench.run_folder()
    start = whole / "epoch_1/epoch_1.pdparams"
    parts = bench.trained("parts", "Train.deterministic=True", f"Train.resume_path={start}")
    same = _digests(whole) == _digests(parts)
    yield bench.line("one epoch, resumed for the other: latest", "same bytes" if same else "differ", "same bytes", same)


def _agreement(bench: Bench, run_folder: Path, name: str, model: str, *settings: str) -> Iterator[Line]:
    """Mode export on a run's best weights; every form is compared with them."""
    target = bench.folder / f"export_{run_folder.name}"
    weights = f"Export.weight_path={run_folder / BEST}"
    bench.main("export", target, weights, f"Export.format=[{','.join(forms())}]", *settings, config=model)
    found = result(target, "export")
    for form, difference in found["differences"].items():
        bound, title = found["tolerance"], f"export of {name} as {form}: to the weights"
        yield bench.line(title, difference, f"<= {bound:g}", difference <= bound)
    if "onnx" not in forms():
        yield bench.not_run(f"export of {name} as onnx", "paddle2onnx or onnxruntime is not installed")


def whole_training(bench: Bench) -> Iterator[Line]:
    """PP-ShiTuV2_rec on the ORL faces, its export and its record."""
    folder = bench.run_folder()
    score = result(folder, "train")["models"]["best"]["score"]
    yield bench.line("train, two epochs, with its own check of the export", f"recall1 {score:.3f}")
    run([*bench.command("train", folder)[:2], "verify", str(folder)])
    yield bench.line("verify of that run", "the same", "the same")
    yield from _agreement(bench, folder, "PP-ShiTuV2_rec", SHITU)


def whole_clip_training(bench: Bench) -> Iterator[Line]:
    """A small CLIP likewise."""
    folder = bench.clip_folder()
    done = result(folder, "train")
    yield bench.line("train of a small CLIP, two epochs", f"recall1 {done['models']['best']['score']:.3f}")
    yield from _agreement(bench, folder, "CLIP", CLIP, *TINY_CLIP)


def portable(bench: Bench) -> Iterator[Line]:
    """What was trained and exported on the device runs on a CPU, on every engine."""
    files = bench.photographs()
    for name, model, folder in (("PP-ShiTuV2_rec", SHITU, bench.run_folder()), ("CLIP", CLIP, bench.clip_folder())):
        inference = folder / "best_model/inference"
        own = features(inference, files, bench.device, model)
        reference = None
        for engine, there in installed_engines():
            title = f"{name}, engine {engine} on the CPU"
            if not there:
                yield bench.not_run(title, "not installed")
                continue
            found = features(inference, files, "cpu", model, engine=engine)
            reference = found if reference is None else reference
            difference, cosine = float(np.abs(found - reference).max()), float((found * own).sum(axis=1).min())
            yield bench.line(
                f"{title}: to paddle there, cosine to {bench.device}",
                f"{difference:.1e}, {cosine:.6f}",
                "<= 1e-4, >= 0.999",
                difference <= 1e-4 and cosine >= 0.999,
            )


def evaluated(bench: Bench) -> Iterator[Line]:
    """The network and the predictor on the device, and the predictor on the CPU, rank almost all queries alike."""
    folder = bench.run_folder()
    ways = {
        f"weights on {bench.device}": (folder / BEST, bench.device),
        f"export on {bench.device}": (folder / "best_model/inference", bench.device),
        "export on the CPU": (folder / "best_model/inference", "cpu"),
    }
    if not bench.gpu:
        ways.popitem()  # the one before it is the same
    found = []
    for number, (path, device) in enumerate(ways.values()):
        settings = (f"Evaluate.weight_path={path}", f"Global.device={device}")
        bench.main("evaluate", bench.folder / f"evaluate{number}", *settings, env=NO_TF32)
        found.append(result(bench.folder / f"evaluate{number}", "evaluate")["metrics"])
    for name, metrics in zip(ways, found, strict=True):
        figure = ", ".join(f"{metrics[key]:.5f}" for key in METRICS)
        title = f"evaluate, {name}, without TF32: recall1, recall5, mAP"
        bound = f"{list(ways)[-1]}, to {SWAPPED} queries"
        yield bench.line(title, figure, bound, bench.metrics_agree(metrics, found[-1]))


def predicted(bench: Bench) -> Iterator[Line]:
    """Every precision, and the engine that `auto` takes.

    Half precision has a bound for CLIP alone: after two epochs PP-ShiTuV2_rec still maps faces to almost the same
    embedding, whose rounding its last BatchNorm amplifies.
    """
    files = bench.photographs()
    options = [{"precision": name} for name in ("fp32", "bf16", "fp16")]
    for name, model, folder in (("PP-ShiTuV2_rec", SHITU, bench.run_folder()), ("CLIP", CLIP, bench.clip_folder())):
        inference = folder / "best_model/inference"
        reference = features(inference, files, "cpu", model)
        for option in (*options, {"engine": "auto"}):
            setting = " ".join(next(iter(option.items())))
            title = f"predict on {bench.device}, {name}, {setting}: least cosine"
            bounded = model == CLIP or setting in ("precision fp32", "engine auto")
            try:
                found = features(inference, files, bench.device, model, **option)
            except (ConfigError, DeviceError) as error:  # a precision that this processor or card has not
                yield bench.not_run(title, error.what)
                continue
            cosine = float((found * reference).sum(axis=1).min())
            bound = ">= 0.999" if bounded else ""
            yield bench.line(title, f"{cosine:.6f}", bound, not bounded or cosine >= 0.999)
