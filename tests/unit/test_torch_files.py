"""Files of PyTorch, made by hand: both forms are read, and nothing that they name is looked up."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from support import torch_bytes as made

pytest.importorskip("paddle")

from paddlex_feat.errors import WeightsError
from paddlex_feat.models import torch_files, weights

NUMBERS = np.arange(6, dtype="<f4")
KINDS = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "<i1",
    "Byte": "<u1", "Bool": "|b1",
}  # fmt: skip


def in_archive(content: bytes, storages: dict[str, bytes]) -> bytes:
    return made.archive(content, storages)


def in_legacy(content: bytes, storages: dict[str, bytes], size: int = 4) -> bytes:
    return made.legacy(content, {key: (len(data) // size, data) for key, data in storages.items()})


FORMS = pytest.mark.parametrize("form", [in_archive, in_legacy])


def weight(kind: str = "FloatStorage", count: int = 6, shape=(2, 3), strides=(3, 1), offset: int = 0) -> bytes:
    return made.tensor(made.storage(kind, "0", count), shape, strides, offset)


def state(**tensors: bytes) -> bytes:
    return made.mapping(tensors)


def read(tmp_path, data: bytes, name: str = "a.pth") -> dict:
    (tmp_path / name).write_bytes(data)
    return weights.read(tmp_path / name)


def error_of(tmp_path, data: bytes) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read(tmp_path, data)
    assert caught.value.where == str(tmp_path / "a.pth")
    return caught.value


@FORMS
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.pdparams", "a"])
def test_a_state_dict_is_read_under_any_name(tmp_path, form, name):
    found = read(tmp_path, form(state(w=weight()), {"0": NUMBERS.tobytes()}), name)
    assert list(found) == ["w"] and found["w"].dtype == np.float32
    assert np.array_equal(found["w"], NUMBERS.reshape(2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_numbers_is_read(tmp_path, kind):
    values = np.array([0, 1, 1, 0, 1, 0], KINDS[kind])
    content, storages = state(w=weight(f"{kind}Storage")), {"0": values.tobytes()}
    for data in (in_archive(content, storages), in_legacy(content, storages, values.itemsize)):
        found = read(tmp_path, data)["w"]
        assert found.dtype == values.dtype and np.array_equal(found, values.reshape(2, 3))


@FORMS
def test_bfloat16_becomes_float32_once_for_all_its_views(tmp_path, form):
    values = np.array([1.5, -2, 0.25, 3e38], "<f4")  # 3e38 is cut, as the upper half of a float32
    data = (values.view("<u4") >> 16).astype("<u2").tobytes()
    stored = made.storage("BFloat16Storage", "0", 4)
    content = state(a=made.tensor(stored, (4,), (1,)), b=made.tensor(stored, (2,), (1,), 1))
    file = made.legacy(content, {"0": (4, data)}) if form is in_legacy else form(content, {"0": data})
    found = read(tmp_path, file)
    assert found["a"].dtype == found["b"].dtype == np.float32
    assert np.array_equal(found["a"][:3], values[:3]) and np.array_equal(found["b"], values[1:3])


@FORMS
def test_views_share_their_storage_and_have_their_own_strides(tmp_path, form):
    content = state(
        whole=weight(),
        turned=weight(shape=(3, 2), strides=(1, 3)),
        row=weight(shape=(3,), strides=(1,), offset=3),
        scalar=weight(shape=(), strides=(), offset=5),
        repeated=weight(shape=(2, 3), strides=(0, 1)),
        empty=weight(shape=(0, 3), strides=(3, 1)),
    )
    found = read(tmp_path, form(content, {"0": NUMBERS.tobytes()}))
    whole = NUMBERS.reshape(2, 3)
    assert np.array_equal(found["turned"], whole.T) and np.array_equal(found["row"], whole[1])
    assert found["scalar"].shape == () and found["scalar"] == 5 and found["empty"].shape == (0, 3)
    assert np.array_equal(found["repeated"], whole[[0, 0]]) and np.shares_memory(found["row"], found["whole"])


@FORMS
def test_parameters_metadata_and_the_levels_of_checkpoints_are_understood(tmp_path, form):
    parameter = made.call("torch._utils._rebuild_parameter", weight(), b"\x88", made.call("collections.OrderedDict"))
    metadata = made.mapping({"_metadata": made.mapping({"": made.mapping({"version": made.number(1)})})}, False)
    inner = made.mapping({"module.w": parameter, "module.n": weight()}) + metadata + b"b"
    checkpoint = made.mapping({"epoch": made.number(3), "state_dict": inner}, ordered=False)
    found = read(tmp_path, form(checkpoint, {"0": NUMBERS.tobytes()}))
    assert sorted(found) == ["n", "w"] and np.array_equal(found["w"], NUMBERS.reshape(2, 3))


@FORMS
@pytest.mark.parametrize(
    "asked", ["os.system", "torch.load", "torch._utils._rebuild_tensor", "numpy.load", "torch.storage.UntypedStorage"]
)
def test_any_other_name_is_refused_and_not_looked_up(tmp_path, form, asked):
    content = state(w=made.call(asked, made.text("touch /tmp/never")))
    error = error_of(tmp_path, form(content, {}))
    assert error.code == "weights-unsafe" and f"asks for {asked}" in error.what


REFERENCES = {
    "not a tuple": made.text("0") + b"Q",
    "another word": made.row(*[made.text("module")] * 5) + b"Q",
    "another class": made.row(made.text("storage"), b"N", made.text("0"), made.text("cpu"), b"K\x06") + b"Q",
    "a key that is a number": made.row(
        made.text("storage"), made.name("torch.FloatStorage"), b"K\0", made.text("cpu"), b"K\x06"
    )
    + b"Q",
    "a negative count": made.storage("FloatStorage", "0", -6),
    "a view": made.storage("FloatStorage", "0", 6, made.row(made.text("1"), b"K\0", b"K\x06")),
}


@FORMS
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_of_another_form_is_refused(tmp_path, form, reference):
    content = state(w=made.tensor(REFERENCES[reference], (2, 3), (3, 1)))
    assert error_of(tmp_path, form(content, {"0": NUMBERS.tobytes()})).code == "weights-unsafe"


OUTSIDE = {
    "beyond the end": {"offset": 1},
    "by a stride": {"strides": (4, 1)},
    "a negative stride": {"strides": (-3, 1), "offset": 3},
    "a negative offset": {"offset": -1},
    "a negative size": {"shape": (-2, -3)},
    "more elements": {"shape": (7,), "strides": (0,)},
    "a huge size": {"shape": (2**62, 2**62), "strides": (0, 0)},
    "sizes without strides": {"strides": (1,)},
    "too many dimensions": {"shape": (1,) * 33, "strides": (1,) * 33},
    "a huge count": {"count": 2**60},
    "another count": {"count": 5, "shape": (5,), "strides": (1,)},
    "another type": {"kind": "DoubleStorage"},
}


@FORMS
@pytest.mark.parametrize("lie", OUTSIDE)
def test_a_tensor_outside_its_storage_is_damage(tmp_path, form, lie):
    error = error_of(tmp_path, form(state(w=weight(**OUTSIDE[lie])), {"0": NUMBERS.tobytes()}))
    assert error.code == "weights-damaged"


@FORMS
def test_a_storage_that_is_described_in_two_ways_is_damage(tmp_path, form):
    content = state(a=weight(), b=weight(count=3, shape=(3,), strides=(1,)))
    assert "two ways" in error_of(tmp_path, form(content, {"0": NUMBERS.tobytes()})).what


@FORMS
def test_a_file_that_ends_too_early_is_an_error_wherever_it_ends(tmp_path, form):
    whole = form(state(w=weight()), {"0": NUMBERS.tobytes()})
    for length in range(len(whole)):
        # A name that is cut short is one that is not admitted.
        assert error_of(tmp_path, whole[:length]).code in ("weights-damaged", "weights-unsafe"), length
    assert list(read(tmp_path, whole)) == ["w"]


def test_a_compressed_archive_is_refused(tmp_path):
    error = error_of(tmp_path, made.archive(state(w=weight(count=2**28)), {"0": bytes(2**22)}, packed=True))
    assert error.code == "weights-unsafe" and "compressed" in error.what and "torch.save" in error.fix


def overlapping(count: int, size: int) -> bytes:
    """An archive of `count` storages of `size` bytes, all of which are the same bytes of the file."""
    keys = [str(n) for n in range(count)]
    tensors = {f"w{key}": made.tensor(made.storage("ByteStorage", key, size), (size,), (1,)) for key in keys}
    first = made.archive(state(**tensors), {"0": bytes(size)})
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        start, shared = archive.start_dir, archive.getinfo("archive/data/0")
    entries, end = first[start:-22], first[-22:]
    entry = entries[entries.rindex(b"PK\1\2") :]
    assert struct.unpack("<L", entry[42:46])[0] == shared.header_offset
    more = b"".join(entry.replace(b"data/0", f"data/{key}".encode()) for key in keys[1:])
    entries += more
    end = end[:8] + struct.pack("<HHL", count + 1, count + 1, len(entries)) + end[16:]
    return first[:start] + entries + end


def test_members_that_share_their_bytes_take_no_more_memory_than_the_file_has(tmp_path):
    assert len(read(tmp_path, overlapping(1, 2000))["w0"]) == 2000
    assert error_of(tmp_path, overlapping(9, 2000)).code == "weights-damaged"


def test_an_archive_of_a_great_many_members_is_refused_before_they_are_listed(tmp_path, monkeypatch):
    data = made.archive(state(w=weight()), {str(n): NUMBERS.tobytes() for n in range(50)})
    assert list(read(tmp_path, data)) == ["w"]
    monkeypatch.setattr(torch_files, "_MAX_DIRECTORY_BYTES", 1000)
    assert error_of(tmp_path, data).code == "weights-too-many-values"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (made.archive(b"}", {}, more={"byteorder": b"big"}), "weights-damaged"),
        (made.archive(b"}", {}, more={"code/data.pkl": b""}).replace(b"/data.pkl", b"/data.pkx"), "weights-damaged"),
        (made.legacy(b"}", {}, little=False), "weights-damaged"),
        (made.legacy(b"}", {}, protocol=1000), "weights-damaged"),
        (made.legacy(b"}", {"0": (6, NUMBERS.tobytes())}), "weights-damaged"),  # a storage of no tensor
        (made.archive(b"](K\x01e", {}), "weights-not-tensors"),
    ],
    ids=range(6),
)
def test_other_archives_and_machines_are_refused(tmp_path, data, code):
    assert error_of(tmp_path, data).code == code


def test_a_pickle_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "_MAX_PICKLE_BYTES", 50)
    assert error_of(tmp_path, in_archive(state(w=weight()), {"0": NUMBERS.tobytes()})).code == "weights-too-many-values"


def test_plain_pickles_are_no_files_of_pytorch():
    for start in (b"\x80\x02}.", b"\x80\x04\x95", b"", b"P", b"\x80\x02\x8a\n" + bytes(10)):
        stream = io.BytesIO(start)
        assert not torch_files.is_torch(stream) and stream.tell() == 0
