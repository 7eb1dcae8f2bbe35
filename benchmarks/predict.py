"""Prediction from files on disk to results, beside PaddleX 3.7.2 in an environment of its own.

    python benchmarks/predict.py [images] [turns]

Prints tables. PP-ShiTuV2_rec at 224 px with random weights, JPEG photographs. Every predictor is a process that waits
while another one is asked; a turn asks each once, and medians of the turns' ratios are quoted. `pip install
'paddlex_feat[onnx,openvino]'` brings the engines. The environment of PaddleX is made at first use, as for the tests.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "benchmarks")]
from embedding import make_photographs  # noqa: E402

NAME, SIZE = "PP-ShiTuV2_rec", 224
IMAGES, TURNS = 192, 5  # a count that batches of 64 divide
BATCHES = (1, 16, 64)
MATRIX = 3072  # side of a bare matrix product's factors
LIMIT = "bare matrix products after bare decoding"  # the network's operations, at the rate of NumPy's product
Options = dict[str, Any]
ENGINES: dict[str, Options] = {  # name in the tables -> arguments of create_model
    "Paddle, the default": {},
    "ONNX Runtime": {"engine": "onnx"},
    "OpenVINO": {"engine": "openvino"},
    "Paddle bf16": {"precision": "bf16"},
    "OpenVINO bf16": {"engine": "openvino", "precision": "bf16"},
}
FAST: dict[str, Options] = {f"{n}, fast_decode": {**ENGINES[n], "fast_decode": True} for n in list(ENGINES)[2:5:2]}


class Asked:
    """A predictor in a process of its own.

    Attributes:
        seconds: from the start of the process to its first result.
    """

    def __init__(self, command: list[str | Path], first: str):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "FLAGS_"))}
        started = time.perf_counter()
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=kept
        )
        self.ask(first)
        self.seconds = time.perf_counter() - started

    def ask(self, line: object) -> str:
        """One line there, one line back."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{line}\n")
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"a predictor ended with code {self._process.wait()}")
        return answer

    def end(self) -> None:
        """Let the process end, and wait for it."""
        self._process.communicate()


def answer_questions(model: Path, options: Options) -> None:
    """Our predictor's side of `Asked`.

    "BATCH LIST" times `predict`, "engine BATCH LIST" the engine alone on tensors that are ready, "decode BATCH LIST"
    reading, decoding and resizing alone, on all cores.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import paddlex_feat

    predictor = paddlex_feat.create_model(NAME, model, device="cpu", **options)
    next(predictor.predict(sys.stdin.readline().strip()))
    answers.write("ready\n")
    for line in sys.stdin:
        *what, listed = line.split()
        files = Path(listed).read_text().split("\n")
        if what[0] == "features":
            np.save(what[1], np.stack([r.feature for r in predictor.predict(files, batch_size=16)]))
            answers.write("0\n")
            continue
        batch = int(what[-1])
        if what[0] == "engine":
            seconds = engine_seconds(predictor, batch, len(files))
        elif what[0] == "decode":
            seconds = decode_seconds(predictor, batch, files)
        else:
            started = time.perf_counter()
            assert sum(1 for _ in predictor.predict(files, batch_size=batch)) == len(files)
            seconds = time.perf_counter() - started
        answers.write(f"{seconds}\n")


def engine_seconds(predictor: object, batch: int, count: int) -> float:
    """Seconds of the engine for `count` images in batches, on tensors that are ready."""
    engine = predictor._extractor.engine  # type: ignore[attr-defined]
    micro_batch = min(batch, engine.micro_batch or batch)
    ready = np.random.default_rng(0).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)
    started = time.perf_counter()
    runs = max(1, count // batch)
    for _ in range(runs):
        for first in range(0, batch, micro_batch):  # as the predictor gives them to the engine
            engine.run(ready[first : first + micro_batch])
    return (time.perf_counter() - started) * count / (runs * batch)


def decode_seconds(predictor: object, batch: int, files: list[str]) -> float:
    """Seconds of the predictor's own decoders for the files, with nothing after them."""
    from paddlex_feat.data.loading.loader import prefetch_map
    from paddlex_feat.inference.inputs.items import iter_images
    from paddlex_feat.inference.rounds import Rounds
    from paddlex_feat.runtime.cpu import cpu_count
    from paddlex_feat.runtime.distributed import ProcessGroup

    started = time.perf_counter()
    batches = Rounds(ProcessGroup()).own(iter_images(files), batch)
    decoded = prefetch_map(batches, predictor._load, cpu_count())  # type: ignore[attr-defined]
    assert sum(len(images) for _, images in decoded) == len(files)
    return time.perf_counter() - started


@dataclass
class Turn:
    """Images/s of one predictor, one measured after the other: `predict`, its engine alone, its decoders alone."""

    predict: float
    engine: float = math.nan
    decode: float = math.nan

    @property
    def bound(self) -> float:
        """What both at once can do if each already takes all the cores alone."""
        return 1 / (1 / self.engine + 1 / self.decode)


def count_operations(target: Path) -> None:
    """Write how many floating-point operations the convolutions and linear layers take for an image."""
    from paddlex_feat.runtime.paddle_import import prepare_paddle

    prepare_paddle()
    import paddle

    from paddlex_feat.models import recognizer
    from paddlex_feat.models.spec import NetworkSpec

    network = recognizer.build(NetworkSpec(), 1)
    network.set_inference_weights(network.state_dict())
    operations = 0

    def count(layer: paddle.nn.Layer, _: object, out: paddle.Tensor) -> None:
        nonlocal operations
        # A convolution's weight is [out, in / groups, k, k], a linear layer's [in, out].
        terms = math.prod(layer.weight.shape[1:]) if layer.weight.ndim == 4 else layer.weight.shape[0]
        operations += 2 * math.prod(out.shape) * terms

    for layer in network.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(count)
    network.eval()
    network(paddle.zeros([1, 3, SIZE, SIZE]))
    target.write_text(str(operations))


def matrix_rate() -> float:
    """Floating-point operations per second of NumPy's matrix product on all cores."""
    a, times = np.ones((MATRIX, MATRIX), np.float32), []
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(times)


def rates(
    asked: dict[str, Asked], batch: int, listed: Path, images: int, turns: int, operations: int
) -> dict[str, list[Turn]]:
    """Every predictor in each turn, and LIMIT; a turn before the first one is not counted."""
    rows: dict[str, list[Turn]] = {name: [] for name in (*asked, LIMIT)}
    for _ in range(turns + 1):
        for name, process in asked.items():
            kinds = ("", "engine ", "decode ") if name in ENGINES else ("",)
            rows[name].append(Turn(*(images / float(process.ask(f"{kind}{batch} {listed}")) for kind in kinds)))
        products, decode = matrix_rate() / operations, max(rows[name][-1].decode for name in ENGINES)
        rows[LIMIT].append(Turn(Turn(math.nan, products, decode).bound, products, decode))
    return {name: kept[1:] for name, kept in rows.items()}


def table(title: str, rows: dict[str, list[Turn]]) -> None:
    """Print one table; ratios are medians of the turns' ratios."""
    heads = (
        "predictor",
        "images/s",
        "beside PaddleX",
        "engine alone",
        "decoding alone",
        "of the engine",
        "of the bound",
    )
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, turns in rows.items():
        median = statistics.median
        beside = median(a.predict / b.predict for a, b in zip(turns, rows["PaddleX"], strict=True))
        cells = [f"{median(t.predict for t in turns):.1f}", f"{beside:.2f}"]
        if name != "PaddleX" and not math.isnan(turns[0].engine):
            cells += [f"{median(t.engine for t in turns):.0f}", f"{median(t.decode for t in turns):.0f}"]
            cells += [f"{median(t.predict / t.engine for t in turns):.2f}"]
            cells += [f"{median(t.predict / t.bound for t in turns):.2f}"]
        print(f"| {' | '.join([name, *cells, *[''] * (len(heads) - 1 - len(cells))])} |", flush=True)


def listing(folder: Path, count: int, width: int, height: int) -> Path:
    """A text file that names `count` photographs made in `folder`."""
    folder.mkdir()
    make_photographs(folder, count, width, height)
    listed = folder.with_suffix(".txt")
    listed.write_text("\n".join(str(f) for f in sorted(folder.iterdir())))
    return listed


def cosines(asked: dict[str, Asked], listed: Path, folder: Path) -> None:
    """Print how far each predictor's features are from PaddleX's."""
    features = {}
    for number, (name, process) in enumerate(asked.items()):
        process.ask(f"features {folder / f'{number}.npy'} {listed}")
        features[name] = np.load(folder / f"{number}.npy").astype(np.float64)
    theirs = features.pop("PaddleX")
    print("\n| predictor | largest difference to PaddleX's features | smallest cosine |\n|---|---|---|")
    for name, own in features.items():
        cosine = (own * theirs).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(theirs, axis=1)
        print(f"| {name} | {np.abs(own - theirs).max():.1e} | {cosine.min():.6f} |", flush=True)


def starts(ours: list[str | Path], theirs: list[str | Path], first: str, turns: int) -> None:
    """Print the time from the start of a process to its first result."""
    pairs = []
    for _ in range(turns):
        pair = []
        for command in (ours, theirs):
            process = Asked(command, first)
            pair.append(process.seconds)
            process.end()
        pairs.append(pair)
    own, other = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    share = statistics.median(a / b for a, b in pairs)
    print(f"\nTo the first result, from the start of Python: {own:.2f} s, PaddleX {other:.2f} s; ratio {share:.2f}")


def measure(images: int, turns: int) -> None:
    """Print all tables."""
    from embedding import in_process
    from support.oracles import environment

    python = environment("paddlex")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        in_process("make_model", model)
        subprocess.run([sys.executable, __file__, "count", folder / "operations"], check=True)
        operations = int((folder / "operations").read_text())
        print(f"{operations / 1e9:.2f} GFLOP an image in fp32, in the fused network")
        thumbnails = listing(folder / "thumbnails", images, 320, 240)
        small, large = listing(folder / "small", images, 640, 480), listing(folder / "large", images, 1365, 1024)
        first = small.read_text().split("\n")[0]
        theirs: list[str | Path] = [python, ROOT / "tests" / "support" / "oracles" / "paddlex_rates.py", model]

        def own(options: Options) -> list[str | Path]:
            return [sys.executable, __file__, "answer", model, repr(options)]

        starts(own({}), theirs, first, turns)
        asked = {"PaddleX": Asked(theirs, first)} | {n: Asked(own(o), first) for n, o in (ENGINES | FAST).items()}
        usual = {n: p for n, p in asked.items() if n in ENGINES or n == "PaddleX"}
        for title, batch, listed in (
            *((f"640 x 480, batch {batch}", batch, small) for batch in BATCHES),
            ("320 x 240, batch 16", 16, thumbnails),
            ("1365 x 1024, batch 16", 16, large),
        ):
            table(title, rates(asked if listed == large else usual, batch, listed, images, turns, operations))
        cosines(asked, large, folder)
        for process in asked.values():
            process.end()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["answer", model, options]:
            import ast

            answer_questions(Path(model), ast.literal_eval(options))
        case ["count", target]:
            count_operations(Path(target))
        case numbers:
            measure(*[*map(int, numbers), *(IMAGES, TURNS)[len(numbers) :]])
