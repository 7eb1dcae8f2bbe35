"""Runs in the environment of the PaddleX wheel: its own indexes of features, written and asked.

    python paddlex_index.py FOLDER

FOLDER/given.npz holds features, labels and queries. FOLDER/flat, /hnsw and /ivf get indexes of them; from flat and ivf
the images 2 and 5 are removed, to flat the first three are appended again; /mixed is ivf with one appended after that.
FOLDER/ours is an index that is asked:
FOLDER/theirs.json gets its answers, a list of labels and scores for each query.
"""

import json
import sys
from pathlib import Path

import numpy as np
from paddlex.inference.pipelines.components import FaissBuilder, FaissIndexer

folder = Path(sys.argv[1])
given = np.load(folder / "given.npz")
features, labels = given["features"], given["labels"].tolist()


def predict(numbers):
    """As a model of PaddleX answers: each image is the number of its feature."""
    return [{"feature": features[number]} for number in numbers]


for name, kind in (("flat", "Flat"), ("hnsw", "HNSW32"), ("ivf", "IVF")):
    place = str(folder / name)
    FaissBuilder.build(list(range(len(labels))), labels, predict, "IP", kind).save(place)
    if name != "hnsw":
        FaissBuilder.remove([2, 5], place).save(place)
    if name == "flat":
        FaissBuilder.append([0, 1, 2], ["again 0", "again 1", "again 2"], predict, place).save(place)
FaissBuilder.append([0], ["mixed"], predict, str(folder / "ivf")).save(str(folder / "mixed"))
answers = FaissIndexer(str(folder / "ours"))(given["queries"], -1.0, 0, 5)
found = [{"labels": each["label"], "scores": np.asarray(each["score"], float).tolist()} for each in answers]
(folder / "theirs.json").write_text(json.dumps(found))
