"""Errors that several places of galleries have in common, and the model that a place names."""

from __future__ import annotations

from typing import Any

from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.identity import ModelIdentity

REBUILT = "gallery-rebuilt"  # code of the error after which the gallery has to be opened again


def missing(where: str) -> GalleryError:
    """The error for a gallery that does not exist."""
    return GalleryError(
        "The gallery does not exist.",
        where=where,
        fix="Build it with Global.mode=index, or give the place of one.",
        code="gallery-missing",
    )


def rebuilt(where: str) -> GalleryError:
    """The error for an open gallery whose file, or the model of whose features, is another one by now."""
    return GalleryError(
        "The gallery was exchanged: its images are of another model by now, or another file is in its place.",
        where=where,
        fix="Open it again, with that model.",
        code=REBUILT,
    )


def changed_meanwhile(where: str) -> GalleryError:
    """The error for a rebuild during which images were added, replaced or removed."""
    return GalleryError(
        "The gallery was changed while its images were embedded again.",
        where=where,
        fix="Run it again while nobody adds or removes images.",
        code="gallery-changed",
    )


def identity_in(content: Any, where: str) -> ModelIdentity:
    """The model that a gallery names. Raises GalleryError if it names none."""
    identity = ModelIdentity.from_json(content)
    if identity is None:
        raise GalleryError(
            "The gallery does not say which model its features are of.",
            where=where,
            fix="Build it again.",
            code="gallery-foreign",
        )
    return identity
