"""Archives of torch.jit.save, made byte by byte: their tensors are read, and nothing that they name is looked up."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.errors import WeightsError
from paddlex_feat.models import weights

NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def tensor(key: str, count: int) -> bytes:
    """Opcodes of a float16 vector that is a whole storage."""
    storage = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text(key) + text("cpu") + number(count) + b"tQ"
    shape = b"(" + number(count) + b"t(" + number(1) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape + b"\x89" + NO_HOOKS + b"tR"


def module(name: str = "__torch__.clip.model\nCLIP", **attributes: bytes) -> bytes:
    """Opcodes of an object with attributes."""
    items = b"".join(text(key) + value for key, value in attributes.items())
    return b"c" + name.encode() + b"\n)\x81}(" + items + b"ub"


def archive(path, content: bytes, code: bytes = b"def forward(self): pass\n" * 99, packed: str = "code/"):
    """Write an archive as torch.jit.save does, in which the code alone is compressed."""
    members = {
        "data.pkl": b"\x80\x02" + content + b".",
        "code/__torch__/clip/model.py": code,
        "constants.pkl": b"\x80\x02).",
        "data/0": np.arange(3, dtype="<f2").tobytes(),
        "data/1": np.ones(2, "<f2").tobytes(),
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            kind = zipfile.ZIP_DEFLATED if name.startswith(packed) else zipfile.ZIP_STORED
            file.writestr(f"model/{name}", data, kind)
    return path


def test_a_module_is_read_as_its_tensors_by_name(tmp_path):
    typed = b"ctorch.jit._pickle\nrestore_type_tag\n(](K\x01K\x02e" + text("List[int]") + b"tR"
    block = module(
        "__torch__.torch.nn.modules.linear.___torch_mangle_0\nLinear", weight=tensor("1", 2), training=b"\x89"
    )
    content = module(visual=module(blocks=block, size=number(224), sizes=typed), scale=tensor("0", 3), training=b"\x88")
    state = weights.read(archive(tmp_path / "a.pt", content))
    assert list(state) == ["visual.blocks.weight", "scale"]
    assert np.array_equal(state["scale"], [0, 1, 2]) and state["scale"].dtype == np.float16
    assert np.array_equal(state["visual.blocks.weight"], [1, 1])


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (b"cos\nsystem\n)\x81}b", "os.system"),
        (module("__torch__x.y\nZ"), "__torch__x.y.Z"),
        (b"c__torch__\nA\n(" + text("x") + b"t\x81", "an object of a class"),  # arguments of a constructor
        (b"c__torch__\nA\n)R", "a call of something other than a name"),
        (b"c__torch__\nA\n", "_Attributes as a value"),
        (module() + number(3) + b"b", "a state of its own"),
        (
            b"ctorch.jit._pickle\nrestore_type_tag\n(K\x01" + text("int") + b"tR",
            "a type of something other than a container",
        ),
        (b"ctorch.jit._pickle\nother\n)R", "torch.jit._pickle.other"),
    ],
)
def test_other_objects_are_refused(tmp_path, content, refused):
    with pytest.raises(WeightsError, match=refused) as caught:
        weights.read(archive(tmp_path / "a.pt", content))
    assert caught.value.code in ("weights-unsafe", "weights-damaged")


@pytest.mark.parametrize("packed", ["data.pkl", "data/", "constants.pkl"])
def test_what_is_compressed_besides_the_code_is_refused(tmp_path, packed):
    with pytest.raises(WeightsError, match="compressed"):
        weights.read(archive(tmp_path / "a.pt", module(scale=tensor("0", 3)), packed=packed))


def test_a_module_in_itself_or_below_many_is_refused(tmp_path):
    with pytest.raises(WeightsError) as caught:
        weights.read(archive(tmp_path / "a.pt", b"c__torch__\nA\n)\x81q\x00}(" + text("self") + b"h\x00ub"))
    assert caught.value.code == "weights-nested"


def test_names_and_attributes_cannot_fill_the_memory(tmp_path):
    with pytest.raises(WeightsError, match="a name of hundreds of characters"):
        weights.read(archive(tmp_path / "a.pt", module(**{"a" * 300: module(scale=tensor("0", 3))})))
    shared = b"}(" + b"".join(text(str(i)) + b"N" for i in range(5000)) + b"uq\x010"  # one dictionary, given to many
    objects = b"(" + b"c__torch__\nA\n)\x81h\x01b" * 500 + b"t"
    with pytest.raises(WeightsError, match="millions of attributes"):
        weights.read(archive(tmp_path / "b.pt", shared + objects))


def test_pickles_of_the_standard_library_do_not_get_in_by_these_doors(tmp_path):
    content = pickle.dumps({"a": OSError()}, 2)[2:-1]
    with pytest.raises(WeightsError, match="OSError"):
        weights.read(archive(tmp_path / "a.pt", content))
