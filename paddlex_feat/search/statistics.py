"""What is in a gallery, and which classes need attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddlex_feat.search.advice import FEW, MAX_IMAGES, LabelAdvice, advise
from paddlex_feat.search.calibrate import Calibration
from paddlex_feat.search.gallery import Gallery

_SHOWN = 10


@dataclass(frozen=True)
class Statistics:
    """Figures of a gallery.

    Attributes:
        model: its name and the numbers of a feature.
        images: in all.
        labels: images of each label.
        unlabelled: images without a label.
        threshold: of "auto"; None for fewer than two labels.
        advice: for each label; None for a gallery that is too large.
    """

    model: dict[str, Any]
    images: int
    labels: dict[str, int]
    unlabelled: int
    threshold: Calibration | None
    advice: list[LabelAdvice] | None

    @property
    def few(self) -> list[str]:
        """Labels with fewer than FEW images, in their order."""
        return [label for label, count in self.labels.items() if count < FEW]

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.images} images of {len(self.labels)} labels, {self.unlabelled} without; {self.model['name']}"]
        if self.few:
            shown = ", ".join(self.few[:_SHOWN]) + (" …" if len(self.few) > _SHOWN else "")
            lines.append(f"{len(self.few)} labels have fewer than {FEW} images: {shown}")
        if self.advice is None:
            lines.append(f"No advice for labels: more than {MAX_IMAGES} images have one")
        else:
            misplaced = sum(len(each.misplaced) for each in self.advice)
            needed = sum(len(each.needed) for each in self.advice)
            lines.append(
                f"{misplaced} images are nearest to one of another label; of {sum(self.labels.values())} images with "
                f"a label {needed} give the others the same answers as all"
            )
        if self.threshold is None:
            lines.append("No threshold: at least two labels are needed")
        else:
            lines.append(f"Threshold {self.threshold.threshold:.4f}: {self.threshold.promise}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Plain data, for index_result.json and the service."""
        threshold = None if self.threshold is None else self.threshold.as_json()
        return {
            "model": self.model,
            "images": self.images,
            "labels": len(self.labels),
            "unlabelled": self.unlabelled,
            "labels_with_few_images": self.few,
            "threshold": threshold,
            "advice": None if self.advice is None else [each.as_json() for each in self.advice],
        }


def statistics_of(gallery: Gallery, advised: bool = True) -> Statistics:
    """The figures of a gallery as it is now; with advice for its labels, which may take a minute."""
    counts = gallery.labels()
    labels = {label: count for label, count in counts if label is not None}
    unlabelled = sum(count for label, count in counts if label is None)
    model = {"name": gallery.identity.name, "dimension": gallery.identity.dimension, "digest": gallery.identity.digest}
    named = {item.id: item.label for item in gallery.items() if item.label is not None}
    advice = advise(gallery.rows(), named) if advised and len(named) <= MAX_IMAGES else None
    return Statistics(model, sum(labels.values()) + unlabelled, labels, unlabelled, gallery.threshold(), advice)
