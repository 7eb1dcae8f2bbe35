"""Runs in an environment of scikit-learn and pytorch-metric-learning: their metrics of the same features.

    python other_metrics.py FOLDER

FOLDER/features.npz holds query, query_labels, gallery, gallery_labels; FOLDER/theirs.json gets
    average_precision           scikit-learn's, of each query that has a match
    mean_average_precision, mean_average_precision_at_r, mean_reciprocal_rank, precision_at_1
                                pytorch-metric-learning's
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score


def main(folder: Path) -> None:
    """Ask both."""
    given = np.load(folder / "features.npz")
    similarity = given["query"].astype(np.float64) @ given["gallery"].astype(np.float64).T
    match = given["gallery_labels"] == given["query_labels"][:, None]
    rows = np.flatnonzero(match.any(axis=1))
    precision = [average_precision_score(match[i], similarity[i]) for i in rows]
    calculator = AccuracyCalculator(
        include=(
            "precision_at_1",
            "mean_average_precision",
            "mean_average_precision_at_r",
            "mean_reciprocal_rank",
        ),
        k=len(given["gallery"]),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    names = ("query", "query_labels", "gallery", "gallery_labels")
    theirs = calculator.get_accuracy(*(torch.from_numpy(given[name].copy()) for name in names))
    numbers = {name: float(value) for name, value in theirs.items()}
    (folder / "theirs.json").write_text(json.dumps({"average_precision": precision, **numbers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
