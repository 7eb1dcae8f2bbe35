"""The training run: loop, one optimizer step, schedule, moving average, checkpoints and the run folder.

trainer                 the loop: `Trainer`, of a `TrainingPlan`
step, transfer, scaler  one optimizer step: `Step`, `TrainingNetwork`, `Precision`; copies to and from the device
optimizers, freeze      `OPTIMIZERS`, to which packages add an `OptimizerSpec` (docs/extending.md); what is not trained
param_groups            rates and decay by part and depth of the network
cached_features, class_means, probe   what precedes the first step of a fine-tuning
final_candidates        averages and a map of the features after the last epoch
delivery                what a run delivers
adaptation              linear maps of features, chosen by cross-validation (docs/adaptation.md)
classifier              class vectors outside the network, of which each step draws some (Model.head_sample)
schedule, ema           the learning rate: `warmup_cosine`; the moving average: `Ema`
checkpoint, resume      `TrainingState` and `Progress` in files, and back
run_folder, candidate   best_model, latest, epoch_N: `RunFolder`; what is exported and evaluated
run_logger, loss_log    train.log and metrics.jsonl: `RunLogger`
metrics_file            reads metrics.jsonl again: `draw_curves`
stop, votes             signals that end a run: `StopSignal`; what all ranks decide together

Importing this room does not import Paddle; the names of `__all__` are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

if TYPE_CHECKING:
    from paddlex_feat.training.checkpoint import Progress, TrainingState
    from paddlex_feat.training.ema import Ema
    from paddlex_feat.training.metrics_file import draw_curves
    from paddlex_feat.training.optimizers import OPTIMIZERS, OptimizerContext, OptimizerSpec
    from paddlex_feat.training.run_folder import RunFolder
    from paddlex_feat.training.run_logger import RunLogger
    from paddlex_feat.training.schedule import warmup_cosine
    from paddlex_feat.training.step import Precision, Step, TrainingNetwork
    from paddlex_feat.training.stop import StopSignal
    from paddlex_feat.training.trainer import Trainer, TrainingPlan

__all__ = [
    "OPTIMIZERS",
    "Ema",
    "OptimizerContext",
    "OptimizerSpec",
    "Precision",
    "Progress",
    "RunFolder",
    "RunLogger",
    "Step",
    "StopSignal",
    "Trainer",
    "TrainingNetwork",
    "TrainingPlan",
    "TrainingState",
    "draw_curves",
    "warmup_cosine",
]

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checkpoint": ("Progress", "TrainingState"),
            "ema": ("Ema",),
            "metrics_file": ("draw_curves",),
            "optimizers": ("OPTIMIZERS", "OptimizerContext", "OptimizerSpec"),
            "run_folder": ("RunFolder",),
            "run_logger": ("RunLogger",),
            "schedule": ("warmup_cosine",),
            "step": ("Precision", "Step", "TrainingNetwork"),
            "stop": ("StopSignal",),
            "trainer": ("Trainer", "TrainingPlan"),
        },
    )
