"""An affine map behind the output of an inference directory whose weights are not at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import paddle
import yaml
from paddle.pir_utils import OldIrGuard

from paddlex_feat.errors import WeightsError, as_output_error
from paddlex_feat.fileio import safe_yaml
from paddlex_feat.fileio.atomic import require_disk_space
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.inference.engines.graph_check import check_graph_operators
from paddlex_feat.inference.engines.paddle_engine import graph_files
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from paddlex_feat.inference.model_info import DIMENSION, PREFIX


def append_map(source: Path, target: Path, matrix: np.ndarray, offset: np.ndarray, dimension: int | None) -> None:
    """Write the Paddle graph of an inference directory with a linear layer behind it, in the form that it has.

    Args:
        source: an inference directory.
        target: an existing folder for the new one.
        matrix: float [K, D], of the D numbers that the graph gives.
        offset: float [K].
        dimension: written to inference.yml if it is not None.

    Raises:
        WeightsError: the graph has operators that are not run here, is damaged, or gives something else.
        OutputError: the folder cannot be written.
    """
    graph, parameters = graph_files(source)
    check_graph_operators(graph)
    check_params_complete(parameters)
    require_disk_space(target, parameters.stat().st_size + 4 * matrix.size)
    with as_output_error(target):
        try:
            with _static(older=graph.suffix == ".pdmodel"):
                _append(source, target, matrix, offset, sha256_file(parameters)[:16])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise WeightsError(
                f"The graph cannot be changed ({type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}).",
                where=str(graph),
                fix="Give the weight file in place of the inference directory, or export it again.",
                code="graph-not-changed",
            ) from error
        _write_info(source, target, dimension)


@contextmanager
def _static(older: bool) -> Iterator[None]:
    """Build static programs in the block, in Paddle's older form if asked for."""
    paddle.enable_static()
    try:
        with OldIrGuard() if older else nullcontext(), paddle.static.scope_guard(paddle.static.Scope()):
            yield
    finally:
        paddle.disable_static()


def _append(source: Path, target: Path, matrix: np.ndarray, offset: np.ndarray, suffix: str) -> None:
    """Do it in static mode; `suffix` tells the new parameters from those of an earlier map."""
    executor, startup = paddle.static.Executor(paddle.CPUPlace()), paddle.static.Program()
    program, inputs, outputs = paddle.static.load_inference_model(str(source / PREFIX), executor)
    with paddle.static.program_guard(program, startup):
        weight, bias = _parameter(f"map_weight_{suffix}", matrix.T), _parameter(f"map_bias_{suffix}", offset)
        mapped = paddle.nn.functional.linear(outputs[0], weight, bias)  # Paddle 3.3's matmul lacks the older form
    executor.run(startup)
    block = program.global_block()
    if hasattr(block, "var"):  # the older form
        image = block.var(inputs[0])
    else:
        image = next(op.result(0) for op in block.ops if op.name() == "pd_op.data")
    paddle.static.save_inference_model(str(target / PREFIX), [image], [mapped], executor, program=program)
    (target / f"{PREFIX}.pdiparams.info").unlink(missing_ok=True)


def _parameter(name: str, values: np.ndarray) -> paddle.Tensor:
    assign = paddle.nn.initializer.Assign(np.ascontiguousarray(values, np.float32))
    return paddle.static.create_parameter(list(values.shape), "float32", name=name, default_initializer=assign)


def _write_info(source: Path, target: Path, dimension: int | None) -> None:
    name = f"{PREFIX}.yml"
    content, _ = safe_yaml.read(safe_yaml.read_text(source / name))
    if dimension is not None:
        content["Global"][DIMENSION] = dimension
    (target / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
