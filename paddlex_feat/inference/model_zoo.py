"""The official inference models by name: from PaddleX's cache, else from Paddle's server."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from paddlex_feat.config.base import STARTER_MODEL
from paddlex_feat.errors import DownloadError, FeatError, WeightsError
from paddlex_feat.fileio.backups import backup
from paddlex_feat.hub.cache import cache_folder, cache_to_write, download_lock
from paddlex_feat.hub.fetch import fetch_url, is_absent
from paddlex_feat.hub.tar import unpack_tar
from paddlex_feat.hub.urls import ENV_MIRROR, OFFICIAL, apply_mirror, without_password
from paddlex_feat.inference.model_info import folder_problem
from paddlex_feat.inference.starter_model import starter_model

log = logging.getLogger(__name__)
NAMES = ("PP-ShiTuV2_rec", "PP-ShiTuV2_rec_CLIP_vit_base", "PP-ShiTuV2_rec_CLIP_vit_large", STARTER_MODEL)
_RELEASES = ("paddle3.0.0", "paddle3.0b2")  # the second if the server does not have the first
_MODELS = "official_models"  # folder of the cache
_ARCHIVES = "official_archives"  # folder of the cache for what is not unpacked yet
_MAX_ARCHIVE_BYTES, _MAX_ARCHIVE_FILES = (
    4 * 2**30,
    100,
)  # the largest of the three has about 1.2 GB in a handful of files


def official_model(name: str) -> Path:
    """The inference directory of an official model, `<cache>/official_models/<name>`, where PaddleX has it too.

    A complete folder is used without any network access. Otherwise the model is downloaded, unpacked next to it,
    checked and renamed; a former folder of the name is kept as `.bak`. Other processes that need the
    same model wait for the download.

    The one of EfficientNet_Lite0_rec is made here, from the starter: see `starter_model`.

    Raises WeightsError for a name that is not among NAMES, DownloadError if the model is not in the cache and cannot
    be downloaded, DependencyError if the starter is needed and not installed.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0)[0]
        raise WeightsError(
            f"There is no official model of this name; nearest is {nearest}.",
            where=f"create_model({name!r})",
            fix=f"Use one of {', '.join(NAMES)}, or give model_dir, the folder of an exported model.",
            code="unknown-model",
        )
    if name == STARTER_MODEL:
        return starter_model()
    problem = "there is no home folder"
    with suppress(DownloadError):
        folder = cache_folder() / _MODELS / name
        problem = folder_problem(folder, name)
        if not problem:
            return folder
    cache = cache_to_write()
    folder = cache / _MODELS / name
    try:
        with download_lock(cache / _ARCHIVES / name):
            problem = folder_problem(folder, name)  # another process may have fetched it meanwhile
            if problem:
                log.info("%s is fetched; in the cache, %s: %s.", name, folder, problem)
                _install(name, folder)
    except (FeatError, OSError) as error:
        tried = error.what if isinstance(error, FeatError) else error
        raise DownloadError(
            f"The official model {name} is not in the cache ({problem}) and cannot be fetched. Tried: {tried}",
            where=str(folder),
            fix=f"Give model_dir; or copy the unpacked model to that folder; or set {ENV_MIRROR} to a mirror of "
            f"{OFFICIAL}, HTTPS_PROXY to a proxy, or PADDLE_PDX_CACHE_HOME to a folder that can be written.",
            code="model-unavailable",
        ) from error
    return folder


def _install(name: str, folder: Path) -> None:
    """Download and unpack the model. Raises OSError, and DownloadError that lists each address and its answer."""
    wanted = os.environ.get("PADDLE_PDX_MODEL_SOURCE", "").lower()
    if wanted not in ("", "bos"):
        log.info("PADDLE_PDX_MODEL_SOURCE is %s; BOS is used, for only it carries this model.", wanted)
    tried = []
    for release in _RELEASES:
        address = f"{OFFICIAL}/paddlex/official_inference_model/{release}/{name}_infer.tar"
        try:
            _unpack(fetch_url(address, f"{_ARCHIVES}/{name}", fix=""), name, folder)
            return
        except (DownloadError, WeightsError) as error:
            tried.append(f"{without_password(apply_mirror(address))}: {error.what}")
            if not is_absent(error):
                break
    raise DownloadError(" ".join(tried), code="model-unavailable")


def _unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpack next to `folder`, check, and rename. The archive is removed, unless the disk failed.

    Raises WeightsError, OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{name}.unpacking."
    for killed in folder.parent.glob(f"{prefix}*"):  # no other process is at work here: see download_lock
        shutil.rmtree(killed, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        content = Path(scratch) / "content"
        try:
            unpack_tar(archive, content, _MAX_ARCHIVE_BYTES, _MAX_ARCHIVE_FILES)
            top = content / f"{name}_infer"
            model = top if top.is_dir() else content
            problem = folder_problem(model, name)
            if problem:
                raise WeightsError(f"The archive does not hold the model: {problem}.", code="archive-invalid")
        except WeightsError:  # a login page of a network, half a file: the next run downloads it again
            archive.unlink()
            raise
        if os.path.lexists(folder):
            log.warning("%s was not complete and is now %s.", folder, backup(folder).name)
        model.rename(folder)
    archive.unlink()
