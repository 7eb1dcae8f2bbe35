"""Features of Arrow record batches, for programs that divide such batches among processes: Ray Data, Spark, Dask."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from paddlex_feat.errors import ConfigError, ImageError
from paddlex_feat.inference.inputs.items import Item
from paddlex_feat.inference.predictor import Predictor, create_model

FEATURE, ERROR = "feature", "error"  # columns that are added


class ArrowEmbedder:
    """Adds the features of images to record batches. It keeps nothing from one batch to the next but its model.

    It can be pickled: the model is loaded at the first batch, once in each process.

    Args:
        model_name: as for `create_model`, with all the others.
        model_dir: inference directory; None: the official model.
        column: of the images: paths or addresses as text, the bytes of image files, or structs with a field `bytes` and
            perhaps `path`, as Hugging Face's data sets have them.
        options: more arguments of `create_model`.

    A batch, or a table, comes back with the columns feature (a list of D float32; null for an image that cannot be
    used) and error (text; null for the others). A column of bytes or structs is left out.

    Raises ConfigError for a batch without the column, or with another type of it, and what `create_model` does.
    """

    def __init__(self, model_name: str, model_dir: str | None = None, column: str = "image", **options: Any):
        self._arguments = {"model_name": model_name, "model_dir": model_dir, **options}
        self._column = column

    def __getstate__(self) -> dict[str, Any]:
        return {"_arguments": self._arguments, "_column": self._column}

    @cached_property
    def model(self) -> Predictor:
        """The model, which is loaded when it is first asked for."""
        return create_model(**self._arguments)

    def __call__(self, batch: Any) -> Any:
        """The batch, a `pyarrow.RecordBatch` or `pyarrow.Table`, with features."""
        arrow: Any = importlib.import_module("pyarrow")
        if self._column not in batch.schema.names:
            raise self._problem(f"The batch has no column {self._column!r}; it has {', '.join(batch.schema.names)}.")
        given, values = batch.schema.field(self._column).type, batch.column(self._column).to_pylist()
        rows, errors = self._features([self._item(value, place) for place, value in enumerate(values)])
        ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
        unknown = arrow.array([error is not None for error in errors], arrow.bool_())
        # No fixed-size lists, which Spark does not take.
        features = arrow.ListArray.from_arrays(arrow.array(ends), arrow.array(rows.reshape(-1)), mask=unknown)
        kind = given.value_type if arrow.types.is_dictionary(given) else given
        dropped = () if arrow.types.is_string(kind) or arrow.types.is_large_string(kind) else (self._column,)
        columns = {name: batch.column(name) for name in batch.schema.names if name not in (*dropped, FEATURE, ERROR)}
        made = {**columns, FEATURE: features, ERROR: arrow.array(errors, arrow.string())}
        found = type(batch).from_arrays(list(made.values()), names=list(made))
        return found.replace_schema_metadata(batch.schema.metadata)

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches with features, one after the other, as Spark's `mapInArrow` wants it."""
        return map(self, batches)

    def _features(self, items: list[Item]) -> tuple[np.ndarray, list[str | None]]:
        """float32 [N, D], 0 for what failed, and why it failed."""
        rows = np.zeros((len(items), self.model.identity.dimension), np.float32)
        errors: list[str | None] = [None] * len(items)
        for result, _ in self.model.predict_with(iter(items), None, on_error="skip"):
            rows[result.element] = result.feature
        for failed in self.model.failed:
            errors[failed.element] = failed[1]
        return rows, errors

    def _item(self, value: Any, place: int) -> Item:
        location = f"{self._column}[{place}]"
        path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
        source = path if content is None else content
        if isinstance(source, str):
            return Item(source, location, source)
        if isinstance(source, bytes):
            return Item(path, location, source)
        if source is None:
            return Item(None, location, ImageError("There is no image.", where=location, code="image-missing"))
        raise self._problem(f"{location} is {type(value).__name__}, neither text nor the bytes of an image file.")

    def _problem(self, what: str) -> ConfigError:
        fix = "Name the column of the images: ArrowEmbedder(…, column=NAME)."
        return ConfigError(what, where="column", fix=fix, code="arrow-column")
