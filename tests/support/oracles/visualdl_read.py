"""Runs in an environment with VisualDL.

    python visualdl_read.py LOG RESULT

Writes RESULT, JSON: the values of every scalar in the log, by tag.
"""

import json
import sys
from pathlib import Path

from visualdl import LogReader

if __name__ == "__main__":
    reader = LogReader(file_path=sys.argv[1])
    tags = reader.get_tags()["scalar"]
    values = {tag: [row.value for row in reader.get_data("scalar", tag)] for tag in tags}
    Path(sys.argv[2]).write_text(json.dumps(values))
