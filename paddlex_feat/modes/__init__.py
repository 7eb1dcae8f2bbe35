"""Modes: what a run can do. `MODES` names them; `docs/extending_modes.md` shows how another package adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddlex_feat.config.parts import imported
from paddlex_feat.config.registry import Registry
from paddlex_feat.config.schema import Config, value_of
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import EvaluationError, FeatError, GalleryError, TrainingError

__all__ = ["MODES", "ModeSpec"]


@dataclass(frozen=True)
class ModeSpec:
    """One mode.

    Attributes:
        name: value of `Global.mode`; also the name of its log, result file and folder in `Global.output`.
        run: "module:function", imported when the mode runs. The function takes (config: Config, output: Path), and
            group: ProcessGroup by name if `multi_device` or `multi_machine`. It returns the content of the result
            file as plain data, and raises FeatError.
        help: one line for `--help`.
        section: configuration section with the mode's keys, "" if it has none.
        shard: key of the part that a run does of a job, "" without; the runs of one job share Global.output.
        multi_device: one process per device of `Global.device` can work together.
        multi_machine: so can the machines of `Train.dist_ips`.
        error_type: error of a worker that ended without one of its own.
        memory_fix: advice where memory runs short: which keys to lower.
        keeps_record: the run's folder has a run.json. Its outputs are hashed at the end, and the result of a finished
            run is kept as a backup when another run starts.
    """

    name: str
    run: str
    help: str
    section: str = ""
    shard: str = ""
    multi_device: bool = False
    multi_machine: bool = False
    error_type: type[FeatError] = FeatError
    memory_fix: str = "Lower Global.threads."
    keeps_record: bool = False

    def run_name(self, config: Config) -> str:
        """What the run's log, result and lock in Global.output are called by."""
        shard = value_of(config, self.shard) if self.shard else None
        return self.name if shard is None else f"{self.name}_{Shard.parse(shard).name}"

    def load(self) -> Callable[..., dict[str, Any]]:
        """Import the mode's function."""
        return imported(self.run)


MODES: Registry[ModeSpec] = Registry("modes", ModeSpec, "Global.mode")
MODES.add(
    ModeSpec(
        name="check_dataset",
        run="paddlex_feat.modes.check_dataset:run",
        help="find damaged images, wrong lists, copies and leaks; convert and split data sets",
        section="CheckDataset",
        shard="CheckDataset.shard",
        multi_device=True,
        memory_fix="Lower Train.num_workers.",
    )
)
MODES.add(
    ModeSpec(
        name="train",
        run="paddlex_feat.modes.train:run",
        help="train a network, evaluate it as it trains, keep the best weights and their inference model",
        section="Train",
        multi_device=True,
        multi_machine=True,
        error_type=TrainingError,
        memory_fix="Lower Train.batch_size and raise Train.accumulate_steps instead, or lower Evaluate.batch_size if "
        "an evaluation failed; on a GPU, Train.amp=O1 takes less. See docs/training.md.",
        keeps_record=True,
    )
)
MODES.add(
    ModeSpec(
        name="evaluate",
        run="paddlex_feat.modes.evaluate:run",
        help="measure recall@k and mAP of weights or of an inference model",
        section="Evaluate",
        shard="Evaluate.shard",
        multi_device=True,
        error_type=EvaluationError,
        memory_fix="Lower Evaluate.batch_size or Evaluate.memory_mib.",
    )
)
MODES.add(
    ModeSpec(
        name="export",
        run="paddlex_feat.modes.export:run",
        help="write the inference model of a weight file",
        section="Export",
        memory_fix="Lower Train.input_size if the model allows it.",
    )
)
MODES.add(
    ModeSpec(
        name="predict",
        run="paddlex_feat.modes.predict:run",
        help="write the feature vectors of images",
        section="Predict",
        shard="Predict.shard",
        multi_device=True,
        memory_fix="Lower Predict.batch_size.",
    )
)
MODES.add(
    ModeSpec(
        name="index",
        run="paddlex_feat.modes.index:run",
        help="make and change a gallery of images to search in",
        section="Index",
        multi_device=True,
        error_type=GalleryError,
        memory_fix="Lower Predict.batch_size.",
    )
)
MODES.add(
    ModeSpec(
        name="search",
        run="paddlex_feat.modes.search:run",
        help="find the nearest images of a gallery",
        section="Search",
        error_type=GalleryError,
        memory_fix="Lower Predict.batch_size.",
    )
)
MODES.add(
    ModeSpec(
        name="serve",
        run="paddlex_feat.modes.serve:run",
        help="answer searches over HTTP, with a page for people",
        section="Serve",
        error_type=GalleryError,
        memory_fix="Lower Serve.max_requests.",
    )
)
