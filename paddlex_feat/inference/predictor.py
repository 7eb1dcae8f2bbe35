"""The Python API: `create_model(...).predict(...)`."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.images.decode import IsLargeEnough
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.loading.loader import prefetch_map_then
from paddlex_feat.errors import ConfigError, DownloadError, FeatError, ImageError, WeightsError
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.fileio.paths import expand_home
from paddlex_feat.inference.engines.options import resolve_engine_options
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.identity import ModelIdentity, identity_of, stamps_of
from paddlex_feat.inference.inputs.items import InputIteratorError, Item, is_slow_source, iter_images
from paddlex_feat.inference.inputs.paths import Search
from paddlex_feat.inference.mirror import MirrorAverage
from paddlex_feat.inference.model_info import PREFIX, models_within, read_info
from paddlex_feat.inference.model_zoo import official_model
from paddlex_feat.inference.results import Failed, FeatureResult, OutputNames
from paddlex_feat.inference.rounds import Outcome, Rounds
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.opencv import silent_opencv

log = logging.getLogger(__name__)
View = Callable[[np.ndarray], Any]
_GPU_BATCH = 32  # where no batch size is given
_CPU_SHARE = 64  # images at least that a process of a job computes between two exchanges
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
    trust_graph: bool = False,
    mirror: bool = False,
    group: ProcessGroup | None = None,
) -> Predictor:
    """A feature extractor from an inference directory.

    Args:
        model_name: must be the one in the directory's inference.yml.
        model_dir: folder with inference.json (or .pdmodel), .pdiparams and inference.yml. For the engine onnx
            inference.yml and inference.onnx suffice, for openvino inference.yml and inference.xml; then Paddle is not
            needed. None: the official model; of EfficientNet_Lite0_rec the one that is made from the extra `starter`.
        device: "cpu", "gpu:N" or None for the first visible GPU, else the CPU.
        batch_size: images computed together, see `Predictor.predict`, which can override it; None: 32 on a GPU, else 1.
        engine: "paddle" (None), "onnx", "openvino", one of another package, or "auto" for the fastest that is
            installed.
        precision: "fp32" (None), "bf16" or "fp16", if engine and processor have it.
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 of their size. It changes features: see docs/predict.md.
        engine_config: PaddleX's settings of an engine, see `resolve_engine_options`.
        pp_option: the same keys as a dictionary, or an object with such attributes.
        use_hpip: take the fastest engine, or the one that `hpi_config` names.
        hpi_config: PaddleX's settings for `use_hpip`, see `resolve_engine_options`.
        trust_graph: run the Paddle graph even if it has operators that are not on the allow-list. They can read and
            write files, so use it only for a model from a source that you trust.
        mirror: average the features of each image and its mirror image, see `MirrorAverage`.
        group: the processes of a job that share the images of rank 0, see `Predictor.work`.

    Raises WeightsError if the directory cannot be used, ConfigError for settings that do not exist or contradict
    each other, DownloadError, DeviceError, DependencyError.
    """
    options = resolve_engine_options(engine, precision, threads, device, engine_config, pp_option, use_hpip, hpi_config)
    folder = _official(model_name) if model_dir is None else given_model(os.fspath(model_dir))
    stamps = stamps_of(folder)
    info = read_info(folder)
    if info.name != model_name:
        raise WeightsError(
            f"The directory holds {info.name}, not {model_name}.",
            where=str(folder),
            fix=f"Use the model name {info.name}, or another directory.",
            code="model-name-differs",
        )
    options = replace(options, trust_graph=trust_graph)
    extractor = FeatureExtractor(
        folder,
        options.device,
        options.threads,
        engine=options.engine,
        precision=options.precision,
        trust_graph=trust_graph,
    )
    arguments = {
        "model_name": model_name,
        "model_dir": None if model_dir is None else str(Path(expand_home(os.fspath(model_dir))).absolute()),
        **asdict(options),
        "engine": extractor.engine.name,  # what auto has chosen
        "fast_decode": fast_decode,
        "mirror": mirror,
    }
    return Predictor(extractor, batch_size, fast_decode, arguments, mirror, group, stamps)


def _official(model_name: str) -> Path:
    log.info("model_dir is null: the official model %s is used.", model_name)
    return official_model(model_name)


def given_model(model_dir: str) -> Path:
    """The existing folder that `model_dir` names. Raises WeightsError that suggests what was meant, ConfigError."""
    text = expand_home(model_dir)
    if not text.strip():
        fix = "Give the folder of an exported model, or null (None in Python) for the official model."
        raise ConfigError("model_dir is empty.", where="model_dir", fix=fix, code="model-dir-empty")
    folder = resolve_during_swap(Path(text))
    if folder.is_dir():
        return folder
    is_file = folder.is_file()
    nearby: list[str] = []
    if is_file or folder.name == PREFIX:  # Paddle takes the prefix of the model's files
        here = (folder.parent / f"{PREFIX}.yml").is_file()
        nearby = [str(folder.parent)] if here else models_within(folder.parent)
    if is_file and not text.lower().endswith(lookup.ARCHIVES):
        what = f"The inference directory cannot be used. {text} is a file, not a folder."
    else:
        what = lookup.problem("The inference directory", text, "folder")
    fix = f"Give {nearby[0]}." if nearby else f"Give a folder with {PREFIX}.yml, as mode export and training write it."
    raise WeightsError(what, where=f"model_dir={text}", fix=fix, code="model-dir-missing")


class Predictor:
    """Extracts features; made by `create_model`. Calling it is the same as calling `predict`.

    Pickling and copying keep the arguments of `create_model`; the copy is made from them, also in another process.

    Args:
        extractor: pixels to features.
        batch_size: images computed together; None: 32 on a GPU, else 1.
        fast_decode: decode large JPEGs at a reduced size.
        arguments: those of `create_model` that make such a model; None: it cannot be pickled or copied.
        mirror: average the features of each image and its mirror image.
        group: the processes of a job that share the images of rank 0, see `work`.
        stamps: of the model's files before they were loaded (`stamps_of`); None: they do not change.

    Attributes:
        batch_size: images computed together; setting anything but a whole number of at least 1 raises ConfigError.
        failed: (path, or location such as "input[3]", counted from 0; what is wrong) of every input that the last call
            of `predict` could not use, with advice in the attribute `fix`. The reason begins with file:line for a name
            from a text file. Each call makes a list of its own: read it right after the call. Threads that share a
            Predictor cannot tell whose call was the last.
        left_out: files of that call's folders that were not read, counted by reason, as in {".txt files": 1}.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int | None = None,
        fast_decode: bool = False,
        arguments: Mapping[str, Any] | None = None,
        mirror: bool = False,
        group: ProcessGroup | None = None,
        stamps: Mapping[str, tuple[int, ...]] | None = None,
    ):
        self._stamps = stamps
        self._arguments = arguments
        self._group = group or ProcessGroup()
        self._extractor = extractor
        self._features_of = MirrorAverage(extractor) if mirror else extractor
        self._batch_size = None if batch_size is None else _positive(batch_size)
        self._is_large_enough = _is_large_enough_for(extractor.preprocess.size) if fast_decode else None
        self._ways = {"mirror": mirror, "fast_decode": fast_decode}
        self._identity: ModelIdentity | None = None
        self.failed: list[Failed] = []
        self.left_out: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Callable[..., Predictor], tuple[()], dict[str, Any]]:
        if self._arguments is None:
            raise TypeError("a Predictor that was not made by create_model cannot be pickled or copied")
        make = partial(create_model, **self._arguments, batch_size=self._batch_size)
        return make, (), {"failed": self.failed}

    @property
    def identity(self) -> ModelIdentity:
        """What features of this model can be compared with. Computed once, by an image of zeros and a hash.

        Raises WeightsError if the model's files are no longer those that were loaded.
        """
        if self._identity is None:
            side = self._extractor.preprocess.size
            rows = self._features_of(np.zeros((1, side, side, 3), np.uint8))
            folder = self._extractor.folder
            identity = identity_of(folder, rows.shape[1], **self._ways)
            if self._stamps is not None and self._stamps != stamps_of(folder):
                raise WeightsError(
                    "The files of the model have been replaced since it was loaded.",
                    where=str(folder),
                    fix="Load it again.",
                    code="model-replaced",
                )
            self._identity = identity
        return self._identity

    def reduce(self, image: np.ndarray) -> np.ndarray:
        """A decoded image, uint8 [H, W, 3] in BGR order, as `features_of` takes it: uint8 [S, S, 3], RGB."""
        return cv2.cvtColor(self._extractor.preprocess.resize(image), cv2.COLOR_BGR2RGB)

    def features_of(self, images: np.ndarray) -> np.ndarray:
        """Features of images that `reduce` gave, uint8 [N, S, S, 3] -> float32 [N, D]. For one thread at a time."""
        return self._features_of(images)

    @property
    def batch_size(self) -> int:
        """Images computed together: the number that was given, else 32 on a GPU and 1 on a CPU."""
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
                {"img": …, "box": [x1, y1, x2, y2]} or "boxes": several of them, in pixels, gives a result for each.
                An iterator is read three batches ahead at most; an array must not change before its result is there.
            batch_size: images computed together, for later calls too. On a CPU at least 8 are, which is faster,
                unless the input has a URL or an iterator, whose next image may take long. Without any batch size:
                32 on a GPU, and 1 on a CPU and with such inputs.
            on_error: what to do about an input that cannot be used: "raise" its ImageError or DownloadError after
                the results before it, or "skip" it: log it, add it to `failed` and continue.

        Threads decode ahead of the engine, and the engine computes ahead of the caller; they and their downloads end
        with the iterator. An exception of an iterator among the inputs is raised unchanged, after the
        results before it. Raises ConfigError at once for a wrong batch_size or on_error.
        """
        if batch_size is not None:
            self.batch_size = batch_size
        if on_error not in ("raise", "skip"):
            raise ConfigError(
                f"on_error must be 'raise' or 'skip', got {on_error!r}.", where="on_error", code="on-error-invalid"
            )
        search = Search()
        failed: list[Failed] = []
        self.failed, self.left_out = failed, search.left_out
        if is_slow_source(input):
            size = self._batch_size or 1
        else:
            size = max(self.batch_size, self._extractor.engine.micro_batch)
        return self._results(iter_images(input, search), size, on_error == "skip", failed)

    __call__ = predict

    def _results(
        self, stream: Iterator[Item], batch_size: int, skip: bool, failed: list[Failed]
    ) -> Generator[FeatureResult, None, None]:
        with closing(self._results_with(stream, batch_size, skip, failed, None)) as results:
            for result, _ in results:
                yield result

    def predict_with(
        self, input: Any, view: View | None, batch_size: int | None = None, on_error: str = "raise"
    ) -> Generator[tuple[FeatureResult, Any], None, None]:
        """As `predict`, each result with what `view` makes of its decoded image, uint8 [H, W, 3] in BGR order.

        An iterator is read in whole batches here too. `view` is called in the decoding threads; None: nothing is seen.
        """
        search, failed = Search(), list[Failed]()
        self.failed, self.left_out = failed, search.left_out
        size = max(batch_size or self.batch_size, self._extractor.engine.micro_batch)
        return self._results_with(iter_images(input, search), size, on_error == "skip", failed, view)

    def work(self, view: View | None = None) -> None:
        """On another rank than 0: compute what rank 0 deals out of the input of its next call, until that ends.

        Args:
            view: that of rank 0's `predict_with`, whose values have to be bytes or None; None for `predict`.
        """
        for _ in self._outcomes(iter(()), 1, view):
            pass

    def _results_with(
        self, stream: Iterator[Item], batch_size: int, skip: bool, failed: list[Failed], view: View | None
    ) -> Generator[tuple[FeatureResult, Any], None, None]:
        names, number, process = OutputNames(), 0, os.getpid()
        with closing(self._outcomes(stream, batch_size, view)) as outcomes:
            for item, outcome, seen in outcomes:
                if isinstance(outcome, Exception):
                    _record_failure(item, outcome, skip, failed)
                    continue
                number += 1
                name = names.next(item.input_path, item.page_index)
                result = FeatureResult(item.input_path, outcome, name, number, item.page_index, item.box, item.element)
                yield result, seen
                if process != os.getpid():
                    raise FeatError(
                        "This iterator was started before the process was forked; its threads do not exist here.",
                        where=item.name,
                        fix="Call predict in this process.",
                        code="forked-iterator",
                    )

    def _outcomes(
        self, stream: Iterator[Item], batch_size: int, view: View | None = None
    ) -> Generator[Outcome, None, None]:
        """Every item with its feature, or with the error that prevented it, and with what `view` makes of it."""
        cancel = threading.Event()
        load = partial(self._load, view=view, cancel=cancel)
        rounds, threads = Rounds(self._group), max(1, cpu_count() // self._group.local_size)
        if self._group.size > 1 and self._extractor.engine.device == "cpu":
            batch_size = max(batch_size, _CPU_SHARE)
        # A thread waits for the engine while the caller decides what to read next and uses the results.
        done = prefetch_map_then(rounds.own(stream, batch_size), load, threads, self._compute, cancel.set)
        with closing(done), silent_opencv():
            for outcomes in done:
                yield from rounds.gathered(outcomes)

    def _load(self, item: Item, view: View | None, cancel: threading.Event) -> tuple[np.ndarray | Exception, Any]:
        resize, enough = self._extractor.preprocess.resize, self._is_large_enough
        try:
            if view is None:
                return item.load(resize, enough, cancel), None
            image = item.decode(enough, cancel)
            return cv2.cvtColor(resize(image), cv2.COLOR_BGR2RGB), view(image)
        except Exception as error:  # noqa: BLE001 - raised after the results before it
            return error, None

    def _compute(self, batch: Sequence[Item], loaded: list[tuple[np.ndarray | Exception, Any]]) -> list[Outcome]:
        images = [image for image, _ in loaded if not isinstance(image, Exception)]
        rows = self._features_of(np.stack(images)) if images else np.empty((0, 0), np.float32)
        if not np.isfinite(rows).all():
            raise WeightsError(
                "The model gives features that are not finite.",
                where=batch[0].name,
                fix="Evaluate the weights; with half precision, compute in float32.",
                code="features-not-finite",
            )
        features = iter(rows)
        outcomes: list[Outcome] = []
        for item, (image, seen) in zip(batch, loaded, strict=True):
            outcomes.append((item, image if isinstance(image, Exception) else next(features), seen))
        return outcomes


def _record_failure(item: Item, error: Exception, skip: bool, failed: list[Failed]) -> None:
    """Add an input that cannot be used to `failed`. Raises its error unless `skip`, and any other error always."""
    if isinstance(error, InputIteratorError):
        raise error.error
    if not isinstance(error, (ImageError, DownloadError)):
        raise error
    what = f"{item.line}: {error.what}" if item.line else error.what
    failed.append(Failed(item.name, what, error.fix, item.element))
    if not skip:
        raise error
    log.warning("%s: %s Skipped.", item.name, what)


def _is_large_enough_for(size: int) -> IsLargeEnough:
    side = _FAST_SIDES * size
    return lambda width, height: min(width, height) >= side


def _positive(batch_size: int) -> int:
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        what = f"batch_size must be a whole number of at least 1, got {batch_size!r}."
    elif batch_size > sys.maxsize:
        what = f"batch_size is at most {sys.maxsize}, got {batch_size!r}."
    else:
        return int(batch_size)
    raise ConfigError(what, where="batch_size", code="batch-size-invalid")
