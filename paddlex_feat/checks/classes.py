"""Checks of labels: do they fit the classifier, the sampler and the evaluation?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.data.findings import Finding
from paddlex_feat.data.samplers import pk_error

LONG_TAIL = 50  # times the median class size; a larger class gets a warning
_SHOWN = 10


def classifier(data: DataSet, settings: CheckSettings) -> list[Finding]:
    """train.txt has at least two classes, and the classifier is wide enough for them."""
    count = len(set(data.lists["train"].labels))
    if count == 1:
        message = "All images of train.txt have one label: there is nothing to tell apart."
        return [Finding("train-one-class", "error", "train.txt", message, "Add images of other classes.")]
    if settings.num_classes is not None and settings.num_classes < count:
        message = f"train.txt has {count} classes, Train.num_classes is {settings.num_classes}."
        fix = f"Use -o Train.num_classes=auto, or {count}."
        return [Finding("num-classes-too-small", "error", "train.txt", message, fix)]
    if settings.num_classes is not None and settings.num_classes > count > 0:
        message = f"Train.num_classes is {settings.num_classes}, train.txt has {count} classes."
        return [Finding("num-classes-larger", "note", "train.txt", message, "Nothing, if it is meant so.")]
    return []


def sampler(data: DataSet, settings: CheckSettings) -> list[Finding]:
    """The batch can be filled with P classes of K images."""
    k, sizes = settings.samples_per_class, Counter(data.lists["train"].labels)
    if not k or not sizes:
        return []
    findings = []
    error = pk_error(len(sizes), settings.batch_size, k)
    if error:
        findings.append(Finding("sampler-batch", "error", "train.txt", *error))
    small = sorted(label for label, size in sizes.items() if size < k)
    if small:
        shown = ", ".join(map(str, small[:_SHOWN])) + (", …" if len(small) > _SHOWN else "")
        message = (
            f"{len(small)} of {len(sizes)} classes have fewer than {k} images; batches repeat theirs. Labels: {shown}."
        )
        fix = "Add images, or lower Train.samples_per_class and Train.batch_size."
        findings.append(Finding("class-small", "warning", "train.txt", message, fix))
    return findings


def distribution(data: DataSet, settings: CheckSettings) -> list[Finding]:
    """No class is larger than the others beyond measure."""
    sizes = Counter(data.lists["train"].labels)
    if len(sizes) < 2:
        return []
    label, largest = sizes.most_common(1)[0]
    median = float(np.median(list(sizes.values())))
    if largest <= LONG_TAIL * median:
        return []
    message = f"Class {label} has {largest} images, the median class {median:g}: it will fill most batches."
    fix = "Take images off the largest classes, or add to the small ones."
    return [Finding("class-tail", "warning", "train.txt", message, fix)]


def matches(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Queries have a gallery image of their label, and gallery labels are asked for."""
    query, gallery = data.lists["query"], data.lists["gallery"]
    if not query or not gallery:
        return
    offered, asked = set(gallery.labels), set(query.labels)
    if not offered & asked:
        message = "No query has a gallery image of its label: there is nothing to retrieve."
        fix = "Give gallery.txt and query.txt the same labels."
        yield Finding("query-none-matched", "error", "query.txt", message, fix)
        return
    fix = "Add a gallery image of that label; evaluation leaves such queries out and counts them."
    for i, label in enumerate(query.labels):
        if label not in offered:
            yield Finding("query-unmatched", "warning", query.where(i), f"Label {label} is not in gallery.txt.", fix)
    idle = len(offered - asked)
    if idle:
        message = f"{idle} of {len(offered)} labels of gallery.txt are never asked for: they only distract."
        yield Finding("gallery-not-queried", "note", "gallery.txt", message, "Nothing, if it is meant so.")
