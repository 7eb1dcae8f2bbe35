"""`main.py compare A B`: how similar two pictures are."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.errors import ConfigError
from paddlex_feat.inference.model_info import read_info

DEFAULT = "EfficientNet_Lite0_rec"
EPILOG = """prints the cosine similarity of the features of two pictures, from -1 to 1: 1 is the same picture. How much
is enough depends on the model and on what is compared; a gallery finds it (Search.threshold: auto).

exit codes: 0 done; 1 a picture or the model cannot be used; 2 the command line is not understood.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; the similarity goes to standard output. Returns the exit code.

    Raises FeatError for a picture or a model that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="main.py compare", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("A", "B"):
        parser.add_argument(name.lower(), metavar=name, help="a picture: a path, or PATH[x1,y1,x2,y2] for a part of it")
    parser.add_argument("--model", help=f"name of the model (default: that of --model_dir, else {DEFAULT})")
    parser.add_argument("--model_dir", type=Path, help="inference directory, such as output/best_model/inference")
    given = parser.parse_args(words)
    images = [read_bgr(_source(text)) for text in (given.a, given.b)]

    from paddlex_feat.inference.predictor import create_model

    name = given.model or (DEFAULT if given.model_dir is None else read_info(given.model_dir).name)
    model = create_model(name, given.model_dir)
    one, other = (result.feature.astype(np.float64) for result in model.predict(images))
    print(f"{float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))):.4f}")
    return 0


def _source(text: str) -> str | ImageSource:
    """A path, or the part of a picture that PATH[x1,y1,x2,y2] names. Raises ConfigError for a part without numbers."""
    path, bracket, corners = text.removesuffix("]").rpartition("[")
    if not bracket or not text.endswith("]") or _is_file(text):
        return text
    try:
        box = Box(*map(float, corners.split(",")))
        if not all(map(math.isfinite, box)):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(
            f"The part [{corners}] does not have four numbers.",
            where=text,
            fix="Give PATH[x1,y1,x2,y2], in pixels.",
            code="box-invalid",
        ) from None
    return ImageSource(text, path, box=box)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False
