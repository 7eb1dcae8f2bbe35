"""Capturing a network in Paddle's older form, `.pdmodel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.base.layer_helper import LayerHelper

from paddlex_feat.errors import WeightsError, is_out_of_memory


def _operator(kind: str, inputs: dict[str, Any], **attributes: Any) -> Any:
    helper = LayerHelper(kind)
    out = helper.create_variable_for_type_inference(next(iter(inputs.values())).dtype)
    helper.append_op(type=kind, inputs=inputs, outputs={"Out": out}, attrs=attributes)
    return out


# not_to_static: otherwise Paddle translates the bodies and its own functions below them, which takes minutes.
@paddle.jit.not_to_static
def _sigmoid(x: Any, name: str | None = None) -> Any:
    return _operator("sigmoid", {"X": x})


@paddle.jit.not_to_static
def _gelu(x: Any, approximate: bool = False, name: str | None = None) -> Any:
    return _operator("gelu", {"X": x}, approximate=approximate)


@paddle.jit.not_to_static
def _matmul(x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, name: str | None = None) -> Any:
    return _operator("matmul_v2", {"X": x, "Y": y}, trans_x=transpose_x, trans_y=transpose_y)


@contextmanager
def pdmodel_format() -> Iterator[None]:
    """Capture and save graphs in the older form within the block. Raises WeightsError if Paddle cannot.

    Paddle 3.3 dropped the older form of these three functions; the operators still exist.
    """
    ours = {
        (F, "sigmoid"): _sigmoid,
        (F, "gelu"): _gelu,
        (paddle, "matmul"): _matmul,
    }
    theirs = {(module, name): getattr(module, name) for module, name in ours}
    try:
        for (module, name), function in ours.items():
            setattr(module, name, function)
        with paddle.pir_utils.DygraphOldIrGuard():
            yield
    except (TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):  # no fault of the form: the mode reports it as what it is
            raise
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"Paddle {paddle.__version__} cannot write this network in the older form, .pdmodel "
            f"({type(error).__name__}: {reason[-1].strip() if reason else 'no reason given'}).",
            where="Global.export_with_pir=False",
            fix="Leave Global.export_with_pir out: inference.json is Paddle's current form.",
            code="pdmodel-unsupported",
        ) from error
    finally:
        for (module, name), function in theirs.items():
            setattr(module, name, function)
