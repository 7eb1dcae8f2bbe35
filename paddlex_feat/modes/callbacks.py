"""What a training run reports to other programs, such as experiment trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from paddlex_feat.errors import ConfigError, FeatError, TrainingError

Status = Literal["finished", "interrupted", "failed"]


class TrainingCallback(Protocol):
    """Receives the events of a training run as plain data.

    A subclass overrides the methods that it needs; the others do nothing. The methods run in the thread that trains,
    which waits for them. An exception ends the run with a TrainingError.
    """

    def on_start(self, config: dict[str, Any]) -> None:
        """The run starts.

        Args:
            config: the whole configuration as nested dictionaries, as `config.yaml` has it.
        """

    def on_log_steps(self, values: dict[str, float]) -> None:
        """The means of a log interval.

        Args:
            values: a "train" line of metrics.jsonl: epoch and step (both from 1), lr, loss and each of its terms,
                images_per_second, waited (share of the time spent waiting for images) and, in float16, loss_scale.
        """

    def on_evaluation(self, values: dict[str, Any]) -> None:
        """An evaluation.

        Args:
            values: an "eval" line of metrics.jsonl: epoch (0: the start), step, recall1, recall5, mAP, peak_memory_mib
                and, with Train.validation=split, set: "validation".
        """

    def on_checkpoint(self, values: dict[str, float]) -> None:
        """The checkpoint of a finished epoch has been copied from the device; a thread may still be writing its files.

        Args:
            values: a "save" line of metrics.jsonl: epoch, step, seconds that training waited, epoch_seconds.
        """

    def on_end(self, status: Status, result: dict[str, Any]) -> None:
        """The run has ended; every `on_start` is followed by one `on_end`.

        Args:
            status: "finished", "interrupted" or "failed".
            result: the content of train_result.json if the run has finished, else err_type, err_code and err_msg.
        """


_METHODS = ("on_start", "on_log_steps", "on_evaluation", "on_checkpoint", "on_end")


class CallbackList:
    """Calls several callbacks in turn. Their exceptions become TrainingErrors."""

    def __init__(self, callbacks: Sequence[TrainingCallback]):
        """Raises ConfigError for an object that lacks one of the methods."""
        self._callbacks = tuple(callbacks)
        self.started = False
        for callback in self._callbacks:
            missing = [name for name in _METHODS if not callable(getattr(type(callback), name, None))]
            if missing:
                raise ConfigError(
                    f"{callback!r} is not a callback: it has no {', '.join(missing)}.",
                    where="callbacks",
                    fix="Derive its class from paddlex_feat.TrainingCallback, and give an object of the class.",
                    code="not-a-callback",
                )

    def on_record(self, kind: str, values: dict[str, Any]) -> None:
        """Pass on a line of metrics.jsonl."""
        self._call({"train": "on_log_steps", "eval": "on_evaluation", "save": "on_checkpoint"}[kind], values)

    def on_start(self, config: dict[str, Any]) -> None:
        """Pass on the start."""
        self.started = True
        self._call("on_start", config)

    def on_end(self, status: Status, result: dict[str, Any]) -> None:
        """Pass on the end, to all callbacks even if one of them fails."""
        failed = None
        for callback in self._callbacks:
            try:
                CallbackList([callback])._call("on_end", status, result)
            except TrainingError as error:
                failed = failed or error
        if failed:
            raise failed

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, method)(*arguments)
            except FeatError:
                raise
            except Exception as error:
                raise TrainingError(
                    f"The callback {type(callback).__name__} failed in {method} ({type(error).__name__}: {error}).",
                    where="callbacks",
                    fix="Correct it, or train without it. Checkpoints written before are intact.",
                    code="callback-failed",
                ) from error
