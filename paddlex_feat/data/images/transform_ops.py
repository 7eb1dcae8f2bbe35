"""Read `PreProcess.transform_ops` of inference.yml; refuse what would change the features and is not implemented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_NAMES = {"linear": "bilinear", "cubic": "bicubic"}  # OpenCV's names -> PaddleClas's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # where the file gives none, as in PaddleClas and PaddleX
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's data
Accepts = Callable[[Any], bool]


def _is(*values: Any) -> Accepts:
    return lambda given: any(given is value or (given == value and type(given) is type(value)) for value in values)


def _word(*words: str) -> Accepts:
    return lambda given: given is None or (isinstance(given, str) and given.lower() in words)


def _any(given: Any) -> bool:
    return True


# Accepted values of each option; an option that is not listed must be null.
_OPTIONS: dict[str, dict[str, Accepts]] = {
    "DecodeImage": {
        "to_rgb": _is(True, 1),
        "to_bgr": _is(False, None),
        "img_mode": _word("rgb"),
        "to_np": _any,  # PaddleClas: the form of the result
        "channel_first": _is(False, None),
        "backend": _word("cv2"),
    },
    "ResizeImage": {
        "size": _any,
        "interpolation": _any,
        "resize_short": _is(None, 0, False),
        "keep_ratio": _is(None, False),
        "size_divisor": _is(None),
        "backend": _word("cv2"),
        "return_numpy": _any,  # only for Pillow's images
    },
    "NormalizeImage": {
        "mean": _any,
        "std": _any,
        "scale": _any,
        "order": _any,
        "channel_num": _is(3, None),
        "output_fp16": _is(False, None),
    },
    "ToCHWImage": {},
}
_ORDER = ("DecodeImage", "ResizeImage", "NormalizeImage", "ToCHWImage")


class UnsupportedTransform(ValueError):
    """An operation or option that would change the features and is not implemented."""


class InvalidTransform(ValueError):
    """An operation or value that is missing or has another form; the text continues the name of the list."""


def options_of(ops: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of `Preprocess`: size, interpolation, mean, std, scale.

    Raises:
        UnsupportedTransform: an operation or option is not implemented.
        InvalidTransform: an operation or value is missing or has another form.
        TypeError, ValueError and the like: likewise.
    """
    if not isinstance(ops, list) or not all(isinstance(entry, dict) for entry in ops):
        raise InvalidTransform("must be a list of operations, such as [{ResizeImage: {size: 224}}, …]")
    given: dict[str, dict[str, Any]] = {}
    for name, options in ((name, options) for entry in ops for name, options in entry.items()):
        if name not in _OPTIONS:
            raise UnsupportedTransform(f"{_short(name)} is not among {', '.join(_ORDER)}")
        if name in given:
            raise UnsupportedTransform(f"{name} is given twice")
        given[name] = {} if options is None else options
        if not isinstance(given[name], dict):
            raise InvalidTransform(f"needs options by name in {name}, got {_short(options)}")
        for option, value in given[name].items():
            accepts = _OPTIONS[name].get(option, _is(None))
            if not accepts(value):
                raise UnsupportedTransform(f"{name}.{_short(option)} {_short(value)} is not implemented")
    for name in ("ResizeImage", "NormalizeImage"):
        if name not in given:
            raise InvalidTransform(f"has no {name}")
    if given["ResizeImage"].get("size") is None:
        raise InvalidTransform("has no ResizeImage.size")
    resize, normalise = given["ResizeImage"], given["NormalizeImage"]
    _require_order(list(given), normalise.get("order"))
    return {
        "size": _side(resize["size"]),
        "interpolation": _interpolation(resize.get("interpolation")),
        "mean": _triple("mean", normalise.get("mean"), MEAN),
        "std": _triple("std", normalise.get("std"), STD),
        "scale": _scale(normalise.get("scale")),
    }


def _require_order(names: list[str], channels: Any) -> None:
    """The operations in the one order that is implemented; normalising before or after ToCHWImage is the same."""
    planes = "ToCHWImage" in names and names.index("ToCHWImage") < names.index("NormalizeImage")
    wanted = [n for n in _ORDER if n in names]
    if planes:
        wanted[-2:] = ["ToCHWImage", "NormalizeImage"]
    if names != wanted:
        raise UnsupportedTransform(f"the order {', '.join(names)} is not implemented, only {', '.join(_ORDER)}")
    if not (_is("chw")(channels) if planes else _word("hwc", "")(channels)):
        raise UnsupportedTransform(
            f"NormalizeImage.order {_short(channels)} does not fit an image that is {'chw' if planes else 'hwc'} there"
        )


def _side(size: Any) -> int:
    sides = size if isinstance(size, list) else [size, size]
    try:
        whole = len(sides) == 2 and not any(isinstance(side, bool) or float(side) != int(side) for side in sides)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InvalidTransform(f"needs one or two whole numbers in ResizeImage.size, got {_short(size)}")
    if int(sides[0]) != int(sides[1]):
        raise UnsupportedTransform(f"ResizeImage.size {_short(size)} is not a square")
    return int(sides[0])


def _interpolation(given: Any) -> str:
    if given is None:
        return "bilinear"
    name = given.lower() if isinstance(given, str) else _short(given)
    return _NAMES.get(name, name)


def _triple(name: str, values: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if values is None:
        return default
    try:
        if isinstance(values, str):
            raise TypeError("a text has characters, not numbers")
        red, green, blue = (float(v) for v in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTransform(f"needs three numbers in NormalizeImage.{name}, got {_short(values)}") from error
    return red, green, blue


def _scale(given: Any) -> float:
    if given is None:
        return 1 / 255
    try:
        if isinstance(given, str) and "/" in given:  # "1.0/255.0" in PaddleClas's recipes
            above, below = given.split("/")
            return float(above) / float(below)
        return float(given)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InvalidTransform(f"needs a number in NormalizeImage.scale, got {_short(given)}") from error


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
