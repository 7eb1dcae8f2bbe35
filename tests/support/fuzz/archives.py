"""Tar archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from paddlex_feat.hub.tar import unpack_tar
from support.fuzz.target import Target

_BLOCK = tarfile.BLOCKSIZE


def _tar(*members: tuple[str, bytes | bytes, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../outside" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _sound() -> list[bytes]:
    members = (
        ("m", tarfile.DIRTYPE, b""),
        ("m/a.yml", tarfile.REGTYPE, b"a: 1\n"),
        ("m/b", tarfile.REGTYPE, b"x" * 9000),
    )
    long = ("m/" + "n" * 150, tarfile.REGTYPE, b"long")
    return [
        _tar(*members),
        _tar(*members, long),
        _tar(*members, long, form=tarfile.PAX_FORMAT),
        _tar(("m/é", tarfile.REGTYPE, b"1"), form=tarfile.PAX_FORMAT),
        _tar(*members, form=tarfile.USTAR_FORMAT),
    ]


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def _crafted() -> list[bytes]:
    regular, end = tarfile.REGTYPE, bytes(2 * _BLOCK)
    return [
        *(
            _tar((name, regular, b"x"))
            for name in ("/etc/x", "../x", "a/../../x", "..", ".", "", "a//b", "a\\..\\b", "-rf")
        ),
        *(_tar(("a", kind, b"")) for kind in (b"1", b"2", b"3", b"4", b"6", b"7", b"S", b"V", b"\xff")),
        _tar(("a", tarfile.SYMTYPE, b""), ("a/x", regular, b"x")),
        _tar(("a", regular, b"x"), ("a", regular, b"y")),
        _tar(("a", regular, b"x"), ("a/b", regular, b"y")),
        _tar(("a/" * 500 + "b", regular, b"x")),
        _tar(*((f"f{n}", regular, b"") for n in range(2000))),
        _header("a", 2**33) + end,
        _header("a", -1) + end,
        _header("a", 2**62) + end,
        *(
            _header("a", size, kind) + b"9" * 9000 + end
            for size in (100, 2**40)
            for kind in (b"L", b"K", b"x", b"g", b"X")
        ),
        _header("a", 8000, b"x") + b"8000 " + b"9" * 7995 + bytes(192) + end,
        _header("a", 1000, b"x") + b"12 path=\0\n" * 100 + bytes(24) + end,
        _header("a", 30, b"x") + b"30 GNU.sparse.map=" + b"1," * 241 + end,
        _header("a", 512, b"L") * 3000 + end,
        b"",
        end,
    ]


def _use(data: bytes, folder: Path) -> str:
    archive, inner = folder / "a.tar", folder / "inner"
    archive.write_bytes(data)
    inner.mkdir()
    try:
        unpack_tar(archive, inner / "target", max_bytes=2**20, max_files=100)
    finally:
        assert {path.name for path in folder.iterdir()} == {"a.tar", "inner"}, "written outside"
        assert [path.name for path in inner.iterdir()] == ["target"], "written outside"
        found = list((inner / "target").rglob("*"))
        assert not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in found), "a link or device"
        assert len(found) <= 100 * 20 and sum(path.stat().st_size for path in found if path.is_file()) <= 2**20
    return "accepted"


ARCHIVE = Target(
    "archive",
    _sound,
    _crafted,
    [b"ustar\x0000", b"ustar  \0", b"\0" * 512, b"../", b"/", b"7777777\0", b"\x80" + b"\0" * 11, b"\xff" * 12,
        b"0", b"1", b"2",
     b"L", b"K", b"x", b"g", b"S", b"27 GNU.sparse.major=1\n", b"19 path=../../../x\n", b"20 size=99999999999\n"],
    _use,
)  # fmt: skip
