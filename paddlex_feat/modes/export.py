"""Mode export: from a weight file to an inference directory, proven to answer the same."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import find_root, read_list
from paddlex_feat.errors import DatasetError
from paddlex_feat.files import write_bytes
from paddlex_feat.modes.common import load_trained, preprocess_of
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.pipeline.preprocess import Preprocess

log = logging.getLogger(__name__)
COMPARED_IMAGES = 8


def run(config: Config, output: Path) -> dict[str, Any]:
    """Write inference.json, inference.pdiparams and inference.yml into the output folder."""
    trained = load_trained(config, "Export.weight_path", config.Export.weight_path)
    preprocess = preprocess_of(trained.config)

    from paddlex_feat.inference.export import Exporter, require_agreement

    exporter = Exporter(trained.network, trained.config.Global.model, preprocess)
    images, source = comparison_images(config.Global.dataset_dir, preprocess)
    with tempfile.TemporaryDirectory(prefix="paddlex_feat_") as temporary:
        folder = Path(temporary)
        exporter.write(trained.network.state_dict(), folder)
        difference = exporter.largest_difference(folder, images, trained.device, config.Global.threads)
        log.info("Largest difference to the weights on %s: %.2e", source, difference)
        require_agreement(difference, config.Export.tolerance, output)
        files = sorted(folder.iterdir())
        for file in files:
            write_bytes(output / file.name, file.read_bytes())
    log.info("Inference model: %s", ", ".join(str(output / file.name) for file in files))
    return {
        "weight_path": str(trained.path),
        "files": [file.name for file in files],
        "largest_difference": difference,
        "tolerance": config.Export.tolerance,
        "compared_on": source,
    }


def comparison_images(dataset_dir: str, preprocess: Preprocess) -> tuple[np.ndarray, str]:
    """Up to COMPARED_IMAGES gallery images, uint8 [N, S, S, 3]; noise where no data set is there."""
    try:
        gallery, _ = read_list(find_root(dataset_dir), "gallery")
    except DatasetError:
        gallery = None
    if not gallery:
        shape = (COMPARED_IMAGES, preprocess.size, preprocess.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), f"{COMPARED_IMAGES} random images"
    files = gallery.files()[:COMPARED_IMAGES]
    return np.stack([preprocess.resize(read_rgb(f)) for f in files]), f"{len(files)} gallery images"
