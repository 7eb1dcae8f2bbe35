"""Inference directories: write one from weights (`exporter`, which imports Paddle), add forms for other engines
(`convert`), and install it in a folder that may hold an earlier one (`install`)."""

from paddlex_feat.inference.export.convert import inference_file_names, onnx_file, require_forms, write_forms
from paddlex_feat.inference.export.install import install_export

__all__ = ["inference_file_names", "install_export", "onnx_file", "require_forms", "write_forms"]
