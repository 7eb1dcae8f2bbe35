"""Checks of labels: do they fit the classifier, the sampler and the evaluation?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.samplers import pk_error
from paddlex_feat.evaluation.matches import excluded_pairs, match_counts

LONG_TAIL = 50  # times the median class size: by experience, no source; such a class fills most P x K batches
_SHOWN = 10

ONE_CLASS = FindingSpec(
    "train-one-class", "error", "all images of train.txt have one label", "Add images of other classes."
)
TOO_FEW_OUTPUTS = FindingSpec(
    "num-classes-too-small",
    "error",
    "`Train.num_classes` is less than the classes of train.txt",
    "Use -o Train.num_classes=auto.",
)
MORE_OUTPUTS = FindingSpec(
    "num-classes-larger",
    "note",
    "`Train.num_classes` is more than the classes of train.txt",
    "Nothing, if it is intended.",
)
BATCH = FindingSpec(
    "sampler-batch",
    "error",
    "the P×K sampler cannot fill a batch; the size that fits is named",
    "Set Train.batch_size to the size that fits.",
)
SMALL_CLASSES = FindingSpec(
    "class-small",
    "warning",
    "classes have fewer images than K",
    "Add images, or lower Train.samples_per_class and Train.batch_size.",
)
TAIL = FindingSpec(
    "class-tail",
    "warning",
    f"a class is more than {LONG_TAIL} times the median class",
    "Take images off the largest classes, or add to the small ones.",
)
NONE_MATCHED = FindingSpec(
    "query-none-matched",
    "error",
    "no query has a gallery image of its label",
    "Give gallery.txt and query.txt the same labels.",
)
UNMATCHED = FindingSpec(
    "query-unmatched",
    "warning",
    "this query has none; evaluation leaves it out and counts it",
    "Add a gallery image of that label; evaluation leaves such queries out and counts them.",
)
NOT_QUERIED = FindingSpec(
    "gallery-not-queried", "note", "labels of gallery.txt have no query", "Nothing, if it is intended."
)


def check_classifier(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """train.txt has at least two classes, and the classifier an output for each."""
    train, wanted = data.lists["train"], settings.num_classes
    count = len(train.class_sizes())
    message = f"{train.title} has {count} classes, Train.num_classes is {wanted}."
    if count == 1:
        yield ONE_CLASS.at(train.source, f"All images of {train.title} have one label: there is nothing to tell apart.")
    elif wanted is not None and wanted < count:
        yield TOO_FEW_OUTPUTS.at(train.source, message, fix=f"Use -o Train.num_classes=auto, or {count}.")
    elif wanted is not None and wanted > count > 0:
        yield MORE_OUTPUTS.at(train.source, message)


def check_sampler(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """The batch can be filled with P classes of K images."""
    train, k = data.lists["train"], settings.samples_per_class
    sizes = train.class_sizes()
    if not k or not sizes:
        return
    if error := pk_error(len(sizes), settings.batch_size, k, train.title):
        message, fix = error
        yield BATCH.at(train.source, message, fix=fix)
    small = sorted(label for label, size in sizes.items() if size < k)
    if small:
        shown = ", ".join(map(str, small[:_SHOWN])) + (", …" if len(small) > _SHOWN else "")
        message = (
            f"{len(small)} of {len(sizes)} classes have fewer than {k} images; batches repeat theirs. Labels: {shown}."
        )
        yield SMALL_CLASSES.at(train.source, message)


def check_distribution(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No class has more than LONG_TAIL times as many images as the median class."""
    train = data.lists["train"]
    sizes = train.class_sizes()
    if len(sizes) < 2:
        return
    label, largest = max(sizes.items(), key=lambda item: item[1])
    median = float(np.median(list(sizes.values())))
    if largest > LONG_TAIL * median:
        message = f"Class {label} has {largest} images, the median class {median:g}: it will fill most batches."
        yield TAIL.at(train.source, message)


def check_matches(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Queries have a gallery image of their label, and gallery labels have a query."""
    query, gallery = data.lists["query"], data.lists["gallery"]
    if not query or not gallery:
        return
    offered, asked = gallery.class_sizes().keys(), query.class_sizes().keys()
    counts = match_counts(query, gallery, excluded_pairs(query, gallery))
    other = " from another camera" if query.cameras else " besides its own file" if query.leave_one_out else ""
    if not counts.any():
        message = f"No query has a gallery image of its label{other}: there is nothing to retrieve."
        fix = f"Give {gallery.title} and {query.title} the same labels."
        yield NONE_MATCHED.at(query.source, message, fix="Give classes several images." if other else fix)
        return
    for i in np.flatnonzero(counts == 0).tolist():
        label = query.labels[i]
        lacks = f"has no image in {gallery.title}{other}" if label in offered else f"is not in {gallery.title}"
        yield UNMATCHED.at(query.where(i), f"Label {label} {lacks}.")
    idle = len(offered - asked)
    if idle:
        message = f"{idle} of {len(offered)} labels of {gallery.title} have no query: their images only distract."
        yield NOT_QUERIED.at(gallery.source, message)


CHECKS = (
    CheckSpec("classifier", check_classifier, (ONE_CLASS, TOO_FEW_OUTPUTS, MORE_OUTPUTS)),
    CheckSpec("sampler", check_sampler, (BATCH, SMALL_CLASSES)),
    CheckSpec("distribution", check_distribution, (TAIL,)),
    CheckSpec("matches", check_matches, (NONE_MATCHED, UNMATCHED, NOT_QUERIED)),
)
