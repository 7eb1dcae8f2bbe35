"""Texts: configuration, overrides, lists, annotations, inference.yml."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import yaml

from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.checks.runner import check
from paddlex_feat.config import load
from paddlex_feat.data.converters import labelme
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.lists import split, transaction
from paddlex_feat.data.readers import LISTS, require_lists
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import FeatError
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.inference.model_info import read_info
from support.fuzz.target import Target
from support.fuzz.yaml_attacks import ODD, YAML, hostile_yaml, laughs


def _use_config(data: bytes, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_bytes(data)
    try:
        config, _ = load.load(str(path), [])
    except FeatError:
        load.peek(str(path), [])
        raise
    (folder / "again.yaml").write_text(load.dump(config), encoding="utf-8")  # as a run keeps it
    assert load.load(str(folder / "again.yaml"), [])[0] == config
    return "accepted"


CONFIG = Target(
    "config",
    lambda: (
        [path.read_bytes() for path in load.shipped().values()] + [b"Global: {mode: train}\nTrain: {epochs_iters: 3}\n"]
    ),
    hostile_yaml,
    YAML,
    _use_config,
)


def _use_override(data: bytes, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text("Global: {mode: train}\n")
    try:
        pair = load.split_override(data.decode(errors="surrogateescape"))
    except ValueError:
        return "wrong usage"  # argparse says so
    try:
        load.dump(load.load(str(path), [pair])[0])
    except FeatError:
        load.peek(str(path), [pair])
        raise
    return "accepted"


_KEYS = (
    "Global.device",
    "Train.epochs_iters",
    "Train.learning_rate",
    "Train.augment.pad",
    "Predict.input",
    "Global",
    "a.b",
)
OVERRIDE = Target(
    "override",
    lambda: [f"{key}={value}".encode() for key in _KEYS for value in ("1", "cpu", "[a, 1, {b: 2}]", "'x'", "null")],
    lambda: (
        [b"Train.epochs_iters=" + data for data in hostile_yaml()]
        + [
            b"a." * 5000 + b"b=1",
            b"." * 3000 + b"=1",
            b"=",
            b"=1",
            b"Global=1",
            b"Global.model.x=1",
            b"Global.mode=[train]",
        ]
    ),
    YAML,
    _use_override,
)

_LINES = "".join(f"images/a {n}.jpg {n}\n" for n in range(12))


def _use_list(data: bytes, folder: Path) -> str:
    for name in LISTS:
        (folder / f"{name}.txt").write_bytes(data)
    (folder / "images").mkdir()
    _, findings = check(folder, CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=1))
    write_json(folder / "result.json", [vars(finding) for finding in findings])
    lists = require_lists(str(folder))
    pairs = list(zip(lists["train"].paths, lists["train"].labels, strict=True))
    transaction.replace_lists(folder, {"train": "".join(f"{path} {label}\n" for path, label in pairs)})
    again, _ = read_list(folder, "train")  # what was read is written by mode check_dataset, and read again
    assert list(zip(again.paths, again.labels, strict=True)) == pairs
    return "accepted"


LIST = Target(
    "list",
    lambda: [_LINES.encode(), b"\xef\xbb\xbf" + _LINES.replace("\n", "\r\n").encode(), "图/一.jpg 0\n".encode("gbk")],
    lambda: [
        b"a" * 1_000_000 + b" 1\n",
        b"a" + b" " * 1_000_000 + b"1\n",
        b"a b " * 100_000 + b"\n",
        "a b\u00a0".encode() * 100_000,
        b"\n" * 300_000,
        b"x\n" * 20_000,
        b"a.jpg " + b"9" * 100_000,
        "a.jpg ٣\n".encode(),
        b"../" * 5000 + b"a.jpg 0\n",
        b"a/" * 5000 + b"a.jpg 0\n",
    ],
    [
        *ODD,
        b" ",
        b"\t",
        b"/",
        b"../",
        b"\\",
        b"C:",
        b" 0\n",
        b" 999999999999999999\n",
        b" 1000000000000000000\n",
        b"\xa1\xa1",
    ],
    _use_list,
)


def _annotation(**more: object) -> bytes:
    base = {"version": "5.0", "flags": {"cat": True, "dog": False}, "shapes": [], "imagePath": "../images/a.jpg"}
    return json.dumps({**base, **more}).encode()


# Copied where they are put, for later changes go into them.
_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    10**30,
    1e308,
    float("nan"),
    "",
    " ",
    "cat",
    "\0",
    "\ud800",
    "é\u202e",
    "a\nb",
    "x" * 999,
    "../images/a.jpg",
    "/images/a.jpg",
    "a.jpg",
    "../../a.jpg",
    "C:\\images\\a.jpg",
    ".",
    "..",
    "/",
    [],
    {},
    [[]],
    {"cat": True},
]


def _grow_json(rng: random.Random, data: bytes) -> bytes:
    """One to three values anywhere, or names of them, become others."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 2, 3))):
        holder = content
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = rng.choice([*keys, "flags", "label"]) if isinstance(holder, dict) else rng.choice(keys or [None])
            below = holder[key] if key in keys else None
            if not isinstance(below, dict | list) or rng.random() < 0.3:
                break
            holder = below
        if isinstance(holder, dict):
            holder[rng.choice([key, str(rng.choice(_VALUES))])] = copy.deepcopy(rng.choice(_VALUES))
        else:
            holder.append(copy.deepcopy(rng.choice(_VALUES)))
    return json.dumps(content, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def _use_labelme(data: bytes, folder: Path) -> str:
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    (folder / "images/a.jpg").write_bytes(b"")
    (folder / "annotations/a.json").write_bytes(data)
    found = labelme.convert(labelme.find_root(str(folder)))
    write_json(folder / "result.json", [vars(finding) for finding in found.findings])
    if not found.paths:
        return found.findings[0].code
    split.random_split(found.labels, labelme.LABELME.percents, "image", 0)
    (folder / "label.txt").write_bytes(data)  # class names are as much others' text
    labelme.convert(folder)
    return "accepted"


LABELME = Target(
    "labelme",
    lambda: [
        _annotation(),
        _annotation(flags={}, shapes=[{"label": "cat", "points": [[0, 1], [2, 3]], "flags": {}}]),
        _annotation(flags={}, shapes=[{"label": 3, "flags": {"b": True}}], imagePath="C:\\x\\a.jpg", imageData="AAAA"),
    ],
    lambda: [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"flags":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"shapes":[{"label":' + b"[" * 900 + b"]" * 900 + b'}],"imagePath":"a.jpg"}',
        b'{"shapes":[{"label":' + b"9" * 5000 + b"}]}",
        _annotation(shapes=[{"label": 10**4000}], flags={}),
        _annotation(flags={f"f{n}": True for n in range(50_000)}),
        _annotation(flags={"x" * 100_000: True, "y": True}),
        _annotation(imagePath="../" * 50_000),
        _annotation(flags={"\ud800": True}),
        _annotation(imagePath="\ud800.jpg"),
        _annotation(imagePath="/" + "a/" * 50_000),
        _annotation(shapes={"label": 1}),
        _annotation().replace(b"true", b"NaN"),
        b"",
        b"null",
        b"\xef\xbb\xbf" + _annotation(),
        _annotation().decode().encode("utf-16"),
    ],
    [
        *ODD,
        b"\\ud800",
        b"\\u0000",
        b"Infinity",
        b"[[[[[[",
        b'{"',
        b"true",
        b"false",
        b'"flags":',
        b'"imagePath":',
        b",",
        b"1e400",
    ],
    _use_labelme,
    _grow_json,
)


def _sound_info() -> list[bytes]:
    content = {
        "Global": {"model_name": "PP-ShiTuV2_rec"},
        "PreProcess": {"transform_ops": Preprocess().to_ops()},
        "PostProcess": {"NormalizeFeatures": None},
    }
    return [yaml.safe_dump(content, default_flow_style=style).encode() for style in (False, None, True)]


def ops(resize: str, normalise: str = "{mean: [0, 0, 0], std: [1, 1, 1]}", before: str = "") -> bytes:
    """An inference.yml with these two operations."""
    text = f"{before}Global: {{model_name: m}}\nPreProcess:\n  transform_ops:\n  - ResizeImage: {resize}\n"
    return f"{text}  - NormalizeImage: {normalise}\n  - ToCHWImage: null\n".encode()


def _hostile_info() -> list[bytes]:
    huge = "9" * 4000
    return [
        *hostile_yaml(),
        ops("{size: [224, *a29]}", before=laughs(30)),
        ops("{size: 224, interpolation: *a29}", before=laughs(30)),
        ops("{size: 224}", "{mean: *a29, std: [1, 1, 1]}", before=laughs(30)),
        ops("{size: 224}", "{mean: [0, 0, 0], std: [1, 1, *a29]}", before=laughs(30)),
        ops(f"{{size: {huge}}}"),
        ops("{size: .inf}"),
        ops("{size: []}"),
        ops("{size: [224]}"),
        ops("{size: {a: 1}}"),
        ops("{size: '224'}"),
        ops("{size: true}"),
        ops(f"{{size: 224, interpolation: '{'x' * 100_000}'}}"),
        ops("{size: 224}", f"{{mean: [{huge}, 0, 0], std: [1, 1, 1]}}"),
        ops("{size: 224}", "{mean: [0, 0, 0], std: [1e-320, 1, 1]}"),
        ops("{size: 224}", "{mean: [1e308, 0, 0], std: [1e-300, 1, 1], scale: 1e308}"),
        ops("{size: 224}", "{mean: [0, 0, 0], std: [1, 1, 1], order: chw, channel_num: 4}"),
        b"Global: {model_name: " + b"x" * 100_000 + b"}\nPreProcess: {transform_ops: [{" + b"y" * 100_000 + b": 1}]}",
    ]


def _use_info(data: bytes, folder: Path) -> str:
    (folder / "inference.yml").write_bytes(data)
    info = read_info(folder)
    # What was accepted must work: any image at any of the sizes allowed.
    small = info.preprocess.resize(np.zeros((3, 5, 3), np.uint8))
    if info.preprocess.size <= 256:
        assert np.isfinite(info.preprocess.normalise(small[None])).all()
    return "accepted"


INFO = Target(
    "info", _sound_info, _hostile_info, [*YAML, b"ResizeImage", b"size: ", b"mean: ", b"scale: ", b"1e-320"], _use_info
)
