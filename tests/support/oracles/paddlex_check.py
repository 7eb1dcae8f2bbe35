"""Runs in the environment of the PaddleX wheel: its own check of a data set.

    python paddlex_check.py DATASET OUTPUT

Writes OUTPUT/check_dataset_result.json. PaddleX 3.7.2 itself ends in an exception with a current
matplotlib, over a keyword of set_xticks, and without a network, over a font: both are helped here.
"""

import json
import os
import sys
from pathlib import Path

import matplotlib

folder, output = sys.argv[1:]
# Else PaddleX downloads a font.
os.environ["PADDLE_PDX_LOCAL_FONT_FILE_PATH"] = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))

from matplotlib.axes import Axes
from paddlex.modules import build_dataset_checker
from paddlex.utils.config import AttrDict

set_xticks = Axes.set_xticks
Axes.set_xticks = lambda axes, ticks, labels=None, **rest: set_xticks(axes, ticks, labels, **(rest if labels else {}))

settings = {
    "Global": {
        "model": "PP-ShiTuV2_rec",
        "mode": "check_dataset",
        "dataset_dir": folder,
        "device": "cpu",
        "output": output,
    },
    "CheckDataset": {
        "convert": {"enable": False, "src_dataset_type": None},
        "split": {"enable": False, "train_percent": None, "gallery_percent": None, "query_percent": None},
    },
}


def attributes(value):
    """Nested dictionaries as PaddleX's own kind of dictionary."""
    return AttrDict({k: attributes(v) for k, v in value.items()}) if isinstance(value, dict) else value


result = build_dataset_checker(attributes(settings)).check()
Path(output, "check_dataset_result.json").write_text(json.dumps({"done_flag": True, **result}))
