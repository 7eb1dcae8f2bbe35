"""Runs in an environment of pytorch-metric-learning: its losses and their gradients.

    python other_losses.py FOLDER

FOLDER/cases.json lists cases of {name, loss, keys}; FOLDER/given.npz holds NAME.features, NAME.labels and, for losses
with parameters of their own, NAME.weight. FOLDER/theirs.npz gets NAME.value, NAME.features and NAME.weight: the loss
and its gradients, in float64. With NAME.memory and NAME.memory_labels, images of past batches, the loss is over these
references too, and NAME.cross_batch is its value by their CrossBatchMemory, whose gradient is of the anchors alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.utils import loss_and_miner_utils


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


def over_references(loss: Any, miner: Any, batch: tuple[Any, Any], memory: tuple[Any, Any]) -> tuple[Any, Any]:
    """The loss over batch and memory, and its value by their CrossBatchMemory."""
    (features, labels), size = batch, len(batch[1]) + len(memory[1])
    references = torch.cat([features, memory[0]]), torch.cat([labels, memory[1]])
    pairs = miner(*batch, *references) if miner else loss_and_miner_utils.get_all_pairs_indices(labels, references[1])
    pairs = loss_and_miner_utils.remove_self_comparisons(pairs, torch.arange(len(labels)), size)
    queue = losses.CrossBatchMemory(loss, features.shape[1], size, miner)
    queue(*memory)
    return loss(*batch, pairs, *references), queue(*batch)


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
        if f"{name}.memory" in given:
            memory = [torch.from_numpy(given[f"{name}.{key}"]) for key in ("memory", "memory_labels")]
            value, by_queue = over_references(loss, miner, (features, labels), (memory[0].double(), memory[1]))
            found[f"{name}.cross_batch"] = by_queue.detach().numpy()
        else:
            value = loss(features, labels, miner(features, labels) if miner else None)
        value.backward()
        found[f"{name}.value"] = value.detach().numpy()
        found[f"{name}.features"] = features.grad.numpy()
        if own is not None:
            found[f"{name}.weight"] = own.grad.numpy()
    np.savez(folder / "theirs.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
