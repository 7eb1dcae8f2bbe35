"""Paths as people write them: expand `~`, refuse variables and paths of Windows."""

from __future__ import annotations

import os
import re

# $(…), ${…}; $NAME and %NAME% where a part of the path begins so, or in capitals, or of a variable that is set.
_VARIABLE = re.compile(r"\$[({]|\$(\w+)|%(\w+)%")
_WINDOWS = re.compile(r"[A-Za-z]:|\\\\")  # a drive, or a share
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]+):/")


def expand_home(path: str) -> str:
    """`~` and `~user` at the start of a path, replaced by that home folder.

    `~name` is unchanged if the working directory has that name or the system has no such user.
    """
    if path[:1] != "~" or (not re.match("~(/|$)", path) and _exists(path)):
        return path
    if not os.environ.get("HOME", "x"):  # Python takes an empty HOME for /
        return path
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises if there is no such user


def fault(path: str, written: bool = False, addresses: bool = False) -> str:
    """Why a path cannot be used literally after `expand_home`; "" if it can, or if it exists under that name.

    Args:
        path: the path after `expand_home`.
        written: the path is about to be created, which would hide a mistake.
        addresses: an address such as file:///a is understood where the path is read.
    """
    if path[:1] == "~" and not _exists(path.partition("/")[0]):
        home = path.partition("/")[0]
        return f"there is no user {home[1:]!r}" if home != "~" else "there is no home folder for ~; write it in full"
    address = _ADDRESS.match(path)
    if address and not addresses and not _exists(path):
        meant = f"; write /{path[5:].lstrip('/')}" if address[1].lower() == "file" else ""
        return f"it is an address, and a path of this machine is needed{meant}"
    if any(_is_variable(found, path) for found in _VARIABLE.finditer(path)):
        expanded = os.path.expandvars(re.sub(r"%(\w+)%|\$\{oc\.env:(\w+)\}", r"${\1\2}", path))
        meant = f" write {expanded}" if not _VARIABLE.search(expanded) else " write the path in full"
        return f"variables are not expanded here;{meant}"
    if written and "`" in path and not _exists(path):
        return "commands are not run here; write the path in full"
    return "" if _exists(path) else _of_windows(path, written)


def _is_variable(found: re.Match[str], path: str) -> bool:
    """Whether a `$` or `%` begins a variable; not if the part of the path that it stands in exists."""
    end = path.find("/", found.end())
    if _exists(path if end < 0 else path[:end]):
        return False
    name = found[1] or found[2]
    begins = found.start() == 0 or path[found.start() - 1] == "/"
    return name is None or begins or name in os.environ or bool(re.fullmatch("[A-Z][A-Z0-9_]+", name))


def _of_windows(path: str, written: bool) -> str:
    if os.name == "nt":
        return ""
    if _WINDOWS.match(path) and (written or path[2:3] in ("", "/", "\\") or path[1] != ":"):
        rest = path[2:].replace("\\", "/").lstrip("/")
        meant = f", such as /mnt/{path[0].lower()}/{rest}" if path[1] == ":" else ""
        return f"it is a path of Windows; write one of this system{meant}"
    meant = path.replace("\\", "/")
    return f"folders are separated by / here; write {meant}" if written and meant != path else ""


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False
