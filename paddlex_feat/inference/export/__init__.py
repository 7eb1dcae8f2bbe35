"""Write inference directories, and install them.

`exporter`, which imports Paddle, writes one from weights; `convert` adds forms for other engines; `install` moves the
files into a folder that may hold an earlier model.
"""

from paddlex_feat.inference.export.convert import inference_file_names, onnx_file, require_forms, write_forms
from paddlex_feat.inference.export.install import install_export

__all__ = ["inference_file_names", "install_export", "onnx_file", "require_forms", "write_forms"]
