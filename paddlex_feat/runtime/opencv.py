"""Is the installed OpenCV whole, and new enough?

Its packages share the folder cv2: of two the last one installed wins, and removing either leaves half of the other.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from paddlex_feat.errors import DependencyError
from paddlex_feat.runtime.distributed import ENV_COMMAND

log = logging.getLogger(__name__)
LEAST = (4, 13)  # what setup.cfg asks for, and why: docs/dependencies.md
_OURS = "opencv-python-headless"
_silencing = threading.Lock()
_silenced = _level = 0  # blocks of `silent_opencv` at work; the level before the first of them
_PACKAGES = ("opencv-python", _OURS, "opencv-contrib-python", "opencv-contrib-python-headless")


def require_opencv() -> None:
    """Raise DependencyError, with the command that repairs it, if OpenCV is missing or not whole.

    One that works and is too old, or that belongs to several packages, is one warning.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise _unusable(f"OpenCV cannot be loaded: {error}.") from error
        raise _unusable("OpenCV is not installed.") from None
    except Exception as error:  # a library of the system that is missing, another NumPy than it was built for
        hint = " opencv-python needs it; opencv-python-headless does not." if "libGL" in str(error) else ""
        raise _unusable(f"OpenCV cannot be loaded: {_first_line(error)}.{hint}") from error
    version = getattr(cv2, "__version__", None)
    if version is None or not hasattr(cv2, "imdecode"):
        raise _unusable("OpenCV is not whole; probably several of its packages were installed, and one was removed.")
    found = _installed()
    wanted = ".".join(map(str, LEAST))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST:
        what = f"OpenCV is {version}; {wanted} or newer is needed: older ones crash on damaged images, or pass them"
    elif len(found) > 1:
        what = f"{' and '.join(found)} overwrite each other's files; OpenCV is {version} now"
    else:
        return
    level = logging.DEBUG if ENV_COMMAND in os.environ else logging.WARNING  # a worker's launcher has warned already
    log.log(level, "%s (packages: %s). To repair it: %s", what, ", ".join(found) or "none", _repair(found))


@contextmanager
def silent_opencv() -> Iterator[None]:
    """Within the block OpenCV writes no lines of its own: they name no file, and our errors do.

    A user's OPENCV_LOG_LEVEL is left as it is.
    """
    if "OPENCV_LOG_LEVEL" in os.environ:
        yield
        return
    global _silenced, _level
    import cv2

    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, of OpenCV 5
    with _silencing:
        if not _silenced:
            _level = set_level(0)  # silent
        _silenced += 1
    try:
        yield
    finally:
        with _silencing:
            _silenced -= 1
            if not _silenced:
                set_level(_level)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _installed() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _repair(found: list[str]) -> str:
    """The command that leaves one package installed, for this Python."""
    pip = f"{shlex.quote(sys.executable)} -m pip"
    remove = f"{pip} uninstall -y {' '.join(entry.split()[0] for entry in found)} && " if found else ""
    return f"{remove}{pip} install '{_OURS}>={'.'.join(map(str, LEAST))}'"


def _unusable(what: str) -> DependencyError:
    found = _installed()
    spec: Any = find_spec("cv2") if "cv2" not in sys.modules else sys.modules["cv2"].__spec__
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
    place = next((p for p in reversed(places) if p), "no module cv2")
    return DependencyError(
        what, where=f"{place} (packages: {', '.join(found) or 'none'})", fix=_repair(found), code="opencv-broken"
    )
