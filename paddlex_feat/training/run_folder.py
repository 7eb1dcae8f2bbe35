"""The folder of a training run: its checkpoints, and how a run is resumed from them.

    best_model/  best_model.{pdparams,pdopt,pdstates,info.json}  inference/
    epoch_N/     epoch_N.*                                       the last `keep_checkpoints` of them
    latest/      latest.*                                        the newest state; inference/ at the end of an epoch;
                                                                 latest.head.safetensors with Model.head_sample
    previous_N/  what earlier runs left
A checkpoint is a folder that appears complete or not at all. Equal checkpoints share their files. Other files in one
belong to the user: they stay where they are and are never copied to another checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import link_or_copy, write_text
from paddlex_feat.fileio.atomic_folder import atomic_folder, recover_folder, resolve_during_swap, sync_files
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference.export.convert import inference_file_names
from paddlex_feat.runtime import logs
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, Snapshot, TrainingState
from paddlex_feat.training.classifier import head_file
from paddlex_feat.training.classifier.protocols import Classifier
from paddlex_feat.training.metrics_file import CURVES, METRICS, metrics_until
from paddlex_feat.training.run_logger import VISUALDL

log = logging.getLogger(__name__)

BEST, LATEST = "best_model", "latest"
# Patterns: a finished run's train_result.json was kept as .bak when this run began.
_OF_A_RUN = (
    BEST,
    LATEST,
    "config.yaml",
    METRICS,
    CURVES,
    "class_map.json",
    "class_names.json",
    "run.json",
    "vdlrecords.*.log",
    "train_result.json.bak*",
)
_SUFFIXES = ("pdparams", "pdema", "pdloss", "pdmemory", "pdopt", "pdstates", "info.json", head_file.SUFFIX)


def epoch_name(epoch: int) -> str:
    """The checkpoint folder of an epoch, counted from 1."""
    return f"epoch_{epoch}"


def run_of(parameters: Path) -> Path:
    """Return the folder of the run that wrote the checkpoint `parameters` (.pdparams), whose folder may be a link."""
    return Path(os.path.abspath(parameters)).parent.parent.resolve()  # noqa: PTH100 - resolve() follows that link


def _members(folder: Path, name: str) -> dict[Path, str]:
    """Map the files of a checkpoint, relative to its folder, to what follows its name in theirs ("" if nothing)."""
    places = {Path(f"{name}.{suffix}"): f".{suffix}" for suffix in _SUFFIXES}
    places |= {Path("inference", file): "" for file in sorted(inference_file_names())}
    return {place: suffix for place, suffix in places.items() if (folder / place).is_file()}


def _preserve_user_files(former: Path, folder: Path, name: str) -> None:
    """Link the user's files of the checkpoint `former` into `folder`, which replaces it."""
    ours = _members(former, name)
    for path in former.rglob("*"):
        place = path.relative_to(former)
        if path.is_dir() and not path.is_symlink():
            if place != Path("inference"):
                (folder / place).mkdir(parents=True, exist_ok=True)
        elif place not in ours and not os.path.lexists(folder / place):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, folder / place)


def _place_head(head: TemporaryFolder | None, folder: Path, name: str) -> None:
    if head is not None and name == LATEST:
        file = f"{LATEST}.{head_file.SUFFIX}"
        (head.path / file).rename(folder / file)


class RunFolder:
    """The checkpoints of one run below `root`."""

    def __init__(self, root: Path, keep_checkpoints: int):
        self.root = root
        self._keep_checkpoints = keep_checkpoints
        self.scores: dict[int, float | None] = {}  # of the epoch_N that exist, by N
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def latest(self) -> Path | None:
        """The newest state that a run left here, if any: the .pdparams file to resume from."""
        recover_folder(self.root / LATEST)
        path = self.root / LATEST / f"{LATEST}.pdparams"
        return path if path.is_file() else None

    def start_new(self) -> None:
        """Make room for a new run: files of an earlier one move to previous_1, previous_2 and so on."""
        self._tidy()
        found = [p for pattern in _OF_A_RUN for p in self.root.glob(pattern)] + list(self._epochs().values())
        if found:
            target = self._archive(found)
            with as_output_error(target):
                logs.move_log(self.root / "train.log", target)

    def resume_from(self, parameters: Path, progress: Progress) -> None:
        """Continue the run of the checkpoint `parameters` (.pdparams), in its own folder or in another one.

        Afterwards this folder holds nothing later than `progress`: later checkpoints move to previous_N. If the best
        model so far no longer exists, the best score in `progress` is reset.
        """
        source = run_of(parameters)
        own = source == self.root.resolve()
        if own:
            self._tidy()
        best = self._best_of(source, progress)
        rows = metrics_until(source / METRICS, progress.epoch, progress.step)
        here = (progress.epoch, progress.step_in_epoch)
        replayed = own and parameters.parent.name == LATEST and self._position(BEST) > here
        if own:
            later = [path for epoch, path in self._epochs().items() if epoch > progress.epoch]
            later += [self.root / n for n in (BEST, LATEST) if self._position(n) > here and not replayed]
            if later:
                self._archive([*later, *(self.root / n for n in (METRICS,) if (self.root / n).exists())])
        else:
            self.start_new()
        states = {n: p / f"{p.name}.pdstates" for n, p in self._epochs().items()}  # else it is a user's folder
        self.scores = {n: checkpoint.read_progress(path).last_recall1 for n, path in states.items() if path.is_file()}
        if replayed:
            log.info("best_model is newer than the resumed state; its epoch is trained again.")
        elif best is None and progress.best >= 0:
            log.warning("best_model (epoch %d) is missing; the best score is reset.", progress.best_epoch)
            progress.best, progress.best_epoch = -1.0, 0
        elif best is not None and best != self.root.resolve() / BEST / best.name:
            self._copy(best, BEST)
        if rows or (self.root / METRICS).exists():
            write_text(self.root / METRICS, "".join(rows))

    def _position(self, name: str) -> tuple[int, int]:
        """Completed epochs, and steps of the next one, at which a checkpoint was made; (-1, 0) if there is none."""
        recover_folder(self.root / name)
        states = self.root / name / f"{name}.pdstates"
        if not states.is_file():
            return -1, 0
        progress = checkpoint.read_progress(states)
        return progress.epoch, progress.step_in_epoch

    def write_missing_epoch(self, progress: Progress, interval: int, last: int) -> None:
        """Write the epoch_N of `latest` if it is due and the run was killed before it could."""
        epoch = progress.epoch
        due = epoch and not progress.step_in_epoch and (epoch % interval == 0 or epoch == last)
        if due and epoch not in self.scores and self._position(LATEST) == (epoch, 0):
            self._copy(self.root / LATEST / f"{LATEST}.pdparams", epoch_name(epoch))
            self.scores[epoch] = progress.last_recall1

    def _best_of(self, source: Path, progress: Progress) -> Path | None:
        """The checkpoint (.pdparams) of the best epoch of the run in `source`, if it still exists."""
        for name in (BEST, f"epoch_{progress.best_epoch}"):
            folder = resolve_during_swap(source / name)  # perhaps of another run, which may be under way
            states = folder / f"{name}.pdstates"
            if states.is_file() and checkpoint.read_progress(states).epoch == progress.best_epoch:
                return states.with_suffix(".pdparams")
        return None

    def _epochs(self) -> dict[int, Path]:
        found = {p: re.fullmatch(r"epoch_(\d+)", p.name) for p in self.root.glob("epoch_*") if p.is_dir()}
        return {int(match[1]): path for path, match in found.items() if match}

    def _tidy(self) -> None:
        """Complete what a killed run was writing here."""
        for name in (BEST, LATEST, *(f"epoch_{n}" for n in self._epochs())):
            recover_folder(self.root / name)

    def _archive(self, paths: list[Path]) -> Path:
        number = 1
        while (self.root / f"previous_{number}").exists():
            number += 1
        target = self.root / f"previous_{number}"
        with as_output_error(target):
            target.mkdir()
            for path in paths:
                place = target / path.name.removesuffix(".bak")
                if path.is_symlink():  # a relative one would lead elsewhere from there
                    place.symlink_to(path.resolve())
                    path.unlink()
                else:
                    path.rename(place)
        log.info("Files of an earlier run in %s were moved to %s", self.root, target.name)
        return target

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Yield an empty folder that becomes the checkpoint `name`, with what a user has put into its former one."""
        path = self.root / name
        with atomic_folder(path) as folder:
            yield folder
            if path.is_symlink():  # to a checkpoint elsewhere, which stays as it is: only folders can be exchanged
                sync_files(folder)
                path.unlink()
            else:
                _preserve_user_files(path, folder, name)

    def _copy(self, parameters: Path, name: str, head: TemporaryFolder | None = None) -> None:
        """Write a checkpoint (.pdparams) under another name; they share their files, which never change.

        A file of class vectors is not shared: it would stay as long as the oldest of them.
        """
        source = parameters.parent
        with self._replacing(name) as folder:
            _place_head(head, folder, name)
            for place, suffix in _members(source, parameters.stem).items():
                if suffix == f".{head_file.SUFFIX}":
                    continue
                target = folder / (f"{name}{suffix}" if suffix else place)
                target.parent.mkdir(exist_ok=True)
                link_or_copy((source / place).resolve(), target)  # a link of another run says nothing here

    def stage_head(self, classifier: Classifier) -> TemporaryFolder | None:
        """Write the class vectors for the next `save`; all ranks call it, and rank 0 gets the folder.

        Raises OutputError.
        """
        if classifier.part.group.rank:
            head_file.write(self.root, classifier)
            return None
        self.finish()
        self.root.mkdir(parents=True, exist_ok=True)
        folder = TemporaryFolder(self.root)
        try:
            head_file.write(folder.path / f"{LATEST}.{head_file.SUFFIX}", classifier)
        except BaseException:
            folder.close()
            raise
        return folder

    def save(
        self,
        names: Sequence[str],
        state: TrainingState,
        inference: Path | None,
        head: TemporaryFolder | None = None,
    ) -> None:
        """Write one checkpoint under several names, with the files of the folder `inference`.

        `head`, of `stage_head`, goes into `latest`.
        A thread writes while training goes on; `finish` waits for it. Afterwards at most `keep_checkpoints`
        of the epoch_N are left. Raises OutputError, also for a checkpoint that was being written.
        """
        self.finish()
        staged = None
        if inference is not None:  # the caller's folder may be gone before the thread comes to it
            self.root.mkdir(parents=True, exist_ok=True)
            staged = TemporaryFolder(self.root)
            for file in inference.iterdir():  # the exporter's alone
                link_or_copy(file, staged.path / file.name)
        self._pending = self._writer.submit(self._write, names, checkpoint.snapshot(state), staged, head)

    def finish(self) -> None:
        """Wait until the last checkpoint is written. Raises OutputError if it cannot be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(
        self,
        names: Sequence[str],
        snapshot: Snapshot,
        inference: TemporaryFolder | None,
        head: TemporaryFolder | None,
    ) -> None:
        first, *others = names
        with head or nullcontext():
            with inference or nullcontext(), self._replacing(first) as folder:
                snapshot.write(folder, first)
                _place_head(head, folder, first)
                if inference is not None:
                    inference.path.rename(folder / "inference")
                    (folder / "inference").chmod(folder.stat().st_mode & 0o777)
            for name in others:
                self._copy(self.root / first / f"{first}.pdparams", name, head)
        epoch = snapshot.progress["epoch"]
        if epoch_name(epoch) in names:
            self.scores[epoch] = snapshot.progress["score"]
        for epoch in sorted(self.scores)[: -self._keep_checkpoints]:
            self._remove(epoch_name(epoch))
            del self.scores[epoch]

    def _remove(self, name: str) -> None:
        """Remove a checkpoint as a whole, even if killed; the user's files in it stay."""
        path = self.root / name
        with as_output_error(path), TemporaryFolder(self.root) as gone, suppress(FileNotFoundError):
            path.rename(gone / name)
            if not (gone / name).is_symlink():
                _preserve_user_files(gone / name, path, name)

    def result(self, model_name: str, best: float) -> dict[str, Any]:
        """The content of train_result.json, without done_flag; paths are relative to the folder."""
        models: dict[str, Any] = {}
        for i, epoch in enumerate(sorted(self.scores, reverse=True), 1):
            models[f"last_{i}"] = self._entry(epoch_name(epoch), self.scores[epoch])
        for i in range(len(models) + 1, 6):
            models[f"last_{i}"] = {}
        models["best"] = self._entry(BEST, best)
        return {
            "model_name": model_name,
            "label_dict": "class_map.json",
            "train_log": "train.log",
            "visualdl_log": VISUALDL if (self.root / VISUALDL).is_file() else "",
            "config": "config.yaml",
            "models": models,
        }

    def _entry(self, name: str, score: float | None) -> dict[str, Any]:
        files = {
            "pdparams": f"{name}/{name}.pdparams",
            "pdema": f"{name}/{name}.pdema",
            "pdloss": f"{name}/{name}.pdloss",
            "pdmemory": f"{name}/{name}.pdmemory",
            "pdopt": f"{name}/{name}.pdopt",
            "pdstates": f"{name}/{name}.pdstates",
            "inference_config": f"{name}/inference/inference.yml",
            "pdmodel": f"{name}/inference/inference.json",
            "pdiparams": f"{name}/inference/inference.pdiparams",
        }
        if not (self.root / files["pdmodel"]).is_file():  # Global.export_with_pir: False
            files["pdmodel"] = f"{name}/inference/inference.pdmodel"
        return {"score": score, **{key: path for key, path in files.items() if (self.root / path).is_file()}}
