"""Allow-list of the operators of a Paddle graph: a graph is a program, and may come from strangers."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from paddlex_feat.errors import WeightsError

log = logging.getLogger(__name__)
_MAX_GRAPH_BYTES = 2**28  # of a graph, which holds no weights: that of CLIP_vit_large_patch14 has 2 MB
# Operators that only compute tensors from tensors, by their names in both formats. Paddle's others read and write
# files and the network (save_combine, load, recv_v2), run Python (py_func), print, or may loop for ever (while).
_NAMES = """
    feed fetch data parameter constant combine shadow_output share_data share_data_ nop
    conv2d conv3d depthwise_conv2d conv2d_transpose conv3d_transpose depthwise_conv2d_transpose conv2d_bias
    depthwise_conv2d_bias conv2d_transpose_bias deformable_conv deformable_conv_v1 pool2d pool3d lp_pool2d
    max_pool2d_with_index max_pool2d_v2 max_pool3d_with_index fractional_max_pool2d unpool
    batch_norm batch_norm_ sync_batch_norm sync_batch_norm_ layer_norm instance_norm group_norm rms_norm norm p_norm
    l1_norm frobenius_norm spectral_norm lrn affine_channel data_norm renorm
    relu relu_ relu6 leaky_relu prelu elu selu celu gelu silu swish mish hardswish hard_swish hardsigmoid hard_sigmoid
    sigmoid sigmoid_ logsigmoid tanh tanh_ softplus softsign softshrink hard_shrink hardshrink hardtanh brelu
    tanh_shrink thresholded_relu maxout rrelu stanh swiglu glu softmax softmax_ log_softmax logsumexp
    exp exp_ expm1 log log2 log10 log1p sqrt sqrt_ rsqrt rsqrt_ square pow abs sin cos tan asin acos atan atan2 sinh
    cosh erf floor ceil round trunc sign reciprocal clip clip_ clip_by_norm scale scale_ cast cast_ increment
    elementwise_add elementwise_sub elementwise_mul elementwise_div elementwise_max elementwise_min elementwise_pow
    elementwise_mod elementwise_floordiv elementwise_fmax elementwise_fmin grad_add add add_ subtract subtract_
    multiply multiply_ divide divide_ maximum minimum fmax fmin remainder floor_divide lerp add_n
    mul matmul matmul_v2 linear_v2 bmm baddbmm addmm mv dot einsum fc kron cross multi_dot bilinear
    bilinear_tensor_product
    assign assign_ assign_out_ assign_value assign_value_ fill_constant fill_constant_batch_size_like fill_any_like
    full full_ full_int_array full_like full_with_tensor full_batch_size_like empty zeros ones eye
    reshape reshape_ reshape2 transpose transpose2 flatten flatten_ flatten2 flatten_contiguous_range squeeze squeeze_
    squeeze2 unsqueeze unsqueeze_ unsqueeze2 concat split split_with_num stack unstack unbind slice strided_slice crop
    crop_tensor set_value set_value_ set_value_with_tensor set_value_with_tensor_ gather gather_nd index_select
    index_sample index_put take_along_axis put_along_axis scatter scatter_nd_add tile expand expand_v2 expand_as
    expand_as_v2 broadcast_tensors repeat_interleave pad pad2d pad3d roll flip reverse tril triu tril_triu diag_v2
    diagonal meshgrid range range_v2 arange linspace shape shape64 size numel view_shape view_slice view_dtype
    multiplex
    mean sum max min amax amin prod all any reduce_mean reduce_sum reduce_max reduce_min reduce_amax reduce_amin
    reduce_prod reduce_all reduce_any reduce_as mean_all variance cumsum cumprod arg_max argmax arg_min argmin argsort
    top_k top_k_v2 topk where where_index nonzero masked_select masked_fill
    equal not_equal less_than less_equal greater_than greater_equal logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not bitwise_xor isnan isnan_v2 isinf isinf_v2 isfinite isfinite_v2
    one_hot one_hot_v2 embedding lookup_table lookup_table_v2
    nearest_interp nearest_interp_v2 bilinear_interp bilinear_interp_v2 bicubic_interp bicubic_interp_v2 linear_interp
    linear_interp_v2 trilinear_interp trilinear_interp_v2 interp_antialias grid_sample grid_sampler affine_grid
    pixel_shuffle pixel_unshuffle shuffle_channel channel_shuffle temporal_shift unfold fold im2sequence
    dropout roi_align roi_pool
    flash_attn memory_efficient_attention multihead_matmul skip_layernorm squeeze_excitation_block fused_conv2d
    fused_conv2d_add_act fused_matmul fused_elementwise_add fused_elementwise_mul fused_elementwise_sub
    fused_elementwise_div fused_softplus fused_transpose fused_bias_act fused_fc_elementwise_layernorm
    fused_elemwise_add_activation
    quantize_linear dequantize_linear quantize dequantize requantize fake_quantize_abs_max
    fake_quantize_moving_average_abs_max fake_quantize_range_abs_max fake_quantize_dequantize_abs_max
    fake_quantize_dequantize_moving_average_abs_max fake_channel_wise_quantize_abs_max
    fake_channel_wise_quantize_dequantize_abs_max fake_channel_wise_dequantize_max_abs fake_dequantize_max_abs
"""
_PURE = frozenset(_NAMES.split())
# Those of them that have only a GPU kernel.
_GPU_NAMES = """
    flash_attn memory_efficient_attention multihead_matmul skip_layernorm squeeze_excitation_block rms_norm
    fused_bias_act fused_conv2d_add_act fused_fc_elementwise_layernorm max_pool2d_v2 sync_batch_norm sync_batch_norm_
"""
_GPU_ONLY = frozenset(_GPU_NAMES.split())
# In a .json, "#" names an operator as number of its dialect and name, or a type, an attribute, a region, a block.
_OTHERS = re.compile(r"p|[01]\.[ta]_\w+|region_\d+|block_\d+", re.ASCII)
_OPERATOR = re.compile(r"[01]\.(\w+)", re.ASCII)  # of Paddle itself; other dialects are control flow and extensions


def check_graph_operators(graph: Path, trusted: bool = False) -> None:
    """Raise WeightsError if a Paddle graph has an operator that is not on the allow-list.

    Args:
        graph: .json, or .pdmodel, which needs the package protobuf that comes with Paddle.
        trusted: log a warning instead of the check: the user vouches for the graph.
    """
    if trusted:
        log.warning("The operators of %s are not checked: trust_graph is on.", graph)
        return
    foreign = {name for name in _operators(graph) if not _is_pure(name, graph.suffix)}
    if foreign:
        raise WeightsError(
            f"The graph has operators that a feature extractor does not need: {_listed(foreign)}.",
            where=str(graph),
            fix="Paddle would run them, and some operators write files. Take the model from a source that you trust. "
            "If you trust this one, allow its operators: -o Predict.trust_graph=True, in Python trust_graph=True.",
            code="graph-operators",
        )


def check_cpu_kernels(graph: Path) -> None:
    """Raise WeightsError for a Paddle graph, .json or .pdmodel, with operators that exist on GPUs alone."""
    found = {name for name in _operators(graph) if name.rpartition(".")[2] in _GPU_ONLY}
    if found:
        raise WeightsError(
            f"The exported graph has operators without a CPU kernel: {_listed(found)}.",
            where=str(graph),
            fix="It would run neither on a CPU nor in ONNX or OpenVINO. Export on a CPU (Global.device=cpu), "
            "or report the network and the Paddle version.",
            code="graph-gpu-operators",
        )


def _listed(names: set[str]) -> str:
    return ", ".join(ascii(name[:100]) for name in sorted(names)[:5])


def _operators(graph: Path) -> set[str]:
    """Names of all operators of a graph, as its file has them. Raises WeightsError."""
    try:
        with graph.open("rb") as file:
            data = file.read(_MAX_GRAPH_BYTES + 1)
        if len(data) > _MAX_GRAPH_BYTES:
            raise ValueError(f"more than {_MAX_GRAPH_BYTES} bytes")
        return _names_in_json(data) if graph.suffix == ".json" else _names_in_protobuf(data)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(
            f"The graph cannot be read ({type(error).__name__}: {str(error)[:100]}).",
            where=str(graph),
            fix="Export the model again; an official one is fetched again once its folder is deleted.",
            code="graph-unreadable",
        ) from error


def _names_in_json(data: bytes) -> set[str]:
    """Values of all keys "#" of a graph in Paddle's current format."""
    names: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Pair by pair: json keeps only the last value of a duplicate key.
        for key, value in pairs:
            if key == "#":
                names.add(str(value))
        return dict(pairs)

    json.loads(data.decode(), object_pairs_hook=collect)  # Paddle reads UTF-8 only
    return names


def _is_pure(name: str, suffix: str) -> bool:
    if suffix != ".json":
        return name in _PURE
    operator = _OPERATOR.fullmatch(name)
    return bool(_OTHERS.fullmatch(name)) or (operator is not None and operator[1] in _PURE)


def _names_in_protobuf(data: bytes) -> set[str]:
    """Operators of a graph in Paddle's older format, in all its blocks."""
    from google.protobuf.message import DecodeError
    from paddle.base.proto import framework_pb2

    program = framework_pb2.ProgramDesc()
    try:
        program.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {op.type for block in program.blocks for op in block.ops}
