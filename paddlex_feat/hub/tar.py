"""Unpacking a tar archive that may be damaged or hostile."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path, PurePosixPath

from paddlex_feat.errors import WeightsError

# tarfile before 3.12.6 searches a header in quadratic time (CVE-2024-6232): 8 KiB take it 0.1 s, 1 MiB half an hour.
_MAX_READ_BYTES = 2**13
_MAX_DEPTH = 20  # folders in one another; shutil.rmtree is recursive up to Python 3.12
# In a folder of its own, only an archive that contradicts itself, or the file system, can cause these.
_CLASHES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ}


class _Archive(io.BufferedReader):
    """Refuses to be read in one piece: tarfile would take a header of any declared length into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header declares {size} bytes")
        return super().read(size)


def unpack_tar(archive: Path, target: Path, max_bytes: int, max_files: int) -> None:
    """Unpack the folders and regular files of a plain tar archive into `target`, which must not exist yet.

    The contents are flushed to the disk. Owners, permissions and times are not taken over. On an error,
    what has been unpacked so far stays in `target`.

    Args:
        archive: the tar file, not compressed.
        target: the folder to create.
        max_bytes: bound for all contents together.
        max_files: bound for the number of entries, folders too.

    Raises WeightsError, which says why, for an archive that is damaged or incomplete, exceeds a bound, or
    holds a link, a device, a sparse file, a name twice, or a path that leads out of `target`. OSError if
    the files cannot be written.
    """
    target.mkdir(parents=True)
    try:
        with _Archive(io.FileIO(archive)) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            left = max_bytes
            for number, member in enumerate(tar, start=1):
                if number > max_files:
                    raise tarfile.ReadError(f"it holds more than {max_files} files")
                left -= _checked_size(member, left)
                _unpack(tar, member, target)
            # A header that is not understood ends the loop, as the two empty blocks of the true end do.
            stream.seek(tar.offset)
            if stream.read(1024) != bytes(1024):
                raise tarfile.ReadError("its end is missing")
    except OSError as error:
        if error.errno in _CLASHES:
            raise _refusal(archive, f"its names clash ({error.strerror}: {error.filename!r})") from error
        raise
    except Exception as error:  # tarfile's own, and whatever else a damaged header makes of it
        raise _refusal(archive, str(error) or type(error).__name__) from error


def _refusal(archive: Path, why: str) -> WeightsError:
    with archive.open("rb") as stream:
        begin = stream.read(40).rstrip(b"\0")
    return WeightsError(
        f"The archive is no sound tar file: {why[:200]}. It begins with {begin!r}.",
        where=str(archive),
        fix="Download it again.",
        code="archive-invalid",
    )


def _checked_size(member: tarfile.TarInfo, left: int) -> int:
    """The bytes that a member takes; ReadError for what must not be unpacked."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.ReadError(f"the path {member.name!r} leads out of it")
    if len(path.parts) > _MAX_DEPTH:
        raise tarfile.ReadError(f"{member.name[:40]!r}… lies in more than {_MAX_DEPTH} folders")
    if member.isdir():
        return 0
    if not member.isreg() or member.issparse():
        raise tarfile.ReadError(f"{member.name!r} is neither a folder nor a regular file")
    if not 0 <= member.size <= left:
        raise tarfile.ReadError(f"{member.name!r} exceeds the bound for all contents together")
    return member.size


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    path = target / member.name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # a regular file
    with source, path.open("xb") as copy:
        left = member.size
        while left:
            chunk = source.read(min(left, _MAX_READ_BYTES))
            if not chunk:
                raise tarfile.ReadError(f"{member.name!r} is cut off")
            copy.write(chunk)
            left -= len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
