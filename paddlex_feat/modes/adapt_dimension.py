"""Export.dimension: features cut to fewer numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.evaluation.embed import embed
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.modes.build import exporter_of
from paddlex_feat.modes.data import read_lists
from paddlex_feat.modes.worker import MAX_DECODING_THREADS
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.training.adaptation import record as adaptation_file
from paddlex_feat.training.adaptation.maps import AffineMap, evened, principal

if TYPE_CHECKING:  # they import Paddle
    from paddlex_feat.models.recognizer import Recognizer
    from paddlex_feat.modes.trained_model import TrainedNetwork

log = logging.getLogger(__name__)
SAMPLE = 5000  # training images, at most, that directions are fitted to


def require_dimension(dimension: int | None, available: int) -> None:
    """Raise ConfigError if features of `available` numbers cannot be cut to `dimension`."""
    if dimension is not None and dimension > available:
        raise ConfigError(
            f"Features of {available} numbers cannot be cut to {dimension}.",
            where="Export.dimension",
            fix=f"Use at most {available}, or null for all.",
            code="dimension-too-large",
        )


def cut_network(config: Config, trained: TrainedNetwork, device: str) -> Recognizer:
    """Return the network whose features are those of `trained` cut to Export.dimension, which is not null.

    The directions are those of adaptation.npz beside the weights if it belongs to them, else the principal ones of a
    sample of the training images.

    Raises:
        ConfigError: the network has fewer numbers.
        WeightsError: adaptation.npz is damaged.
        DatasetError: images are needed, and Global.dataset_dir has no training list.
    """
    from paddlex_feat.models.projection import project

    dimension = config.Export.dimension
    assert dimension is not None
    require_dimension(dimension, trained.config.Model.embedding_size)
    cut = _recorded_cut(trained.path, dimension) or _principal_cut(config, trained, device, dimension)
    return project(trained.network, cut.matrix, cut.offset)


def _recorded_cut(weights: Path, dimension: int) -> AffineMap | None:
    file = weights.with_name(adaptation_file.NAME)
    if not file.is_file():
        return None
    record = adaptation_file.read(file)
    if record.weights != sha256_file(weights):
        log.warning("%s belongs to other weights: it is not used.", file)
        return None
    log.info("Features are cut to %d numbers by %s.", dimension, file)
    return record.cut(dimension)


def _principal_cut(config: Config, trained: TrainedNetwork, device: str, dimension: int) -> AffineMap:
    threads = config.Global.threads
    files = _sample(config)
    with TemporaryFolder() as folder:
        state = {name: tensor.numpy() for name, tensor in trained.network.state_dict().items()}
        exporter_of(config, trained.config, trained.network).write(state, folder)
        extract = FeatureExtractor(folder, device, threads)
        features = embed(extract, files, config.Evaluate.batch_size, min(cpu_count(), MAX_DECODING_THREADS))
    found, variance = principal(features)
    kept = float(variance[:dimension].sum() / max(variance.sum(), np.finfo(np.float64).tiny))
    text = "Features are cut to %d numbers by PCA of %d training images: %.2f %% of their squared length is kept."
    log.info(text, dimension, len(files), 100 * kept)
    return AffineMap(found.mean, evened(variance, dimension)[:, None] * found.matrix[:dimension])


def _sample(config: Config) -> list[str]:
    """Return SAMPLE training images at most, drawn by Train.seed, in the list's order."""
    try:
        lists = read_lists(config, ("train",))
    except DatasetError as error:
        raise DatasetError(
            f"Export.dimension needs training images to find the directions that matter. {error.what}",
            where=error.where,
            fix="Give the data set with -o Global.dataset_dir=FOLDER, or export weights that were adapted.",
            code="dimension-needs-images",
        ) from error
    files = lists["train"].files()
    rng = np.random.default_rng(config.Train.seed)
    chosen = np.sort(rng.choice(len(files), min(SAMPLE, len(files)), replace=False))
    return [files[i] for i in chosen]
