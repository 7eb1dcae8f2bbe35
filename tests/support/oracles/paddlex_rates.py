"""PaddleX's own predictor, asked over standard input; runs in the environment of its wheel.

    python paddlex_rates.py MODEL_DIR

Prints "ready" after its first result, which is of FIRST, the first line that it reads. Then each line "BATCH LIST" is
answered by the seconds that all files named in the text file LIST took, "features OUT LIST" by their features in
OUT.npy.
"""

import os
import sys
import time
from pathlib import Path

os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what PaddleX prints goes to standard error

import numpy as np
from paddlex import create_model

model = create_model("PP-ShiTuV2_rec", model_dir=sys.argv[1], device="cpu")
next(iter(model.predict(sys.stdin.readline().strip())))
answers.write("ready\n")
for line in sys.stdin:
    *what, listed = line.split()
    files = Path(listed).read_text().split("\n")
    if what[0] == "features":  # one by one: PaddleX 3.7.2 attaches the features of a batch to each of its images
        np.save(what[1], np.stack([np.reshape(next(iter(model.predict(f)))["feature"], -1) for f in files]))
        answers.write("0\n")
        continue
    started = time.perf_counter()
    count = sum(1 for _ in model.predict(files, batch_size=int(what[0])))
    assert count == len(files)
    answers.write(f"{time.perf_counter() - started}\n")
