"""Mode export: from a weight file to an inference directory, proven to answer the same."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.files import write_keeping
from paddlex_feat.modes.common import comparison_images, load_trained, preprocess_of, weight_file
from paddlex_feat.runtime import first_device, prepare_paddle, select_device

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Write inference.json, inference.pdiparams and inference.yml into the output folder."""
    path = weight_file("Export.weight_path", config.Export.weight_path)
    prepare_paddle(config.Global.threads)
    device = select_device(first_device(config.Global.device))
    trained = load_trained(config, path)
    preprocess = preprocess_of(trained.config)

    from paddlex_feat.inference.export import Exporter, require_agreement

    exporter = Exporter(trained.network, trained.config.Global.model, preprocess)
    images, source = comparison_images(config.Global.dataset_dir, preprocess)
    with tempfile.TemporaryDirectory(prefix="paddlex_feat_") as temporary:
        folder = Path(temporary)
        state = {name: tensor.numpy() for name, tensor in trained.network.state_dict().items()}
        exporter.write(state, folder)
        difference = exporter.largest_difference(state, folder, images, device, config.Global.threads)
        log.info("Largest difference to the weights on %s: %.2e", source, difference)
        require_agreement(difference, config.Export.tolerance, output)
        files = sorted(folder.iterdir())
        for file in files:
            write_keeping(output / file.name, file.read_bytes())
    log.info("Inference model: %s", ", ".join(str(output / file.name) for file in files))
    return {
        "weight_path": str(trained.path),
        "files": [file.name for file in files],
        "largest_difference": difference,
        "tolerance": config.Export.tolerance,
        "compared_on": source,
    }
