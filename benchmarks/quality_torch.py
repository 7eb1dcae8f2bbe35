"""Fine-tune EfficientNet-Lite0 in PyTorch until a given time, by the example recipe of a metric-learning library.

    python benchmarks/quality_torch.py pml|oml|start DATASET WEIGHTS OUTPUT --until TIME --seed N --size PIXELS

Runs in an environment of its own, which benchmarks/quality.py makes. It writes the features of gallery and query images
to OUTPUT (.npz); benchmarks/quality.py ranks them. The recipes follow the libraries' documentation:

* pml: pytorch-metric-learning's example MetricLossOnly. A linear layer of 64 numbers after the network; Adam, 1e-5 for
  the network and 1e-4 for the layer, decay 1e-4; triplet margin loss (0.1) on pairs from MultiSimilarityMiner (0.1);
  batches of 32, 4 images a class; random crops of 0.16 to 1 of the area, mirror images.
* oml: open-metric-learning's example for cars. The features of the network as they are; Adam, 1e-5; soft triplet loss
  over all triplets of a batch. Its batches of 20 x 10 images become 16 x 4: the classes here are small.

Images are decoded once and kept in memory, and the features are computed after the time has run out: both favour
PyTorch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

MEAN, STD, DIM = 127.0, 128.0, 1280


class Network(torch.nn.Module):
    """The convolutions of EfficientNet-Lite0, mean of the last map, and the recipe's layer after it."""

    def __init__(self, weights: Path, last: torch.nn.Module):
        super().__init__()
        self.trunk = EfficientNet.from_name("efficientnet-lite0")
        self.trunk.load_state_dict(torch.load(weights, weights_only=True))
        self.last = last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        return self.last(self.trunk.extract_features(images).mean((2, 3)))


def read_list(folder: Path, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The decoded images (RGB, uint8) and labels (int64) of a list."""
    lines = (folder / f"{name}.txt").read_text().splitlines()
    paths, labels = zip(*(line.rsplit(" ", 1) for line in lines), strict=True)
    images = [np.asarray(cv2.imread(str(folder / path)), np.uint8)[..., ::-1].copy() for path in paths]
    return images, np.array(labels, np.int64)


def tensor(images: list[np.ndarray], size: int) -> torch.Tensor:
    """Resized to a square and normalised, float32 [N, 3, S, S]."""
    stack = np.stack([cv2.resize(image, (size, size)) for image in images]).astype(np.float32)
    return torch.from_numpy((stack - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def random_crop(image: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """A part of `smallest` to 1 of the area, its sides in a ratio of 3:4 to 4:3, mirrored half of the time."""
    height, width = image.shape[:2]
    area, ratio = rng.uniform(smallest, 1) * height * width, np.exp(rng.uniform(np.log(0.75), np.log(4 / 3)))
    w, h = min(width, max(1, round((area * ratio) ** 0.5))), min(height, max(1, round((area / ratio) ** 0.5)))
    left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
    part = image[top : top + h, left : left + w]
    return np.ascontiguousarray(part[:, ::-1]) if rng.random() < 0.5 else part


def pml(weights: Path, labels: np.ndarray) -> tuple[Network, torch.optim.Optimizer, Callable[..., Any], Any, float]:
    """Network, optimizer, loss, batches without end and smallest crop of pytorch-metric-learning's example."""
    from pytorch_metric_learning import losses, miners, samplers

    network = Network(weights, torch.nn.Linear(DIM, 64))
    groups = [
        {"params": network.trunk.parameters(), "lr": 1e-5},
        {"params": network.last.parameters(), "lr": 1e-4},
    ]
    loss, miner = losses.TripletMarginLoss(margin=0.1), miners.MultiSimilarityMiner(epsilon=0.1)
    # Four images a class as in the example; with fewer than eight classes as many as fill its batch of 32.
    m = next(m for m in (4, 8, 16, 32) if m * len(set(labels)) >= 32 or m == 32)
    sampler = samplers.MPerClassSampler(labels, m=m, batch_size=32, length_before_new_iter=max(32, len(labels)))

    def batches() -> Iterator[list[int]]:
        while True:
            indices = list(sampler)
            yield from (indices[i : i + 32] for i in range(0, len(indices), 32))

    def criterion(features: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return loss(features, own, miner(features, own))

    return network, torch.optim.Adam(groups, weight_decay=1e-4), criterion, batches(), 0.16


def oml(weights: Path, labels: np.ndarray) -> tuple[Network, torch.optim.Optimizer, Callable[..., Any], Any, float]:
    """The same of open-metric-learning's example."""
    if (
        torch.version.cuda is None
    ):  # the compiled half of torchvision from PyPI then does not load: declare its operators
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_all_tri import AllTripletsMiner
    from oml.samplers.balance import BalanceSampler

    network = Network(weights, torch.nn.Identity())
    classes, counts = np.unique(labels, return_counts=True)
    sampler = BalanceSampler(labels, n_labels=min(16, len(classes)), n_instances=max(2, min(4, int(counts.max()))))

    def batches() -> Iterator[list[int]]:
        while True:
            yield from sampler

    criterion = TripletLossWithMiner(margin=None, miner=AllTripletsMiner())
    return network, torch.optim.Adam(network.parameters(), lr=1e-5), criterion, batches(), 0.5


def train(arguments: argparse.Namespace) -> Network:
    """The network after the recipe has run for the given time."""
    if arguments.recipe == "start":
        return Network(arguments.weights, torch.nn.Identity())
    images, labels = read_list(arguments.dataset, "train")
    network, optimizer, criterion, batches, smallest = {"pml": pml, "oml": oml}[arguments.recipe](
        arguments.weights, labels
    )
    rng, steps = np.random.default_rng(arguments.seed), 0
    loss, indices = torch.tensor(float("nan")), []
    network.train()
    for indices in batches:
        if time.time() > arguments.until:
            break
        parts = [random_crop(images[i], smallest, rng) for i in indices]
        loss = criterion(network(tensor(parts, arguments.size)), torch.from_numpy(labels[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    print(f"{steps} steps, {steps * len(indices) / len(labels):.1f} epochs, last loss {loss.item():.4f}")
    return network


@torch.no_grad()
def features(network: Network, images: list[np.ndarray], size: int) -> np.ndarray:
    """Unit features, float32 [N, D]."""
    rows = [network(tensor(images[i : i + 32], size)) for i in range(0, len(images), 32)]
    unit: np.ndarray = torch.nn.functional.normalize(torch.cat(rows)).numpy()
    return unit


def main() -> None:
    """Train and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("pml", "oml", "start"))
    for name in ("dataset", "weights", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--until", type=float, required=True, help="when training ends, in seconds of time.time()")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)  # the libraries' samplers draw from it
    network = train(arguments).eval()
    found: dict[str, Any] = {}
    for name in ("gallery", "query"):
        images, found[f"{name}_labels"] = read_list(arguments.dataset, name)
        found[name] = features(network, images, arguments.size)
    np.savez(arguments.output, **found)


if __name__ == "__main__":
    main()
