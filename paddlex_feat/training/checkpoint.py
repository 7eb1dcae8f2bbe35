"""What a training run leaves in its folder, and how it is taken up again.

    best_model/  best_model.{pdparams,pdopt,pdstates,info.json}  inference/
    epoch_N/     epoch_N.*                                       the last `keep_last` of them
    latest/      latest.*                                        the newest epoch_N again
A checkpoint is a folder that appears whole or not at all. `.pdparams` holds the weights,
`.pdopt` the momentum, `.pdstates` epoch, step, best score and the class map.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import paddle

from paddlex_feat.errors import WeightsError
from paddlex_feat.files import atomic_folder, link_or_copy, output_errors, recover_folder, write_json
from paddlex_feat.models import weights

log = logging.getLogger(__name__)

BEST, LATEST = "best_model", "latest"
_OF_A_RUN = (BEST, LATEST, "config.yaml", "metrics.jsonl", "curves.png", "class_map.json", "train_result.json")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs completed. step: optimizer steps completed.
        best: best recall1 so far, -1 before the first evaluation. best_epoch: its epoch.
        score: recall1 of the last evaluation of this epoch, None if it was not evaluated.
        classes: the data set's label of each class index.
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    score: float | None = None
    classes: list[int] = field(default_factory=list)


def _momentum_by_name(model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """The optimizer's state under the network's tensor names, which do not depend on the process."""
    state = optimizer.state_dict()
    named = {}
    for name, parameter in model.named_parameters():
        prefix = parameter.name + "_"
        for entry, value in state.items():
            if entry.startswith(prefix):
                named[f"{name}:{entry[len(prefix) :]}"] = value
    return named


class RunFolder:
    """The checkpoints of one run below `root`."""

    def __init__(self, root: Path, keep_last: int):
        self.root = root
        self._keep_last = keep_last
        self.scores: dict[int, float | None] = {}  # of the epoch_N that exist, by N

    def set_aside_earlier_run(self) -> None:
        """Move what another run left here to previous_1, previous_2, …; nothing is overwritten."""
        recover_folder(self.root / BEST)
        recover_folder(self.root / LATEST)
        found = [self.root / name for name in _OF_A_RUN if (self.root / name).exists()]
        found += [p for p in self.root.glob("epoch_*") if re.fullmatch(r"epoch_\d+", p.name)]
        if not any(p.is_dir() for p in found):
            return
        number = 1
        while (self.root / f"previous_{number}").exists():
            number += 1
        target = self.root / f"previous_{number}"
        with output_errors(target):
            target.mkdir()
            for path in found:
                path.rename(target / path.name)
        log.info("The earlier run in %s was moved to %s", self.root, target)

    def find_epochs(self) -> None:
        """Take up the epoch_N of the run that is being resumed."""
        for path in self.root.glob("epoch_*/epoch_*.pdstates"):
            self.scores[int(path.stem.removeprefix("epoch_"))] = read_progress(path).score

    def save(
        self,
        name: str,
        model: paddle.nn.Layer,
        optimizer: paddle.optimizer.Optimizer,
        progress: Progress,
        inference: Path | None,
    ) -> None:
        """Write one checkpoint folder; `inference` is copied into it."""
        with atomic_folder(self.root / name) as folder:
            weights.write(folder / f"{name}.pdparams", model.state_dict())
            weights.write(folder / f"{name}.pdopt", _momentum_by_name(model, optimizer))
            weights.write(folder / f"{name}.pdstates", asdict(progress))
            write_json(folder / f"{name}.info.json", {"metric": progress.score, "epoch": progress.epoch})
            if inference is not None:
                shutil.copytree(inference, folder / "inference")

    def save_epoch(
        self, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, progress: Progress, inference: Path | None
    ) -> None:
        """Write epoch_N, give it the second name `latest`, remove what exceeds keep_last."""
        name = f"epoch_{progress.epoch}"
        self.save(name, model, optimizer, progress, inference)
        self.scores[progress.epoch] = progress.score
        with atomic_folder(self.root / LATEST) as folder:
            for source in sorted((self.root / name).rglob("*")):
                if source.is_file():
                    relative = source.relative_to(self.root / name)
                    target = folder / relative.with_name(relative.name.replace(name, LATEST))
                    target.parent.mkdir(exist_ok=True)
                    link_or_copy(source, target)
        for epoch in sorted(self.scores)[: -self._keep_last]:
            shutil.rmtree(self.root / f"epoch_{epoch}", ignore_errors=True)
            del self.scores[epoch]

    def result(self, model_name: str, best: float) -> dict[str, Any]:
        """The content of train_result.json, without done_flag; paths are relative to the folder."""
        models: dict[str, Any] = {}
        for i, epoch in enumerate(sorted(self.scores, reverse=True), 1):
            models[f"last_{i}"] = self._entry(f"epoch_{epoch}", self.scores[epoch])
        for i in range(len(models) + 1, 6):
            models[f"last_{i}"] = {}
        models["best"] = self._entry(BEST, best)
        return {
            "model_name": model_name,
            "label_dict": "class_map.json",
            "train_log": "train.log",
            "visualdl_log": "",
            "config": "config.yaml",
            "models": models,
        }

    def _entry(self, name: str, score: float | None) -> dict[str, Any]:
        files = {
            "pdparams": f"{name}/{name}.pdparams",
            "pdopt": f"{name}/{name}.pdopt",
            "pdstates": f"{name}/{name}.pdstates",
            "inference_config": f"{name}/inference/inference.yml",
            "pdmodel": f"{name}/inference/inference.json",
            "pdiparams": f"{name}/inference/inference.pdiparams",
        }
        return {"score": score, **{key: path for key, path in files.items() if (self.root / path).is_file()}}


def read_progress(path: Path) -> Progress:
    """Read a `.pdstates` file written here. Raises WeightsError on another form."""
    try:
        return Progress(**weights.read(path))
    except TypeError as error:
        raise WeightsError(
            "The file does not hold the state of a run of this program.",
            where=str(path),
            fix="To start from these weights alone, use Train.pretrain_weight_path instead of Train.resume_path.",
        ) from error


def resume(path: Path, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> Progress:
    """Load weights, momentum and progress from `path` (.pdparams) and the files beside it.

    Raises WeightsError if one of the three is missing or does not fit.
    """
    progress = read_progress(path.with_suffix(".pdstates"))
    weights.load(model, path)
    saved = weights.read(path.with_suffix(".pdopt"))
    parameters = dict(model.named_parameters())
    state, unknown = {}, []
    for entry, value in saved.items():
        name, _, kind = entry.rpartition(":")
        if name in parameters:
            state[f"{parameters[name].name}_{kind}"] = paddle.to_tensor(value)
        else:
            unknown.append(entry)
    if unknown:
        raise WeightsError(
            f"{len(unknown)} entries belong to no tensor of the network, e.g. {unknown[0]}.",
            where=str(path.with_suffix(".pdopt")),
            fix="Resume from a checkpoint of the same model, written by this program.",
        )
    optimizer.set_state_dict(state)
    return progress
