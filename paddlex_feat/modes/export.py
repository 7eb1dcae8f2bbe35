"""Mode export: convert a weight file to an inference directory, and compare the two."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference.export.convert import require_forms, write_forms
from paddlex_feat.inference.export.install import install_export
from paddlex_feat.modes.adapt_dimension import cut_network
from paddlex_feat.modes.build import exporter_of, preprocess_of
from paddlex_feat.modes.data import comparison_batches
from paddlex_feat.modes.trained_model import load_trained_network
from paddlex_feat.modes.weight_paths import weight_file
from paddlex_feat.runtime.device import first_device, select_device
from paddlex_feat.runtime.paddle_import import prepare_paddle

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Write inference.json, inference.pdiparams, inference.yml and the other forms asked for into the output folder.

    All files of an earlier export there are renamed, also of forms that are not asked for now: they have other
    weights. The exported weight file is never touched.
    """
    settings, threads = config.Export, config.Global.threads
    require_forms(settings.format)
    path = weight_file("Export.weight_path", settings.weight_path, config.Global.model)
    prepare_paddle(threads)
    device = select_device(first_device(config.Global.device))
    trained = load_trained_network(config, path)

    # They import Paddle, which prepare_paddle has configured.
    from paddlex_feat.inference.export.exporter import require_agreement
    from paddlex_feat.models import weights

    network = trained.network if settings.dimension is None else cut_network(config, trained, device)
    exporter = exporter_of(config, trained.config, network, settings.dimension)
    with TemporaryFolder(output) as folder:
        state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        exporter.write(state, folder)
        write_forms(folder, settings.format)
        batches, source = comparison_batches(config, preprocess_of(trained.config))
        differences = exporter.differences(state, folder, batches, device, threads, settings.format)
        for form, difference in differences.items():
            log.info("%s: largest difference to the weights on %s: %.2e", form, source, difference)
        try:
            for form, difference in differences.items():
                require_agreement(difference, settings.tolerance, output, form)
        except WeightsError as error:
            known = {form: value for form, value in differences.items() if math.isfinite(value)}  # JSON has no NaN
            raise error.with_result({"differences": known, "compared_on": source}) from None
        if settings.save_weights:
            tensors = {n: t for n, t in weights.read(path).items() if isinstance(t, np.ndarray)}
            weights.write(folder / f"weights.{settings.save_weights}", tensors)
        names = install_export(folder, output, path)
    log.info("Inference model: %s", ", ".join(str(output / name) for name in names))
    return {
        "weight_path": str(trained.path),
        "files": names,
        "largest_difference": max(differences.values()),
        "differences": differences,
        "tolerance": settings.tolerance,
        "compared_on": source,
    }
