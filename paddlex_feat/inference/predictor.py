"""The Python API: `create_model(...).predict(...)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.info import read_info
from paddlex_feat.inference.inputs import Item, items
from paddlex_feat.inference.official import official_model
from paddlex_feat.inference.results import FeatureResult, FileStems
from paddlex_feat.inference.settings import engine_settings
from paddlex_feat.pipeline.loader import map_ahead
from paddlex_feat.runtime import cpu_count


def create_model(
    model_name: str,
    model_dir: str | Path | None = None,
    device: str | None = None,
    batch_size: int = 1,
    engine: str | None = None,
    *,
    precision: str | None = None,
    threads: int = 0,
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
        batch_size: images per call of the engine; `predict` can override it.
        engine: "paddle" (None), "onnx", "openvino", or "auto" for the fastest that is installed.
        precision: "fp32" (None), "bf16" or "fp16", where engine and processor have it.
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        engine_config, pp_option, use_hpip, hpi_config: PaddleX's ways to say the same, see `engine_settings`.

    Raises WeightsError if the directory cannot be used, ConfigError for settings that do not exist or contradict
    each other, DownloadError, DeviceError, DependencyError.
    """
    wanted = engine_settings(engine, precision, threads, device, engine_config, pp_option, use_hpip, hpi_config)
    folder = official_model(model_name) if model_dir is None else Path(model_dir)
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
    return Predictor(extractor, batch_size)


class Predictor:
    """Extracts features; made by `create_model`."""

    def __init__(self, extractor: FeatureExtractor, batch_size: int = 1):
        self._extractor = extractor
        self.batch_size = _positive(batch_size)

    def predict(self, input: Any, batch_size: int | None = None) -> Iterator[FeatureResult]:
        """Features of all images of `input`, one result each, in input order, as they are ready.

        Args:
            input: image file, folder (recursive), URL, uint8 array (HWC in BGR order, grey or BGRA),
                a dict {"img": any of these}, or a list or iterator of these, nested at will.
            batch_size: images per call of the engine; it stays for later calls.

        Decoding runs in threads ahead of the engine. Raises ImageError naming the input.
        """
        if batch_size is not None:
            self.batch_size = _positive(batch_size)
        return self._results(_batched(items(input), self.batch_size))

    def _results(self, groups: Iterator[list[Item]]) -> Iterator[FeatureResult]:
        resize = self._extractor.info.preprocess.resize
        stems, number = FileStems(), 0
        for group, images in map_ahead(groups, lambda item: resize(item.read()), cpu_count()):
            for item, feature in zip(group, self._extractor(np.stack(images)), strict=True):
                number += 1
                yield FeatureResult(item.input_path, feature, stems.of(item.input_path), number)


def _batched(stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(stream, size)):
        yield group


def _positive(batch_size: int) -> int:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.", where="batch_size")
    return batch_size
