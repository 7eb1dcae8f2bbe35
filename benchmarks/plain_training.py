"""A straightforward training of PP-ShiTuV2_rec, the mark that benchmarks/training.py measures against.

    python benchmarks/plain_training.py steps SIZE BATCH STEPS
    python benchmarks/plain_training.py run DATA OUTPUT SIZE BATCH EPOCHS EVAL_INTERVAL

What somebody writes who follows the recipe with Paddle as it comes: images decoded whole, one
transform after the other in loader processes, float32 batches, the dynamic graph with Paddle's
own number of threads, evaluation by the dynamic graph and two sorts, paddle.save after each epoch.
Network, losses and schedule are this package's, for they are the same in both.

Prints the seconds of each step, or nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle

from paddlex_feat.data.samplers import PKSampler
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.training.schedule import warmup_cosine

PAD, K, RATE, WARMUP, LOADERS = 10, 4, 0.01, 5, 2
MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Images(paddle.io.Dataset):
    """Files of a list, decoded and transformed one step after the other: float32 [3, S, S], label."""

    def __init__(self, lines: list[str], root: Path, size: int, training: bool):
        super().__init__()
        self.items = [(str(root / path), int(label)) for path, label in (line.rsplit(" ", 1) for line in lines)]
        self.size, self.training = size, training

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.items[index]
        image = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        image = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (self.size, self.size))
        if self.training:
            image = self.augment(image)
        normal = (image.astype(np.float32) * np.float32(1 / 255) - MEAN) / STD
        return np.ascontiguousarray(normal.transpose(2, 0, 1)), label

    def augment(self, image: np.ndarray) -> np.ndarray:
        """Flip, pad, crop, rotation, resize."""
        if np.random.random() < 0.5:
            image = cv2.flip(image, 1)
        image = cv2.copyMakeBorder(image, PAD, PAD, PAD, PAD, cv2.BORDER_CONSTANT)
        top, left = np.random.randint(0, 2 * PAD + 2, size=2)
        image = image[top : top + self.size, left : left + self.size]
        if np.random.random() < 0.5:
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), np.random.uniform(-90, 90), 1)
            image = cv2.warpAffine(image, matrix, (width, height))
        return cv2.resize(image, (self.size, self.size))


class Batches(paddle.io.BatchSampler):
    """P x K batches of one epoch after the other."""

    def __init__(self, labels: list[int], batch_size: int):
        self.sampler, self.number = PKSampler(labels, batch_size, K, 0), 0

    def __iter__(self) -> Any:
        self.number += 1
        return iter([b.tolist() for b in self.sampler.epoch(self.number)])

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch


class Training:
    """Network, losses, optimizer; a step."""

    def __init__(self, classes: int, size: int):
        paddle.seed(0)
        self.model = recognizer.build(NetworkSpec(input_size=size), classes)
        self.criterion = recipe_loss()
        self.optimizer = paddle.optimizer.Momentum(RATE, 0.9, self.model.parameters(), weight_decay=1e-5)

    def step(self, images: paddle.Tensor, labels: paddle.Tensor) -> float:
        """One step; the loss."""
        features = self.model(images)
        loss = self.criterion(features, self.model.logits(features), labels)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss)

    @paddle.no_grad()
    def embed(self, images: Images, batch_size: int) -> np.ndarray:
        """Unit features of all images."""
        self.model.eval()
        loader = paddle.io.DataLoader(images, batch_size=batch_size, num_workers=LOADERS, use_shared_memory=False)
        rows = np.concatenate([self.model(batch).numpy() for batch, _ in loader])
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def evaluate(training: Training, gallery: Images, query: Images) -> tuple[float, float]:
    """recall@1 and mAP by sorting the gallery for every query."""
    similarity = training.embed(query, 64) @ training.embed(gallery, 64).T
    order = np.argsort(-similarity, axis=1)
    labels = np.array([label for _, label in gallery.items])[order]
    hits = labels == np.array([label for _, label in query.items])[:, None]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    return float(hits[:, 0].mean()), float(average.mean())


def steps(size: int, batch_size: int, count: int) -> None:
    """Print the seconds of each step on random pixels."""
    training, rng = Training(50, size), np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((batch_size, 3, size, size)).astype(np.float32))
    labels = paddle.to_tensor(np.arange(batch_size) // K % 50)
    training.model.train()
    for _ in range(count):
        started = time.perf_counter()
        training.step(images, labels)
        print(time.perf_counter() - started, flush=True)


def run(data: Path, output: Path, size: int, batch_size: int, epochs: int, eval_interval: int) -> None:
    """Train and evaluate."""
    lists = {name: (data / f"{name}.txt").read_text().splitlines() for name in ("train", "gallery", "query")}
    train = Images(lists["train"], data, size, training=True)
    gallery, query = (Images(lists[name], data, size, training=False) for name in ("gallery", "query"))
    labels = [label for _, label in train.items]
    training, batches = Training(len(set(labels)), size), Batches(labels, batch_size)
    loader = paddle.io.DataLoader(train, batch_sampler=batches, num_workers=LOADERS, use_shared_memory=False)
    step = 0
    for epoch in range(1, epochs + 1):
        training.model.train()
        for images, batch_labels in loader:
            training.optimizer.set_lr(warmup_cosine(RATE, step, len(batches), epochs, WARMUP))
            training.step(images, batch_labels)
            step += 1
        if epoch % eval_interval == 0:
            recall, precision = evaluate(training, gallery, query)
            print(f"recall1 {recall:.5f} mAP {precision:.5f}", file=sys.stderr)
        paddle.save(training.model.state_dict(), str(output / f"epoch_{epoch}.pdparams"))
        paddle.save(training.optimizer.state_dict(), str(output / f"epoch_{epoch}.pdopt"))


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        steps(*map(int, sys.argv[2:5]))
    else:
        run(Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:8]))
