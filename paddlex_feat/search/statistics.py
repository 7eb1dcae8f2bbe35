"""What is in a gallery, and which classes need attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddlex_feat.search.calibrate import Calibration
from paddlex_feat.search.gallery import Gallery

FEW = 2  # images of a class below which no other image of it confirms an answer
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
    """

    model: dict[str, Any]
    images: int
    labels: dict[str, int]
    unlabelled: int
    threshold: Calibration | None

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
        if self.threshold is None:
            lines.append("No threshold: at least two labels are needed")
        else:
            promise = "" if self.threshold.confidence else "; too few labels for a promise"
            least, wrong = self.threshold.threshold, self.threshold.wrong
            lines.append(f"Threshold {least:.4f}: at most {wrong:.0%} of unknown objects get an answer{promise}")

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
        }


def statistics_of(gallery: Gallery) -> Statistics:
    """The figures of a gallery as it is now."""
    counts = gallery.labels()
    labels = {label: count for label, count in counts if label is not None}
    unlabelled = sum(count for label, count in counts if label is None)
    model = {"name": gallery.identity.name, "dimension": gallery.identity.dimension, "digest": gallery.identity.digest}
    return Statistics(model, sum(labels.values()) + unlabelled, labels, unlabelled, gallery.threshold())
