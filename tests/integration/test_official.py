"""Official inference models: the cache, the download, what is refused, and archives that mean harm."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import ROOT
from support.servers import Server, serving

from paddlex_feat.config.schema import MODELS
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import DownloadError, WeightsError
from paddlex_feat.hub import download
from paddlex_feat.hub.tar import unpack_tar
from paddlex_feat.hub.urls import ENV_MIRROR
from paddlex_feat.inference import model_zoo
from paddlex_feat.inference.model_zoo import official_model

NAME = "PP-ShiTuV2_rec"
FIRST = f"/paddlex/official_inference_model/paddle3.0.0/{NAME}_infer.tar"
SECOND = f"/paddlex/official_inference_model/paddle3.0b2/{NAME}_infer.tar"


def files_of(name: str = NAME) -> dict[str, bytes]:
    """The files of an inference directory, which looks plausible and cannot be run."""
    info = {"Global": {"model_name": name}, "PreProcess": {"transform_ops": Preprocess(32).to_ops()}}
    return {
        "inference.yml": yaml.safe_dump(info).encode(),
        "inference.json": b"{}",
        "inference.pdiparams": bytes(range(256)) * 4000,
    }


def pack(*entries: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of these entries, each a name or a header with the content that follows it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for entry, content in entries:
            header = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            header.size = len(content) or header.size
            tar.addfile(header, io.BytesIO(content) if content else None)
    return buffer.getvalue()


def model_tar(files: dict[str, bytes] | None = None, top: str = f"{NAME}_infer/") -> bytes:
    return pack(*((f"{top}{name}", content) for name, content in (files or files_of()).items()))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(cache, monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(model_tar()) as own:
        monkeypatch.setenv(ENV_MIRROR, own.url)
        yield own


@pytest.fixture
def offline(monkeypatch) -> None:
    """Any use of the network fails at once."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv(ENV_MIRROR, "http://127.0.0.1:9")


def make(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kept(cache: Path) -> list[str]:
    """What the cache holds of archives and unfinished work."""
    archives = [p.name for p in (cache / "official_archives").rglob("*") if p.is_file() and p.name != ".lock"]
    return sorted(archives + [p.name for p in (cache / "official_models").glob(".*")])


def test_the_names_are_those_of_the_configuration():
    assert model_zoo.NAMES == MODELS


def test_an_unknown_name_lists_the_known_ones(offline):
    with pytest.raises(WeightsError, match="nearest is PP-ShiTuV2_rec_CLIP_vit_base") as caught:
        official_model("PP-ShiTuV2_rec_CLIP_base")
    assert all(name in str(caught.value) for name in MODELS)


@pytest.mark.parametrize("top", [f"{NAME}_infer/", f"./{NAME}_infer/", ""])
def test_a_model_is_fetched_once_and_lies_where_paddlex_looks_for_it(server, cache, top):
    server.body = model_tar(top=top)
    assert official_model(NAME) == cache / "official_models" / NAME == official_model(NAME)
    assert content(cache / "official_models" / NAME) == files_of()
    assert server.log == [(FIRST, None)] and kept(cache) == []


def test_what_is_cached_needs_no_network_and_nothing_that_could_use_it(server, offline, cache):
    make(cache / "official_models" / NAME, files_of())
    cache.chmod(0o500)  # a cache that is only read
    code = f"""
import sys
from paddlex_feat.inference.model_zoo import official_model
print(official_model({NAME!r}))
assert not {{"requests", "urllib3"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    cache.chmod(0o700)
    assert done.stdout.strip() == str(official_model(NAME)) == str(cache / "official_models" / NAME), done.stderr
    assert server.log == []


def test_a_folder_that_paddlex_made_is_used_as_it_is(offline, cache):
    files = files_of()
    files["inference.pdmodel"] = files.pop("inference.json")
    files |= {"README.md": b"of the hub", "config.json": b"{}"}
    folder = make(cache / "official_models" / NAME, files)
    assert official_model(NAME) == folder and content(folder) == files


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ({"inference.pdiparams": b""}, "inference.pdiparams missing or empty"),
        ({"inference.json": b""}, "inference.json missing or empty"),
        ({"inference.yml": b""}, "not a valid"),
        ({"inference.yml": b"\xff"}, "not a valid"),
        ({"inference.yml": b"[" * 3000}, "not a valid"),
        ({"inference.yml": b"released: 2020-13-45"}, "not a valid"),
        ({"inference.yml": b"Global: {model_name: [a, b]}"}, "not a valid"),
        ({"inference.yml": files_of(MODELS[1])["inference.yml"]}, f"it holds '{MODELS[1]}'"),
    ],
)
def test_a_folder_that_is_not_complete_is_replaced_and_kept(server, cache, caplog, damage, fault):
    caplog.set_level("INFO")
    folder = make(cache / "official_models" / NAME, files_of() | damage)
    assert content(official_model(NAME)) == files_of()
    assert content(folder.with_name(f"{NAME}.bak")) == files_of() | damage
    assert fault in caplog.text and f"is now {NAME}.bak" in caplog.text


def test_the_second_address_is_for_what_the_first_does_not_have(server, cache):
    server.absent = (FIRST,)
    assert content(official_model(NAME)) == files_of()
    assert [path for path, _ in server.log] == [FIRST, SECOND]


def test_a_download_that_breaks_off_goes_on_and_redirects_are_followed(server, cache, monkeypatch):
    server.breaks = 2
    monkeypatch.setenv(ENV_MIRROR, f"{server.url}/moved")
    assert content(official_model(NAME)) == files_of()
    begins = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.log if asked]
    assert len(begins) >= 2 and 0 < begins[0] < begins[-1] < len(server.body)


def test_a_later_run_goes_on_too(server, cache, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.breaks = 1
    with pytest.raises(DownloadError):
        official_model(NAME)
    assert official_model(NAME).is_dir() and int(server.log[-1][1].removeprefix("bytes=").rstrip("-")) > 0
    assert kept(cache) == []


def test_a_server_that_falls_silent_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.stalls = True
    with pytest.raises(DownloadError, match="timed out"):
        official_model(NAME)
    server.stalls = False
    assert content(official_model(NAME)) == files_of()


WHOLE = model_tar()
GARBAGE = {
    "page": b"<html>Please log in to this network</html>",
    "nothing": b"",
    "gzip of something else": gzip.compress(b"x" * 5000),
    "cut in a file": WHOLE[: len(WHOLE) // 2],
    "cut between two files": WHOLE[: WHOLE.index(b"PP-ShiTuV2_rec_infer/inference.json")],
    "end missing": WHOLE.rstrip(b"\0") + bytes(-len(WHOLE.rstrip(b"\0")) % 512),
    "header damaged": WHOLE.replace(b"inference.pdiparams", b"inference.pdiparamz"),
    "another model": model_tar(files_of(MODELS[1])),
    "a file missing": model_tar({k: v for k, v in files_of().items() if k != "inference.pdiparams"}),
    "a file empty": model_tar(files_of() | {"inference.json": b""}),
    "not a valid": model_tar(files_of() | {"inference.yml": b"[]"}),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_and_the_next_run_downloads_again(server, cache, kind):
    server.body = GARBAGE[kind]
    folder = make(cache / "official_models" / NAME, {"mine.txt": b"not complete"})
    with pytest.raises(DownloadError) as caught:
        official_model(NAME)
    text = str(caught.value)
    assert f"{server.url}{FIRST}: The archive " in text and str(folder) in text and "model_dir" in text
    assert content(folder) == {"mine.txt": b"not complete"} and kept(cache) == []
    server.body = WHOLE
    assert content(official_model(NAME)) == files_of()


def test_a_full_disk_keeps_the_archive_for_the_next_run(server, cache, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(DownloadError, match="No space left"):
        patched.setattr("os.fsync", full)
        official_model(NAME)
    assert kept(cache) == [f"{NAME}_infer.tar"]
    assert content(official_model(NAME)) == files_of() and len(server.log) == 1


def test_what_a_killed_process_left_is_swept_up(server, cache):
    make(cache / "official_models" / f".{NAME}.unpacking.killed", {"half": b"x"})
    official_model(NAME)
    assert kept(cache) == []


def test_without_cache_and_network_one_message_says_all(cache, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setenv(ENV_MIRROR, "http://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        official_model(NAME)
    text = str(caught.value)
    for part in (
        f"{cache}/official_models/{NAME}",
        "no such folder",
        f"http://127.0.0.1:9{FIRST}: ",
        "ConnectionError",
        "Connection refused",
        "model_dir",
        "copy the unpacked model",
        ENV_MIRROR,
        "HTTPS_PROXY",
    ):
        assert part in text, part
    assert text.count("\n") == 2


def test_both_addresses_are_named_where_neither_has_it(server):
    server.absent = (".tar",)
    with pytest.raises(DownloadError) as caught:
        official_model(NAME)
    assert f"{server.url}{FIRST}: " in str(caught.value) and f"{server.url}{SECOND}: " in str(caught.value)


def test_a_cache_that_cannot_be_written_is_the_same_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="Not a directory"):
        official_model(NAME)


@pytest.mark.parametrize(("source", "said"), [("huggingface", True), ("BOS", False), ("", False)])
def test_paddlexs_choice_of_a_source_is_answered(server, caplog, monkeypatch, source, said):
    caplog.set_level("INFO")
    monkeypatch.setenv("PADDLE_PDX_MODEL_SOURCE", source)
    official_model(NAME)
    assert ("only it carries this model" in caplog.text) is said


def test_two_processes_that_want_one_model_get_it_once(server, cache):
    server.slow = True
    code = f"from paddlex_feat.inference.model_zoo import official_model; print(official_model({NAME!r}))"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == [str(cache / "official_models" / NAME)] * 2
    assert server.log == [(FIRST, None)] and kept(cache) == []
    assert content(cache / "official_models" / NAME) == files_of()


def test_create_model_without_a_folder_runs_the_official_model(server, cache, monkeypatch):
    paddle = pytest.importorskip("paddle")
    import numpy as np
    from support.networks import SPECS

    import paddlex_feat
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.models import recognizer

    paddle.seed(0)
    network = recognizer.build(SPECS[NAME], 1)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    Exporter(network, NAME, Preprocess(32)).write(state, cache.parent / "exported")
    server.body = model_tar(content(cache.parent / "exported"))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    fetched = next(paddlex_feat.create_model(NAME, device="cpu").predict(image))
    given = next(paddlex_feat.create_model(NAME, cache.parent / "exported", device="cpu").predict(image))
    assert np.array_equal(fetched.feature, given.feature) and len(server.log) == 1


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def declaring(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header alone, which declares a size."""
    return header("x", kind, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(1024)


EVIL = {
    "absolute path": (pack(("/tmp/evil", b"x")), "leads out"),
    "parent folder": (pack(("a/../../evil", b"x")), "leads out"),
    "parent folder, made": (pack((header("..", tarfile.DIRTYPE), b"")), "leads out"),
    "symbolic link": (pack((header("a", tarfile.SYMTYPE, linkname="/etc"), b""), ("a/x", b"x")), "neither"),
    "hard link": (pack(("x", b"x"), (header("a", tarfile.LNKTYPE, linkname="x"), b"")), "neither"),
    "character device": (pack((header("a", tarfile.CHRTYPE), b"")), "neither"),
    "block device": (pack((header("a", tarfile.BLKTYPE), b"")), "neither"),
    "named pipe": (pack((header("a", tarfile.FIFOTYPE), b"")), "neither"),
    "unknown type": (pack((header("a", b"Z"), b"")), "neither"),
    "sparse file": (
        pack((header("a", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)}), b"x")),
        "neither",
    ),
    "name twice": (pack(("a", b"x"), ("./a", b"y")), "names clash"),
    "file as folder": (pack(("a", b"x"), ("a/b", b"y")), "names clash"),
    "folder as file": (pack(("a/b", b"y"), ("a", b"x")), "names clash"),
    "no name": (pack((header("."), b"x")), "names clash"),
    "name too long": (pack(("a" * 300, b"x")), "names clash"),
    "zero in a name": (pack((header("x", pax_headers={"path": "a\0b"}), b"x")), "null"),
    "many bytes": (pack(("a", bytes(600)), ("b", bytes(600))), "bound"),
    "many bytes declared": (declaring(2**40), "bound"),
    "less than nothing": (declaring(-1024), "bound|offset"),
    "many files": (pack(*((str(n), b"x") for n in range(11))), "more than 10"),
    "many folders": (pack(*((header(str(n), tarfile.DIRTYPE), b"") for n in range(11))), "more than 10"),
    "long header": (pack((header("x", pax_headers={"comment": "x" * 2**21}), b"x")), "header declares"),
    "headers of headers": (declaring(0, tarfile.XHDTYPE)[:512] * 5000 + bytes(1024), "recursion|header"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_that_means_harm_is_refused(tmp_path, kind):
    archive, why = EVIL[kind]
    archive_file = tmp_path / "evil.tar"
    archive_file.write_bytes(archive)
    with pytest.raises(WeightsError, match=why) as caught:
        unpack_tar(archive_file, tmp_path / "in" / "target", 1000, 10)
    assert caught.value.where == str(archive_file)
    inside = tmp_path / "in"
    assert {*tmp_path.iterdir()} == {archive_file, inside} and [*inside.iterdir()] == [inside / "target"]
    assert sum(p.stat().st_size for p in inside.rglob("*") if p.is_file()) <= 1000


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_come_whole_and_without_their_permissions(tmp_path, form):
    name = "folder/" + "n" * 90 + ".txt"
    entries = [(header("folder", tarfile.DIRTYPE, mode=0), b""), (header(name, mode=0o6777, uid=1, mtime=5), b"text")]
    (tmp_path / "x.tar").write_bytes(pack(*entries, ("empty", b""), form=form))
    unpack_tar(tmp_path / "x.tar", tmp_path / "out", 4, 3)  # the bounds themselves are admitted
    assert content(tmp_path / "out") == {name: b"text", "empty": b""}
    status = (tmp_path / "out" / name).stat()
    assert not status.st_mode & 0o7111 and status.st_mtime > 5 and status.st_uid == os.getuid()


def test_any_damaged_byte_of_a_header_and_any_cut_are_refused(tmp_path):
    sound = pack(("a", b"a" * 700), ("b", b"b" * 20))
    headers = [*range(0, 512, 7), *range(1536, 2048, 7)]
    cases = [sound[:place] + bytes([sound[place] ^ 0x55]) + sound[place + 1 :] for place in headers]
    cases += [sound[:length] for length in range(0, 2560 + 1024, 256)]  # all of it, and two empty blocks
    for number, case in enumerate(cases):
        (tmp_path / "x.tar").write_bytes(case)
        with pytest.raises(WeightsError):
            unpack_tar(tmp_path / "x.tar", tmp_path / str(number), 1000, 10)
    (tmp_path / "x.tar").write_bytes(sound[: 2560 + 1024])
    unpack_tar(tmp_path / "x.tar", tmp_path / "whole", 1000, 10)
