"""Mode predict: feature vectors of images, printed and saved as JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, ImageError
from paddlex_feat.files import output_errors
from paddlex_feat.inference.inputs import ACCEPTED
from paddlex_feat.inference.predictor import create_model
from paddlex_feat.progress import bar
from paddlex_feat.runtime import first_device

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Print each result to standard output and save it to `<output>/<stem>_res.json`."""
    settings = config.Predict
    if not settings.input:
        raise ConfigError("Nothing to predict.", where="Predict.input", fix="Give an image, a folder, a URL or a list.")
    model = create_model(
        config.Global.model,
        settings.model_dir,
        device=first_device(config.Global.device),
        batch_size=settings.batch_size,
        engine=settings.engine,
        precision=settings.precision,
        threads=config.Global.threads,
        engine_config=settings.engine_config,
        pp_option=settings.kernel_option.model_dump(),
        use_hpip=settings.use_hpip,
        hpi_config=settings.hpi_config,
    )
    saved = []
    with bar(None, "predicting", "images") as progress:
        for result in model.predict(settings.input):
            saved.append(str(result.save_to_json(output).relative_to(output)))
            with output_errors(Path("standard output")):
                result.print(format_json=False)
            progress.update()
    if not saved:
        raise ImageError(
            "The input holds no image.", where=f"Predict.input={settings.input!r}", fix=f"Give {ACCEPTED}."
        )
    log.info("%d images; results in %s/<name>_res.json", len(saved), output)
    return {"images": len(saved), "results": saved}
