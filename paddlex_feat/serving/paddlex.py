"""The four paths of PaddleX's service, so that its clients run unchanged; every answer has its form."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, FiniteFloat

from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem, texts_of
from paddlex_feat.search.thumbnails import thumbnail
from paddlex_feat.serving.answers import PADDLEX_PATHS
from paddlex_feat.serving.batching import MAX_BATCH
from paddlex_feat.serving.images import Fetch, reader_of
from paddlex_feat.serving.state import Pair, State

MAX_PAIRS = 10_000  # images of one request


class ImageLabelPair(BaseModel):
    """An image and its label."""

    image: str
    label: str


class BuildRequest(BaseModel):
    """Images of a new index."""

    imageLabelPairs: Annotated[list[ImageLabelPair], Field(max_length=MAX_PAIRS, fail_fast=True)]


class AddRequest(BuildRequest):
    """More images of an index."""

    indexKey: str | None = None


class RemoveRequest(BaseModel):
    """Images that leave an index."""

    ids: Annotated[list[int], Field(max_length=MAX_PAIRS, fail_fast=True)]
    indexKey: str | None = None


class InferRequest(BaseModel):
    """A picture that is recognized; what is for PaddleX's detector and for other indexes has no effect."""

    image: str
    indexKey: str | None = None
    detThreshold: float | None = None
    recThreshold: FiniteFloat | None = None
    hammingRadius: float | None = None
    topk: int | None = Field(None, ge=1, le=10_000)
    visualize: bool | None = None


def add_paths(app: FastAPI, state: State, fetch: Fetch | None) -> None:
    """Add the four paths."""

    @app.post(PADDLEX_PATHS[0], tags=["PaddleX"])
    def build(given: BuildRequest) -> JSONResponse:
        """A new index of images."""

        def built(pair: Pair) -> dict[str, Any]:
            items = _embedded(pair, given.imageLabelPairs, fetch)
            key, gallery = state.clients.new(pair.model.identity)
            gallery.add_items(_numbered(items, 0))
            return {"indexKey": key, "imageCount": len(gallery)}

        return _success(state.run(built))

    @app.post(PADDLEX_PATHS[1], tags=["PaddleX"])
    def add(given: AddRequest) -> JSONResponse:
        """Add images to an index."""

        def added(pair: Pair) -> dict[str, Any]:
            gallery = state.clients.of_key(given.indexKey, pair.model.identity)
            items = _embedded(pair, given.imageLabelPairs, fetch)
            with state.clients.numbering:
                gallery.add_items(_numbered(items, max(_numbers(gallery), default=-1) + 1))
            return {"imageCount": len(gallery)}

        return _success(state.run(added))

    @app.post(PADDLEX_PATHS[2], tags=["PaddleX"])
    def remove(given: RemoveRequest) -> JSONResponse:
        """Remove images by PaddleX's numbers: from 0, and one more than the largest that is there for each new one."""

        def removed(pair: Pair) -> dict[str, Any]:
            gallery = state.clients.of_key(given.indexKey, pair.model.identity)
            numbers = _numbers(gallery)
            gallery.remove(ids=[numbers[i] for i in given.ids if i in numbers])
            return {"imageCount": len(gallery)}

        return _success(state.run(removed))

    @app.post(PADDLEX_PATHS[3], tags=["PaddleX"])
    def infer(given: InferRequest) -> JSONResponse:
        """Recognize a picture as a whole, as PaddleX does where its detector finds nothing."""
        read, key = reader_of(given.image, fetch), given.indexKey

        def recognized(pair: Pair) -> dict[str, Any]:
            [(feature, (height, width))] = pair.batcher.features([read], lambda image: image.shape[:2])
            gallery = pair.gallery if key is None else state.clients.of_key(key, pair.model.identity)
            hits = _hits(gallery, feature, given)
            return {"bbox": [0, 0, width, height], "recResults": hits, "score": 0.0}

        return _success({"detectedObjects": [state.run(recognized)]})


def _embedded(pair: Pair, given: list[ImageLabelPair], fetch: Fetch | None) -> list[NewItem]:
    """The images of a request with their features; all or none."""
    items = []
    for first in range(0, len(given), MAX_BATCH):
        part = given[first : first + MAX_BATCH]
        reads = [reader_of(each.image, fetch) for each in part]
        for each, (feature, small) in zip(part, pair.batcher.features(reads, thumbnail), strict=True):
            item = NewItem(uuid.uuid4().hex, feature, each.label or None, thumbnail=small)
            texts_of(item, pair.model.identity.dimension)  # refuses a label that no gallery keeps
            items.append(item)
    return items


def _numbered(items: list[NewItem], first: int) -> list[NewItem]:
    """Items with PaddleX's numbers as their data; PaddleX's clients have no data of their own."""
    return [replace(item, data=number) for number, item in enumerate(items, first)]


def _numbers(gallery: Gallery) -> dict[int, int]:
    """The item of each of PaddleX's numbers."""
    return {item.data: item.id for item in gallery.items() if isinstance(item.data, int)}


def _hits(gallery: Gallery, feature: np.ndarray, given: InferRequest) -> list[dict[str, Any]]:
    answer = gallery.answers(feature[None], given.topk or 5, None)[0]
    least = given.recThreshold if given.recThreshold is not None else 0.5  # PaddleX's own
    return [{"label": hit.item.label or "", "score": hit.score} for hit in answer.hits if hit.score >= least]


def _success(result: dict[str, Any]) -> JSONResponse:
    return JSONResponse({"logId": uuid.uuid4().hex, "errorCode": 0, "errorMsg": "Success", "result": result})
