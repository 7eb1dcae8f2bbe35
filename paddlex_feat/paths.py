"""Paths as people write them: expand `~`, refuse variables and paths of Windows."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"(?:^|/)\$(?=[\w({])|\$\{|(?:^|/)%\w+%")  # $NAME, $(…), ${…}, %NAME%
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive, or a share


def expand_home(path: str) -> str:
    """`~` and `~user` at the start of a path, replaced by that home folder.

    `~name` is unchanged if the working directory has that name or the system has no such user.
    """
    if path[:1] != "~" or (not re.match("~(/|$)", path) and _exists(path)):
        return path
    if not os.environ.get("HOME", "x"):  # Python takes an empty HOME for /
        return path
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises if there is no such user


def fault(path: str, written: bool = False) -> str:
    """Why a path cannot be used literally after `expand_home`; "" if it can, or if it exists under that name.

    Args:
        written: the path is about to be created, which would hide a mistake.
    """
    if path[:1] == "~" and not _exists(path.partition("/")[0]):
        home = path.partition("/")[0]
        return f"there is no user {home[1:]!r}" if home != "~" else "there is no home folder for ~; write it in full"
    found = _VARIABLE.search(path)
    if found and not _exists(re.match("/*[^/]*", path[found.start() :])[0], path[: found.start()]):  # type: ignore[index]
        expanded = os.path.expandvars(re.sub(r"%(\w+)%|\$\{oc\.env:(\w+)\}", r"${\1\2}", path))
        meant = f" write {expanded}" if not _VARIABLE.search(expanded) else " write the path in full"
        return f"variables are not expanded here;{meant}"
    if os.name == "nt" or not ("\\" in path or _WINDOWS.match(path)) or _exists(path):
        return ""
    if _WINDOWS.match(path):
        rest = path[2:].replace("\\", "/").lstrip("/")
        meant = f", such as /mnt/{path[0].lower()}/{rest}" if path[1] == ":" else ""
        return f"it is a path of Windows; write one of this system{meant}"
    meant = path.replace("\\", "/")
    return f"folders are separated by / here; write {meant}" if written else ""


def _exists(name: str, folder: str = "") -> bool:
    try:
        return os.path.lexists(folder + name)
    except ValueError:
        return False
