"""The Python API: `create_model(...).predict(...)`."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.images.decode import SizeTest
from paddlex_feat.data.loading.loader import prefetch_map_then
from paddlex_feat.errors import ConfigError, DownloadError, FeatError, ImageError, WeightsError
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.fileio.paths import expand_home
from paddlex_feat.inference.engines.options import engine_settings
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.input_paths import Search
from paddlex_feat.inference.inputs import Item, StreamFault, items, may_wait
from paddlex_feat.inference.model_info import PREFIX, models_within, read_info
from paddlex_feat.inference.model_zoo import official_model
from paddlex_feat.inference.results import Failed, FeatureResult, FileStems
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.opencv import silent_opencv

log = logging.getLogger(__name__)
Outcome = tuple[Item, np.ndarray | Exception]
_GPU_BATCH = 32  # where no batch size is given
_FAST_SIDES = 2  # what a reduced image must have of the network's side: see docs/predict.md, fast_decode


def create_model(
    model_name: str,
    model_dir: str | Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    engine: str | None = None,
    *,
    precision: str | None = None,
    threads: int = 0,
    fast_decode: bool = False,
    engine_config: Mapping[str, Any] | None = None,
    pp_option: Any = None,
    use_hpip: bool = False,
    hpi_config: Mapping[str, Any] | None = None,
) -> Predictor:
    """A feature extractor from an inference directory.

    Args:
        model_name: must be the one in the directory's inference.yml.
        model_dir: folder with inference.json (or .pdmodel), .pdiparams and inference.yml; the engines onnx and
            openvino need inference.yml and inference.onnx or .xml alone, and no Paddle, where these are there.
            None: the official model.
        device: "cpu", "gpu:N" or None for the first visible GPU, else the CPU.
        batch_size: images computed together, see `Predictor.predict`, which can override it; None: 32 on a GPU, else 1.
        engine: "paddle" (None), "onnx", "openvino", or "auto" for the fastest that is installed.
        precision: "fp32" (None), "bf16" or "fp16", where engine and processor have it.
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size. It changes features: see docs/predict.md.
        engine_config, pp_option, use_hpip, hpi_config: PaddleX's ways to say the same, see `engine_settings`.

    Raises WeightsError if the directory cannot be used, ConfigError for settings that do not exist or contradict
    each other, DownloadError, DeviceError, DependencyError.
    """
    wanted = engine_settings(engine, precision, threads, device, engine_config, pp_option, use_hpip, hpi_config)
    folder = _official(model_name) if model_dir is None else _given(os.fspath(model_dir))
    info = read_info(folder)
    if info.name != model_name:
        raise WeightsError(
            f"The directory holds {info.name}, not {model_name}.",
            where=str(folder),
            fix=f"Use the model name {info.name}, or another directory.",
        )
    extractor = FeatureExtractor(
        folder, wanted.device, wanted.threads, engine=wanted.engine, precision=wanted.precision
    )
    again = {
        "model_name": model_name,
        "model_dir": None if model_dir is None else str(Path(expand_home(os.fspath(model_dir))).absolute()),
        **asdict(wanted),
        "engine": extractor.engine.name,  # what auto has chosen
        "fast_decode": fast_decode,
    }
    return Predictor(extractor, batch_size, fast_decode, again)


def _official(model_name: str) -> Path:
    log.info("model_dir is null: the official model %s is used.", model_name)
    return official_model(model_name)


def _given(model_dir: str) -> Path:
    """The folder that `model_dir` names. Raises WeightsError, which says what was probably meant, if it is none."""
    text = expand_home(model_dir)
    folder = resolve_during_swap(Path(text))
    if text.strip() and not folder.is_dir():
        is_file, beside = folder.is_file(), []
        if is_file or folder.name == PREFIX:  # the prefix of the model's files, as Paddle is given it
            holds = (folder.parent / f"{PREFIX}.yml").is_file()
            beside = [str(folder.parent)] if holds else models_within(folder.parent)
        raise WeightsError(
            f"The inference directory cannot be used. {text} is a file, not a folder."
            if is_file and not text.lower().endswith(lookup.ARCHIVES)
            else lookup.problem("The inference directory", text, "folder"),
            where=f"model_dir={text}",
            fix=f"Give {beside[0]}."
            if beside
            else f"Give a folder with {PREFIX}.yml, as mode export and training write it.",
        )
    if not text.strip():
        fix = "Give the folder of an exported model, or null (None in Python) for the official model."
        raise ConfigError("model_dir is empty.", where="model_dir", fix=fix)
    return folder


class Predictor:
    """Extracts features; made by `create_model`. Calling it is the same as calling `predict`.

    Pickled, copied or sent to another process, it is the arguments of `create_model`, by which it is made there.

    Attributes:
        batch_size: images computed together; raises ConfigError if it is set to what is no whole number of at least 1.
        failed: (path, or position as in "input[3]"; what is wrong) of every input that the last call of `predict`
            could not use, with the attribute `fix`, what to do; the position counts from 0. The reason begins with
            file:line for a name from a text file. Each call has a list of
            its own, so where several run in turn, take it right after the call; threads that share a Predictor cannot
            tell whose was the last.
        left_out: what was not read in the folders of that call, counted by reason, as in {".txt files": 1}.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int | None = None,
        fast_decode: bool = False,
        again: Mapping[str, Any] | None = None,
    ):
        """again: arguments of `create_model` that make such a model; without them it cannot be pickled or copied."""
        self._again = again
        self._extractor = extractor
        self._batch_size = None if batch_size is None else _positive(batch_size)
        self._is_large_enough = _is_large_enough_for(extractor.preprocess.size) if fast_decode else None
        self.failed: list[Failed] = []
        self.left_out: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Callable[..., Predictor], tuple[()], dict[str, Any]]:
        if self._again is None:
            raise TypeError("a Predictor that was not made by create_model cannot be pickled or copied")
        make = partial(create_model, **self._again, batch_size=self._batch_size)
        return make, (), {"failed": self.failed}

    @property
    def batch_size(self) -> int:
        if self._batch_size is None:
            return 1 if self._extractor.engine.device == "cpu" else _GPU_BATCH
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self._batch_size = _positive(batch_size)

    def predict(
        self, input: Any, batch_size: int | None = None, on_error: str = "raise"
    ) -> Generator[FeatureResult, None, None]:
        """Features of all images of `input`, one result each, in input order, as their batches are done.

        Args:
            input: image file, folder (recursive), pattern, text file of paths, URL, uint8 array (HWC in BGR order,
                grey or BGRA), PIL image, a dict {"img": any of these}, or a list or iterator of these, nested at will.
                An iterator is read three batches ahead at most; an array must not change before its result is there.
            batch_size: images computed together; it stays for later calls. On a CPU at least 8 are, which is faster,
                unless the input has a URL or an iterator, whose next image may be long in coming. Where none was
                ever given: 32 on a GPU, and 1 on a CPU and with such inputs.
            on_error: what an input does that cannot be used: "raise" its ImageError or DownloadError after the
                results before it, or "skip", which logs it, adds it to `failed` and goes on.

        Decoding runs in threads ahead of the engine, and the engine ahead of the caller; they end with the
        iterator, and downloads too. An exception of an iterator among the inputs comes through, after the
        results before it. Raises ConfigError at once for a wrong batch_size or on_error.
        """
        if batch_size is not None:
            self.batch_size = batch_size
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}.", where="on_error")
        search = Search()
        self.failed, self.left_out = [], search.left_out
        together = max(self.batch_size, self._extractor.engine.piece)
        group = self._batch_size or 1 if may_wait(input) else together
        return self._results(items(input, search), group, on_error == "skip", self.failed)

    __call__ = predict

    def _results(
        self, stream: Iterator[Item], batch_size: int, skip: bool, failed: list[Failed]
    ) -> Generator[FeatureResult, None, None]:
        stems, number, process = FileStems(), 0, os.getpid()
        with closing(self._outcomes(stream, batch_size)) as outcomes:
            for item, outcome in outcomes:
                if not isinstance(outcome, Exception):
                    number += 1
                    stem = stems.of(item.input_path, item.page_index)
                    yield FeatureResult(item.input_path, outcome, stem, number, item.page_index)
                    if process != os.getpid():
                        raise FeatError(
                            "This iterator was begun before the process was forked, and its threads are not here.",
                            where=item.name,
                            fix="Call predict in this process.",
                        )
                elif isinstance(outcome, StreamFault):
                    raise outcome.error
                elif isinstance(outcome, (ImageError, DownloadError)):
                    what = f"{item.line}: {outcome.what}" if item.line else outcome.what
                    failed.append(Failed(item.name, what, outcome.fix))
                    if not skip:
                        raise outcome
                    log.warning("%s: %s Left out.", item.name, what)
                else:
                    raise outcome

    def _outcomes(self, stream: Iterator[Item], batch_size: int) -> Generator[Outcome, None, None]:
        """Every item with its feature, or with what kept it from having one."""
        cancel = threading.Event()
        load = partial(self._load, cancel=cancel)
        # A thread waits for the engine while the caller decides what to read next and uses the results.
        done = prefetch_map_then(_batched(stream, batch_size), load, cpu_count(), self._compute, cancel.set)
        with closing(done), silent_opencv():
            for outcomes in done:
                yield from outcomes

    def _load(self, item: Item, cancel: threading.Event | None = None) -> np.ndarray | Exception:
        try:
            return item.load(self._extractor.preprocess.resize, self._is_large_enough, cancel)
        except Exception as error:  # noqa: BLE001 - raised when the results before it have been given
            return error

    def _compute(self, batch: Sequence[Item], loaded: list[np.ndarray | Exception]) -> list[Outcome]:
        images = [image for image in loaded if not isinstance(image, Exception)]
        rows = self._extractor(np.stack(images)) if images else np.empty((0, 0), np.float32)
        if not np.isfinite(rows).all():
            raise WeightsError(
                "The model gives features that are not finite.",
                where=batch[0].name,
                fix="Evaluate the weights; with half precision, compute in float32.",
            )
        features = iter(rows)
        return [
            (item, o if isinstance(o, Exception) else next(features)) for item, o in zip(batch, loaded, strict=True)
        ]


def _batched(stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(stream, size)):
        yield group


def _is_large_enough_for(size: int) -> SizeTest:
    side = _FAST_SIDES * size
    return lambda width, height: min(width, height) >= side


def _positive(batch_size: int) -> int:
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.", where="batch_size")
    if batch_size > sys.maxsize:
        raise ConfigError(f"batch_size is at most {sys.maxsize}, got {batch_size!r}.", where="batch_size")
    return int(batch_size)
