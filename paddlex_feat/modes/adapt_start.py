"""The start of an adaptation: a weight file, or an inference directory alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Protocol

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.export.append import append_map
from paddlex_feat.inference.export.convert import write_forms
from paddlex_feat.inference.model_info import PREFIX, read_info
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.pooling import compared_exponents
from paddlex_feat.models.projection import pooled_by, project
from paddlex_feat.modes.build import exporter_of, preprocess_of
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.weight_paths import require_weights, weight_file
from paddlex_feat.training.adaptation import fold
from paddlex_feat.training.adaptation.maps import AffineMap
from paddlex_feat.training.adaptation.record import Record
from paddlex_feat.training.run_folder import BEST

log = logging.getLogger(__name__)
KEY = "Train.pretrain_weight_path"


class Start(Protocol):
    """A model that can take an affine map of its features.

    Attributes:
        preprocess: of its images.
        exponents: of the pooling, which are compared, the model's own first; one at most: nothing is compared.
    """

    preprocess: Preprocess
    exponents: tuple[float, ...]

    def write_graph(self, folder: Path) -> None:
        """Write the inference directory of the model as it is, in Paddle's form; of all `exponents` side by side."""

    def write_best(self, folder: Path, record: Record, exponent: float | None) -> str:
        """Write the files of best_model into an empty folder: weights, if there are any, and inference/.

        The features are cut to Export.dimension in inference/ alone.

        Args:
            folder: to write into.
            record: the map; unless it is `folded`, it only serves to cut.
            exponent: one of `exponents`; None: there are none.

        Returns the SHA-256 of the weight file, "" without one.
        """


def start_of(config: Config) -> Start:
    """Load what Train.pretrain_weight_path names. Raises ConfigError, WeightsError, DownloadError."""
    path = config.Train.pretrain_weight_path
    if path is None:
        raise ConfigError(
            "There is nothing to adapt without start weights.",
            where=f"{KEY}=null",
            fix=f"Give a weight file or an inference directory with -o {KEY}=PATH.",
            code="adapt-needs-start",
        )
    if not is_url(path) and Path(path).is_dir():
        require_weights(KEY, Path(path), graphs=True)
        return GraphStart(config, Path(path))
    return WeightsStart(config, weight_file(KEY, path, config.Global.model))


class WeightsStart:
    """A weight file: the map goes into the network's last linear layer or 1 x 1 convolution."""

    def __init__(self, config: Config, path: Path):
        self.preprocess = preprocess_of(config)
        self._config = config
        network = recognizer.build(network_spec(config), num_classes=None)
        fold.require_foldable(set(network.state_dict()))
        report = weights.load(network, path, head="optional")
        log.info("Start weights %s: %s", path, report)
        fold.start_neck_as_identity(network, report.reinitialised)
        self._state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        self.exponents = compared_exponents(self._state.get(fold.EXPONENT))
        self._epsilon = float(getattr(getattr(network.neck, "feat_bn", None), "_epsilon", 0.0))

    def write_graph(self, folder: Path) -> None:
        """See `Start`."""
        self._export(self._state, folder, None, self.exponents)

    def write_best(self, folder: Path, record: Record, exponent: float | None) -> str:
        """See `Start`."""
        state = self._state if exponent is None else fold.with_exponent(self._state, exponent)
        if record.folded:
            kept = 1 - self._config.Model.dropout
            state = fold.fold(state, record.map, record.variance, kept, self._epsilon)
        file = folder / f"{BEST}.pdparams"
        weights.write(file, state)
        dimension = self._config.Export.dimension
        (folder / "inference").mkdir()
        self._export(state, folder / "inference", record.cut(dimension) if dimension else None)
        write_forms(folder / "inference", self._config.Export.format)
        return sha256_file(file)

    def _export(
        self, state: fold.State, folder: Path, cut: AffineMap | None, exponents: tuple[float, ...] = ()
    ) -> None:
        network = recognizer.build(network_spec(self._config), num_classes=None)
        network.set_state_dict(state)
        if len(exponents) > 1:
            network = pooled_by(network, exponents)
        if cut is not None:
            network = project(network, cut.matrix, cut.offset)
        exporter = exporter_of(self._config, self._config, network, None if cut is None else len(cut.matrix))
        exporter.write({name: tensor.numpy() for name, tensor in network.state_dict().items()}, folder)


class GraphStart:
    """An inference directory: the map becomes one more layer of its graph."""

    exponents: tuple[float, ...] = ()

    def __init__(self, config: Config, folder: Path):
        self.preprocess = read_info(folder).preprocess
        self._config, self._folder = config, folder
        log.info("Inference model %s: the map becomes a layer behind its output; no weight file is written.", folder)

    def write_graph(self, folder: Path) -> None:
        """See `Start`."""
        for name in (f"{PREFIX}.json", f"{PREFIX}.pdmodel", f"{PREFIX}.pdiparams", f"{PREFIX}.yml"):
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, folder / name)

    def write_best(self, folder: Path, record: Record, exponent: float | None) -> str:
        """See `Start`."""
        target, dimension = folder / "inference", self._config.Export.dimension
        target.mkdir()
        if not (record.folded or dimension):
            self.write_graph(target)
        else:
            mapped = record.leading(dimension) if dimension else record.map
            append_map(self._folder, target, mapped.matrix, mapped.offset, dimension)
        write_forms(target, self._config.Export.format)
        return ""
