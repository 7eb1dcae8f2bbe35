"""SIGKILL at random moments of every mode.

With more kills: `PYTHONPATH=tests:scripts python tests/robustness/test_kills.py [kills a job] [seed]`.

After each kill all that has its final name is whole, nothing of the user's is lost, the same command
succeeds, and nothing temporary is left.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from support.runs import QUICK, ROOT, small_set, train

pytest.importorskip("paddle")
pytestmark = pytest.mark.slow

TEMPORARY = ".paddlex_feat.tmp-*"
NOTES = {
    "notes.txt": "mine",
    ".notes.abcdefgh.json": '{"mine": 1}',
    ".paddlex_feat.toml": "mine",
    "mine/inference.txt": "mine",
}
LISTS = ("train", "gallery", "query")
SPLIT = tuple(
    f"CheckDataset.split.{k}" for k in ("enable=True", "train_percent=70", "gallery_percent=20", "query_percent=10")
)
CONVERT = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=LabelMe")
SMALL = ("Train.batch_size=8", "Train.samples_per_class=2", "Train.input_size=32", "Global.device=cpu")
TRAINING = (*QUICK, "Train.epochs_iters=2", "Train.save_interval_minutes=0.003", "Train.resume=auto")


class World:
    """Data, weights and folders of all jobs below `root`."""

    def __init__(self, root: Path, faces: Path, small: Path, run: Path):
        self.root, self.small, self.run = root, small, run
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True)
        self.image = str(faces / "images/s21/01.pgm")
        self.sets = {"split": root / "split", "convert": root / "convert"}
        for folder in self.sets.values():
            folder.mkdir()
            (folder / "images").symlink_to(faces / "images")
            for name in LISTS:
                (folder / f"{name}.txt").write_bytes((small / f"{name}.txt").read_bytes())
        (self.sets["convert"] / "annotations").mkdir()
        for p in range(1, 9):
            for i in range(1, 11):
                content = {"imagePath": f"../images/s{p:02d}/{i:02d}.pgm", "flags": {f"p{p}": True}, "shapes": []}
                (self.sets["convert"] / f"annotations/{p}_{i}.json").write_text(json.dumps(content))
        self.weights = [run / "best_model/best_model.pdparams", self._other_weights()]
        self.exports: list[dict[str, str]] = []

    def _other_weights(self) -> Path:
        """Other values, for images of another size: graph, weights and inference.yml differ."""
        from paddlex_feat.models import weights

        path = self.root / "other" / "other.pdparams"
        path.parent.mkdir()
        state = weights.read(self.run / "best_model/best_model.pdparams")
        weights.write(path, {k: v * np.float32(1.01) for k, v in state.items()})
        text = (self.run / "config.yaml").read_text()
        assert "input_size: 32" in text
        (path.parent / "config.yaml").write_text(text.replace("input_size: 32", "input_size: 64"))
        return path

    def overrides(self, job: str, turn: int) -> tuple[str, ...]:
        """What the command of a job says; `turn` alternates between the weights of an export."""
        best = self.weights[0]
        return {
            "check_dataset": (f"Global.dataset_dir={self.small}", *SMALL),
            "split": (f"Global.dataset_dir={self.sets['split']}", *SMALL, *SPLIT),
            "convert": (f"Global.dataset_dir={self.sets['convert']}", *SMALL, *CONVERT),
            "train": (f"Global.dataset_dir={self.small}", *TRAINING),
            "evaluate": (
                f"Global.dataset_dir={self.small}",
                *SMALL,
                f"Evaluate.weight_path={best}",
                "Evaluate.save_features=True",
            ),
            "export": (f"Global.dataset_dir={self.small}", *SMALL, f"Export.weight_path={self.weights[turn % 2]}"),
            **{
                f"predict {form}": (
                    f"Predict.model_dir={best.parent}/inference",
                    f"Predict.input={self.small}/images",
                    f"Predict.save_format={form}",
                    "Global.device=cpu",
                )
                for form in ("json", "jsonl", "npz")
            },
        }[job]

    def start(self, job: str, turn: int) -> subprocess.Popen[bytes]:
        """The command of a job, as a user gives it."""
        mode = {"split": "check_dataset", "convert": "check_dataset"}.get(job, job.split()[0])
        settings = (f"Global.mode={mode}", f"Global.output={self.output(job)}", *self.overrides(job, turn))
        command = [sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s))]
        places = {"TMPDIR": str(self.temporary), "PADDLE_PDX_CACHE_HOME": str(self.root / "cache")}
        log = (self.root / "console.log").open("wb")
        with log:
            return subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **places}, stdout=subprocess.DEVNULL, stderr=log
            )

    def finish(self, job: str, turn: int) -> None:
        """Run a job to its end; nothing temporary is left anywhere."""
        code = self.start(job, turn).wait(300)
        assert code == 0 or job in self.sets, (self.root / "console.log").read_text()
        result = json.loads(next(self.output(job).glob("*_result.json")).read_text())
        assert result["done_flag"] is (code == 0) and result.get("err_type") != "unfinished"
        assert not self.leftovers(job)

    def output(self, job: str) -> Path:
        return self.root / "out" / job.replace(" ", "_")

    def leftovers(self, job: str) -> list[Path]:
        places = [self.output(job), self.temporary, *([self.sets[job]] if job in self.sets else [])]
        return [path for place in places for path in place.rglob(TEMPORARY)]

    def put_notes(self, job: str) -> None:
        for name, text in NOTES.items():
            path = self.output(job) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _ends_with(mark: bytes) -> Callable[[Path], bool]:
    return lambda path: path.read_bytes().rstrip().endswith(mark)


def _is_picture(path: Path) -> bool:
    return cv2.imread(str(path)) is not None


def _is_npz(path: Path) -> bool:
    with np.load(path, allow_pickle=False) as content:
        return all(len(content[name]) for name in content)


def _is_state(path: Path) -> bool:
    from paddlex_feat.models import weights

    return bool(weights.read(path))


def _is_lines(path: Path) -> bool:
    return all(json.loads(line) for line in path.read_text().splitlines())


WHOLE: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: path.name == "metrics.jsonl" or _is_lines(path),  # a log, which grows line by line
    ".npz": _is_npz,
    ".yml": lambda path: yaml.safe_load(path.read_text()),
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".csv": lambda path: list(csv.reader(path.open(newline=""), strict=True)),
    ".png": _is_picture,
    ".jpg": _is_picture,
    ".html": _ends_with(b"</html>"),
    ".pdparams": _is_state,
    ".pdopt": _is_state,
    ".pdstates": _is_state,
    ".pdema": _is_state,
}


def check_params_complete(folder: Path, image: str) -> None:
    """Every file under its final name can be read to its end; every inference directory answers."""
    from paddlex_feat import create_model

    seen = set()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # temporary, or a note
        assert WHOLE.get(path.suffix, lambda _: True)(path), path
        if path.name == "inference.yml" and path.with_suffix(".pdiparams").stat().st_ino not in seen:
            seen.add(path.with_suffix(".pdiparams").stat().st_ino)
            results = list(create_model("PP-ShiTuV2_rec", path.parent, device="cpu").predict(image))
            assert len(results) == 1


def digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names if (folder / n).is_file()}


class Job:
    """A job that is killed again and again."""

    def __init__(self, world: World, name: str):
        self.world, self.name, self.turn = world, name, 0
        self.output = world.output(name)
        self.states: Counter[str] = Counter()
        self.most_left = 0
        world.put_notes(name)
        self.lists = self._lists()
        began = time.perf_counter()
        world.finish(name, 0)
        self.seconds = time.perf_counter() - began
        self.new_lists = self._lists()
        self.exports = [self._export()]
        if name == "export":
            world.finish(name, 1)
            self.exports.append(self._export())
            assert not set(self.exports[0].values()) & set(self.exports[1].values())
        kept = (p for pattern in ("features.*", "inference.*") for p in self.output.glob(pattern))
        self.kept = {hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}

    def _lists(self) -> dict[str, bytes]:
        root = self.world.sets.get(self.name)
        return {name: (root / f"{name}.txt").read_bytes() for name in LISTS} if root else {}

    def _export(self) -> dict[str, str]:
        return digests(self.output, ("inference.json", "inference.pdiparams", "inference.yml"))

    def kill(self, chance: random.Random) -> bool:
        """Kill the next run at a random moment, check, and run it to its end; False if it ended before."""
        self.turn += 1
        if self.name == "train":  # a finished run would have nothing to do
            shutil.rmtree(self.output)
            self.world.put_notes(self.name)
        for name, data in self.lists.items():
            (self.world.sets[self.name] / f"{name}.txt").write_bytes(data)
            for former in self.world.sets[self.name].glob(f"{name}.txt.bak*"):
                former.unlink()
        process = self.world.start(self.name, self.turn)
        try:
            process.wait(chance.uniform(0.15, 1.0) * self.seconds)
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.check()
        self.world.finish(self.name, self.turn)
        self._check_the_users()
        return True

    def check(self) -> None:
        results = list(self.output.glob("*_result.json"))
        result = json.loads(results[0].read_text()) if results else {}
        assert not result or result["done_flag"] is True or result["err_type"] in ("unfinished", self._fault())
        self.states["none" if not result else "done" if result["done_flag"] else "unfinished"] += 1
        self.most_left = max(self.most_left, len(self.world.leftovers(self.name)))
        check_params_complete(self.output, self.world.image)
        self._check_lists()
        self._check_the_users()

    def _check_lists(self) -> None:
        """They are the old ones, or the new ones with the old ones beside them."""
        if self.lists:
            from paddlex_feat.data.readers import find_root

            root = self.world.sets[self.name]
            find_root(str(root))  # what every mode does first
            assert self._lists() in (self.lists, self.new_lists)
            if self._lists() == self.new_lists:
                assert {name: (root / f"{name}.txt.bak").read_bytes() for name in LISTS} == self.lists

    def _fault(self) -> str:
        """These lists do not pass the check, which a killed run may have found out."""
        return "<class 'paddlex_feat.errors.DatasetError'>" if self.name in self.world.sets else "unfinished"

    def _check_the_users(self) -> None:
        assert {name: (self.output / name).read_text() for name in NOTES} == NOTES
        if self.name == "export":
            complete = "inference.yml" in self._export()
            assert not complete or self._export() in self.exports, "parts of two exports stand together"
            self.states["refused directory"] += not complete
        if self.kept:
            found = [p for p in self.output.glob("*") if p.name.startswith(("features.", "inference."))]
            assert self.kept <= {hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


JOBS = (
    *("check_dataset", "split", "convert", "train", "evaluate", "export"),
    *(f"predict {form}" for form in ("json", "jsonl", "npz")),
)


LANDING = ("convert", "train", "predict npz")  # the others are nightly


def kill_all(world: World, names: Sequence[str], kills: int, seed: int, say: Callable[[str], object]) -> None:
    """Kill each of these jobs `kills` times; say a line of figures for each."""
    for name in names:
        chance, job, done = random.Random(f"{seed} {name}"), Job(world, name), 0
        while done < kills:
            done += job.kill(chance)
        states = ", ".join(f"{state} {count}" for state, count in sorted(job.states.items()) if count)
        say(f"{name:14} {done} kills in {job.seconds:.1f} s of run; result: {states}; temporary: {job.most_left} -> 0")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in LANDING else pytest.mark.nightly) for n in JOBS])
def test_a_kill_at_any_moment_loses_nothing(name, faces, small_faces, run_folder, tmp_path):
    kill_all(World(tmp_path / "world", faces, small_faces, run_folder), [name], kills=1, seed=1, say=print)


def main(kills: int = 12, seed: int = 0) -> None:
    """Data and weights are made, then killed runs are counted."""
    import prepare_orl

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prepare_orl.main(root / "faces")
        small = small_set(root / "faces")
        done = train(small, root / "run")
        assert done.returncode == 0, done.stderr
        world = World(root / "world", root / "faces", small, root / "run")
        kill_all(world, JOBS, kills, seed, lambda line: print(line, flush=True))
    print(f"{kills * len(JOBS)} kills: nothing was lost, nothing was half, every command succeeded when run again.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
