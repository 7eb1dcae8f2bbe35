"""The state of a run: everything that the next step depends on, written and read.

`.pdparams` holds the weights that are evaluated, `.pdema` the raw ones if those are their moving average, `.pdloss`
the losses' own parameters if there are any, `.pdopt` the optimizer's state, `.pdstates` progress, scaler and classes,
`.pdmemory` the features of past batches and the neighbouring classes of the epoch, if the run uses them,
`.head.safetensors` the class vectors of a run with Model.head_sample, in `latest` alone.
Sampling, augmentation and dropout are functions of (seed, epoch, step), so the progress is their state.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import paddle
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.losses.combined import CombinedLoss, recipe_loss
from paddlex_feat.losses.memory import FeatureMemory
from paddlex_feat.models import weights
from paddlex_feat.training.classifier import head_file
from paddlex_feat.training.classifier.protocols import Classifier
from paddlex_feat.training.ema import Ema

# Field of Progress -> its key in .pdstates, where the two differ: files of all versions can be resumed.
_FILE_KEYS = {"evals_since_best": "stale", "last_recall1": "score", "batch_signature": "batching"}
_LOSS = "loss."  # prefix of the losses' parameters in .pdopt; the network's begin with backbone., neck. or head.
_FACTOR = "_pow_acc"  # part of the kind of Paddle's states of one element, the corrections of Adam
_NEIGHBOURS = "neighbours"  # in .pdmemory
# Paddle counts the optimizers that a parameter has had in a process, and names their states by it: "velocity_1" is the
# momentum after a linear probe. A resumed run has one optimizer alone.
_NUMBER = re.compile(r"_[0-9]+$")
MASTER = "fp32_master_0"  # suffix of the name of a parameter's float32 copy, and part of its momentum's


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: completed epochs, including their evaluation.
        step: completed optimizer steps.
        step_in_epoch: completed steps of the current epoch.
        batch_signature: text that differs if an epoch is divided into other steps.
        epochs: length of the run.
        best: best recall1 so far, -1 before the first evaluation.
        best_epoch: epoch of the best recall1.
        evals_since_best: evaluations since recall1 last improved.
        last_recall1: recall1 of the last evaluation of this epoch, None if it was not evaluated.
        classes: the data set's label of each class index.
        num_classes: width of the classifier, 0 where it was not recorded.
        scaler: state of the loss scaler of float16.
        skipped: files that could not be decoded and were replaced.
        optimizer: name of the optimizer.
        best_map: mAP beside the best recall1 where it decides between equal ones, else 0.
        start: metrics of the weights that training started from, if they count as epoch 0; empty if not.
        adapted: metrics of the start with a map of its features, if it was measured and applied; empty if not.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # of read_progress

    epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    step_in_epoch: NonNegativeInt = 0
    batch_signature: str = ""
    epochs: NonNegativeInt = 0
    best: Annotated[float, Field(ge=-1, le=1)] = -1.0
    best_epoch: NonNegativeInt = 0
    evals_since_best: NonNegativeInt = 0
    last_recall1: Annotated[float, Field(ge=0, le=1)] | None = None
    classes: list[int] = field(default_factory=list)
    num_classes: NonNegativeInt = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    optimizer: str = "momentum"
    best_map: Annotated[float, Field(ge=0, le=1)] = 0.0
    start: dict[str, float] = field(default_factory=dict)
    adapted: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainingState:
    """A run's tensors and its progress; what a checkpoint saves and restores.

    Attributes:
        model: the network.
        optimizer: of the parameters of `model` and `criterion`.
        progress: how far the run has come.
        criterion: the loss, which may have parameters of its own.
        ema: moving average of the network's weights.
        scaler: of the losses in float16.
        memory: features of past batches.
        neighbours: the nearest other classes of each class that the batches of this epoch are drawn by, nearest first,
            int64 [classes, count].
        classifier: class vectors that take no part in `model`; `training.classifier.head_file` saves them.
    """

    model: paddle.nn.Layer
    optimizer: paddle.optimizer.Optimizer
    progress: Progress
    criterion: CombinedLoss = field(default_factory=recipe_loss)
    ema: Ema | None = None
    scaler: paddle.amp.GradScaler | None = None
    memory: FeatureMemory | None = None
    neighbours: np.ndarray | None = None
    classifier: Classifier | None = None

    def loss_weights(self) -> dict[str, paddle.Tensor]:
        """The losses' own parameters and buffers by name, "<loss>.<tensor>"."""
        tensors: dict[str, paddle.Tensor] = self.criterion.losses.state_dict()
        return tensors

    def trained_parameters(self) -> dict[str, paddle.Tensor]:
        """All parameters of the optimizer by name; those of the losses begin with "loss."."""
        own = {f"{_LOSS}{name}": p for name, p in self.criterion.losses.named_parameters()}
        return {**dict(self.model.named_parameters()), **own}

    def weights(self) -> dict[str, paddle.Tensor]:
        """What is evaluated, exported and saved as .pdparams: the moving average if there is one."""
        return self.ema.state if self.ema else self.raw_weights()

    def raw_weights(self) -> dict[str, paddle.Tensor]:
        """The weights as float32; those of a low-precision network come from the optimizer's master copies."""
        tensors: dict[str, paddle.Tensor] = self.model.state_dict()
        if all(tensor.dtype == paddle.float32 for tensor in tensors.values()):
            return tensors
        masters = self.optimizer.state_dict().get("master_weights", {})
        # astype of a float32 tensor would be a copy, not the tensor.
        exact = {n: t if t.dtype == paddle.float32 else masters.get(t.name) for n, t in tensors.items()}
        return {n: t if t is not None else tensors[n].astype("float32") for n, t in exact.items()}

    def cast_to(self, dtype: str, exact: Sequence[paddle.nn.Layer], exact_gradients: bool = False) -> None:
        """Compute with weights of lower precision; the optimizer keeps float32 copies.

        Call it after the weights were loaded and before the optimizer's state is: the copies are of the float32
        values, not of the rounded ones.

        Args:
            dtype: "float16" or "bfloat16".
            exact: layers that stay float32.
            exact_gradients: gradients become float32 at the end of each backward pass, before they are unscaled and
                clipped. In float16 the norm of a large gradient overflows, and small gradients underflow when they are
                unscaled.
        """
        before = {name: parameter.clone() for name, parameter in self.model.named_parameters()}
        _forget_earlier_networks()
        paddle.amp.decorate(
            self.model,
            self.optimizer,
            "O2",
            dtype,
            master_weight=True,
            master_grad=exact_gradients,
            excluded_layers=list(exact),
        )
        self.set_master_weights(before)

    def set_master_weights(self, before: dict[str, paddle.Tensor]) -> None:
        """Make these float32 parameters, by name, the optimizer's copies of the network's low-precision ones."""
        masters = {}
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != paddle.float32:
                masters[parameter.name] = before[name]
                before[name].name = f"{parameter.name}_{MASTER}"  # Paddle's own name, by which it finds the momentum
        if masters:
            self.optimizer.set_state_dict({**self.optimizer.state_dict(), "master_weights": masters})


def _optimizer_state(state: TrainingState) -> dict[str, Any]:
    """The optimizer's state under the parameters' names in the layers, which do not depend on the process."""
    names, named = {p.name: n for n, p in state.trained_parameters().items()}, {}
    for entry, value in state.optimizer.state_dict().items():
        own = entry  # "<parameter>_<kind>", and both may hold "_"
        while own and own not in names:
            own = own.rpartition("_")[0]
        if own:
            # The same under every precision, so that a run can go on with another one.
            named[f"{names[own]}:{_kind(entry[len(own) + 1 :].removeprefix(f'{MASTER}_'))}"] = value
    return {k: named[k] for k in sorted(named)}


def _kind(text: str) -> str:
    """A kind of the optimizer's states as the first optimizer of a process names it."""
    return _NUMBER.sub("_0", text)


@dataclass(frozen=True)
class Snapshot:
    """A state at one moment, in memory of its own: what goes into each file, by suffix, and the progress."""

    tensors: dict[str, dict[str, np.ndarray]]
    progress: dict[str, Any]

    def write(self, folder: Path, name: str) -> None:
        """Write `name`.pdparams, .pdopt, .pdstates, .info.json and what else there is into `folder`."""
        for suffix, tensors in self.tensors.items():
            weights.write(folder / f"{name}.{suffix}", tensors)
        weights.write(folder / f"{name}.pdstates", self.progress)
        info = {"metric": self.progress["score"], "epoch": self.progress["epoch"]}
        write_json(folder / f"{name}.info.json", info)


def snapshot(state: TrainingState) -> Snapshot:
    """Copy a state off its device, so that training can go on while it is written."""
    if state.scaler is not None:
        scaler = state.scaler.state_dict()
        state.progress.scaler = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in scaler.items()}
    parts = {"pdparams": state.weights(), "pdopt": _optimizer_state(state)}
    if state.ema:
        parts["pdema"] = state.raw_weights()
    if state.loss_weights():
        parts["pdloss"] = state.loss_weights()
    # Tensor.numpy() copies.
    copies = {suffix: {n: t.numpy() for n, t in tensors.items()} for suffix, tensors in parts.items()}
    remembered = state.memory.state() if state.memory else {}
    if state.neighbours is not None:
        remembered[_NEIGHBOURS] = state.neighbours
    if remembered:
        copies["pdmemory"] = remembered
    progress = {_FILE_KEYS.get(name, name): value for name, value in asdict(state.progress).items()}
    progress["classes"] = np.array(progress["classes"], np.int64)  # as one value: they may be millions
    return Snapshot(copies, progress)


def read_progress(path: Path) -> Progress:
    """Read a `.pdstates` file written here. Raises WeightsError on another form."""
    state = weights.read(path)
    if isinstance(state.get("classes"), np.ndarray):  # a list in files of earlier versions
        state["classes"] = state["classes"].tolist()
    try:
        return TypeAdapter(Progress).validate_python(_fields_of(state))
    except ValidationError as error:
        raise WeightsError(
            "The file does not hold the state of a run of this program.",
            where=str(path),
            fix="To start from these weights alone, use Train.pretrain_weight_path instead of Train.resume_path.",
            code="state-form",
        ) from error


def _fields_of(state: dict[str, Any]) -> dict[Any, Any]:
    """The entries of a .pdstates file by the names of Progress's fields."""
    names = {key: name for name, key in _FILE_KEYS.items()}
    return {names.get(key, key): value for key, value in state.items()}


def resume(path: Path, state: TrainingState) -> None:
    """Load weights, moving average, loss parameters, memory and progress from `path` (.pdparams) and files beside it.

    Raises:
        WeightsError: a file is missing or does not fit.
        ConfigError: the run had another optimizer.
    """
    progress = read_progress(path.with_suffix(".pdstates"))
    if progress.optimizer != state.progress.optimizer:
        raise ConfigError(
            f"The resumed run was trained with the optimizer {progress.optimizer}, Train.optimizer is "
            f"{state.progress.optimizer}.",
            where=str(path),
            fix="Resume with the same optimizer, or start a new run from the weights with Train.pretrain_weight_path.",
            code="optimizer-changed",
        )
    if state.classifier is None and getattr(state.model, "head", None) is not None:
        head_file.require_none(path)
    state.progress = progress
    weights.load(state.model, path)
    if state.ema:  # a run that had none begins its average here
        state.ema.load(state.model.state_dict())
    raw = path.with_suffix(".pdema")
    if resolve_during_swap(raw).is_file():
        weights.load(state.model, raw)
    if state.classifier is not None:
        head_file.read(path, state.classifier, progress.step)
    _resume_losses(path.with_suffix(".pdloss"), state)
    remembered = path.with_suffix(".pdmemory")
    if resolve_during_swap(remembered).is_file():
        _resume_memory(remembered, state)


def _resume_memory(path: Path, state: TrainingState) -> None:
    """Load the features of past batches, if the run uses them, and the neighbouring classes."""
    saved = weights.read(path)
    if state.memory:
        state.memory.load(saved, str(path))
    table = state.neighbours = saved.get(_NEIGHBOURS)
    if table is None:
        return
    right = isinstance(table, np.ndarray) and table.dtype == np.int64 and table.ndim == 2
    if not right or ((table < 0) | (table >= len(table))).any():
        raise WeightsError(
            "The table of neighbouring classes does not hold classes of the run.",
            where=str(path),
            fix="Resume from a checkpoint of the same data set, written by this program.",
            code="neighbours-form",
        )


def _resume_losses(path: Path, state: TrainingState) -> None:
    """Load the losses' own tensors; a run whose losses have none needs no file."""
    own, saved = state.loss_weights(), weights.read(path) if resolve_during_swap(path).is_file() else {}
    wrong = sorted(own.keys() ^ saved.keys()) + [n for n in own.keys() & saved.keys() if not _fits(saved[n], own[n])]
    if wrong:
        raise WeightsError(
            f"The losses of the resumed run have other parameters: {wrong[0]}.",
            where=str(path),
            fix="Resume with the same losses, or start a new run from the weights with Train.pretrain_weight_path.",
            code="losses-changed",
        )
    for name, tensor in own.items():
        tensor.set_value(saved[name])


def _fits(value: Any, tensor: paddle.Tensor) -> bool:
    """Whether a saved value can fill a tensor."""
    if not isinstance(value, np.ndarray) or list(value.shape) != list(tensor.shape):
        return False
    return str(tensor.dtype).endswith(f".{value.dtype.name}") and bool(np.isfinite(value).all())


def resume_optimizer(path: Path, state: TrainingState) -> None:
    """Load the optimizer's state from the `.pdopt` beside `path`, once the weights have their precision.

    Raises:
        WeightsError: the file is missing or does not fit.
    """
    path = path.with_suffix(".pdopt")
    saved, parameters = weights.read(path), state.trained_parameters()
    entries, problems = {}, []
    for entry, value in saved.items():
        name, _, kind = str(entry).rpartition(":")
        kind = _kind(kind)
        shape = list(value.shape) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else type(value).__name__
        expected = [1] if _FACTOR in kind else list(parameters[name].shape) if name in parameters else None
        if name in parameters and shape == expected:
            low = parameters[name].dtype != paddle.float32
            entries[f"{parameters[name].name}_{MASTER + '_' if low else ''}{kind}"] = paddle.to_tensor(value)
        else:
            problems.append(f"{entry}, {shape}")
    if problems or (state.progress.step and not saved):
        raise WeightsError(
            "The optimizer's state does not belong to these weights: "
            f"{problems[0] if problems else 'the file is empty'}.",
            where=str(path),
            fix="Resume from a checkpoint of the same model, written by this program.",
            code="optimizer-state",
        )
    state.optimizer.set_state_dict({**entries, **_masters(state)})


def _masters(state: TrainingState) -> dict[str, Any]:
    masters = state.optimizer.state_dict().get("master_weights")
    return {"master_weights": masters} if masters else {}


def _forget_earlier_networks() -> None:
    """Paddle collects the parameters of every network with master gradients in one global list.

    A later training in this process would keep those of an earlier one in the GPU's memory.
    """
    state = getattr(sys.modules.get("paddle.amp.auto_cast"), "_amp_global_state", None)
    if state is not None:
        state.use_master_grad = state.already_classify_params_meshes = False
        state.model_parameters.clear()
        state.mesh2params.clear()
