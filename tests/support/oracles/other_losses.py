"""Runs in an environment of pytorch-metric-learning: its losses and their gradients.

    python other_losses.py FOLDER

FOLDER/cases.json lists cases of {name, loss, keys}; FOLDER/given.npz holds NAME.features, NAME.labels and, for losses
with parameters of their own, NAME.weight. FOLDER/theirs.npz gets NAME.value, NAME.features and NAME.weight: the loss
and its gradients, in float64.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners


def build(loss: str, keys: dict[str, Any], shape: dict[str, int]) -> tuple[Any, Any]:
    """Their loss and their miner, or None, for a loss and keys of ours."""
    if loss == "multi_similarity":
        epsilon = keys.pop("epsilon")
        return losses.MultiSimilarityLoss(**keys), miners.MultiSimilarityMiner(epsilon) if epsilon is not None else None
    if loss == "triplet_batch_hard":
        margin = {"margin": 0.0, "smooth_loss": True} if keys["margin"] is None else {"margin": keys["margin"]}
        distance = {"cosine": distances.CosineSimilarity, "euclidean": distances.LpDistance}[keys["distance"]]
        return losses.TripletMarginLoss(distance=distance(), **margin), miners.BatchHardMiner(distance=distance())
    if loss == "subcenter_arcface":
        keys["margin"] = float(np.degrees(keys["margin"]))
    kinds = {
        "supcon": losses.SupConLoss,
        "circle": losses.CircleLoss,
        "proxy_anchor": losses.ProxyAnchorLoss,
        "cosine": losses.NormalizedSoftmaxLoss,
        "cosface": losses.CosFaceLoss,
        "subcenter_arcface": losses.SubCenterArcFaceLoss,
    }
    return kinds[loss](**keys, **shape), None


def main(folder: Path) -> None:
    """Compute all cases."""
    given, found = np.load(folder / "given.npz"), {}
    for case in json.loads((folder / "cases.json").read_text()):
        name = case["name"]
        features = torch.from_numpy(given[f"{name}.features"]).double().requires_grad_()
        labels = torch.from_numpy(given[f"{name}.labels"])
        loss, miner = build(case["loss"], case["keys"], case["shape"])
        own = getattr(loss, "proxies", getattr(loss, "W", None))
        if own is not None:
            own.data = torch.from_numpy(given[f"{name}.weight"]).double()
        value = loss(features, labels, miner(features, labels) if miner else None)
        value.backward()
        found[f"{name}.value"] = value.detach().numpy()
        found[f"{name}.features"] = features.grad.numpy()
        if own is not None:
            found[f"{name}.weight"] = own.grad.numpy()
    np.savez(folder / "theirs.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
