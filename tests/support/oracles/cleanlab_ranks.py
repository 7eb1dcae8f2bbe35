"""Label quality by cleanlab: cross-validated logistic regression on given features. Arguments: a folder."""

import json
import sys
from pathlib import Path

import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

folder = Path(sys.argv[1])
data = np.load(folder / "features.npz")
scores = []
for labels in data["labels"]:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(C=10, max_iter=100)
    shares = cross_val_predict(model, data["features"], labels, cv=folds, method="predict_proba")
    scores.append(get_label_quality_scores(labels, shares).tolist())
(folder / "theirs.json").write_text(json.dumps(scores))
