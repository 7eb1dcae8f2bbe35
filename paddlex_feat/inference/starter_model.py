"""The inference directory of EfficientNet_Lite0_rec: made once from the starter's weights, then kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import pkgutil
from contextlib import suppress
from pathlib import Path

from paddlex_feat.config.base import STARTER_MODEL
from paddlex_feat.config.recipes import RECIPES
from paddlex_feat.errors import DownloadError, OutputError
from paddlex_feat.fileio.atomic_folder import atomic_folder
from paddlex_feat.hub.cache import ENV_CACHE, cache_folder, cache_to_write, download_lock
from paddlex_feat.hub.starter import SHA256, starter_weights
from paddlex_feat.inference.model_info import folder_problem

log = logging.getLogger(__name__)
_MODELS = "starter_models"  # folder of the cache
# The code that decides what the directory holds: where it changes, the directory is made again.
_MADE_BY = (
    ("paddlex_feat.models", "efficientnet_lite.py"),
    ("paddlex_feat.models", "recognizer.py"),
    ("paddlex_feat.models", "registry.py"),
    ("paddlex_feat.inference.export", "exporter.py"),
)
_COMPARED_IMAGES, _TOLERANCE = 2, 1e-4  # images of noise; the default of Export.tolerance


def starter_model() -> Path:
    """The inference directory of EfficientNet_Lite0_rec, `<cache>/starter_models/<name>-<key>`.

    It is made from the weights of the extra `starter` without any network, compared with them like every export, and
    renamed to its place when it is whole. The key is a hash of weights, recipe and code. A directory in the cache
    needs neither the weights nor the seconds that this takes; processes that start together make one.

    Raises:
        DependencyError: the extra `starter`, or Paddle, is not installed.
        OutputError: the cache cannot be written.
        WeightsError: the weights are damaged, or the graph differs from them.
    """
    part = Path(_MODELS, f"{STARTER_MODEL}-{_key()}")
    with suppress(DownloadError):  # there is no home folder
        if not folder_problem(cache_folder() / part, STARTER_MODEL):
            return cache_folder() / part
    weights = starter_weights()
    folder = cache_to_write() / part
    try:
        with download_lock(folder.parent):
            if folder_problem(folder, STARTER_MODEL):  # else another process has made it meanwhile
                with atomic_folder(folder) as temporary:
                    _make(weights, temporary)
                log.info("%s was made from %s, once: %s", STARTER_MODEL, weights, folder)
    except (OSError, OutputError) as error:
        what = error.what if isinstance(error, OutputError) else f"The cache cannot be written ({error})."
        fix = f"Free space, fix the permissions, or name another cache folder with {ENV_CACHE}."
        raise OutputError(what, where=str(folder), fix=fix, code="cache-unwritable") from error
    return folder


def _key() -> str:
    digest = hashlib.sha256(SHA256.encode())
    digest.update(json.dumps(RECIPES[STARTER_MODEL], sort_keys=True).encode())
    for package, name in _MADE_BY:
        digest.update(pkgutil.get_data(package, name) or b"")
    return digest.hexdigest()[:12]


def _make(weights: Path, folder: Path) -> None:
    """Write the inference directory and compare it with the weights on images of noise."""
    from paddlex_feat.runtime.paddle_import import prepare_paddle

    prepare_paddle()
    import numpy as np
    import paddle

    from paddlex_feat.config.schema import Config
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.data.images.transform_ops import MEAN, STD
    from paddlex_feat.inference.export.exporter import Exporter, require_agreement
    from paddlex_feat.models import recognizer
    from paddlex_feat.models.registry import find_backbone
    from paddlex_feat.models.spec import NetworkSpec
    from paddlex_feat.models.weights import load

    config = Config.model_validate(RECIPES[STARTER_MODEL])
    size, backbone = config.Train.input_size, find_backbone(config.Model.backbone)
    preprocess = Preprocess(size, config.Train.interpolation, backbone.mean or MEAN, backbone.std or STD)
    random = paddle.get_rng_state()  # the caller's, which the fresh weights of the network would advance
    network = recognizer.build(NetworkSpec(**config.Model.model_dump(), input_size=size), num_classes=None)
    paddle.set_rng_state(random)
    load(network, weights, head="ignored")
    exporter = Exporter(network, STARTER_MODEL, preprocess)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    exporter.write(state, folder)
    images = np.random.default_rng(0).integers(0, 256, (_COMPARED_IMAGES, size, size, 3), dtype=np.uint8)
    require_agreement(exporter.largest_difference(state, folder, images, "cpu"), _TOLERANCE, folder)
