"""Features of Arrow's record batches, and the recipes of docs/scale.md for programs that divide them."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.runs import ROOT

arrow = pytest.importorskip("pyarrow")
pytest.importorskip("paddle")

from paddlex_feat.errors import ConfigError
from paddlex_feat.inference.arrow import ArrowEmbedder

NAME = "PP-ShiTuV2_rec"


@pytest.fixture
def embedder(run_folder) -> ArrowEmbedder:
    return ArrowEmbedder(NAME, str(run_folder / "best_model/inference"), device="cpu")


def expected(model, files: list[str]) -> np.ndarray:
    return np.stack([result.feature for result in model.predict(files)])


def test_paths_bytes_and_structs_get_the_features_of_predict(embedder, model, files):
    contents = [Path(file).read_bytes() for file in files]
    structs = [{"bytes": content, "path": None} for content in contents]
    structs[0] = {"bytes": None, "path": files[0]}
    for column in (files, contents, structs):
        batch = arrow.RecordBatch.from_pydict({"id": list(range(len(files))), "image": column})
        for given in (batch, arrow.Table.from_batches([batch])):
            found = embedder(given)
            assert type(found) is type(given) and found.column("id").to_pylist() == list(range(len(files)))
            assert ("image" in found.schema.names) == (column is files)
            rows = np.array(found.column("feature").to_pylist(), np.float32)
            assert np.array_equal(rows, expected(model, files)) and not any(found.column("error").to_pylist())


def test_names_that_are_a_dictionary_stay_and_so_do_notes(embedder, files):
    schema = arrow.schema([("image", arrow.dictionary(arrow.int32(), arrow.string()))], metadata={"a": "b"})
    batch = arrow.RecordBatch.from_arrays([arrow.array(files[:2]).dictionary_encode()], schema=schema)
    found = embedder(batch)
    assert found.column("image").to_pylist() == files[:2] and found.schema.metadata == {b"a": b"b"}


def test_what_fails_is_null_with_its_reason(embedder, files):
    batch = arrow.RecordBatch.from_pydict({"image": [files[0], "missing.jpg", None, files[1]]})
    found = embedder(batch)
    features, errors = (found.column(name).to_pylist() for name in ("feature", "error"))
    assert features[1] is features[2] is None and len(features[0]) == len(features[3])
    assert errors[0] is errors[3] is None and errors[1] and errors[2] == "There is no image."
    damaged = embedder(arrow.RecordBatch.from_pydict({"image": [b"no image"]}))
    assert damaged.column("feature").to_pylist() == [None] and damaged.column("error").to_pylist()[0]
    empty = embedder(batch.slice(0, 0))
    assert empty.num_rows == 0 and empty.schema == found.schema


def test_a_copy_loads_its_own_model_and_batches_are_a_stream(embedder, files):
    batch = arrow.RecordBatch.from_pydict({"image": files[:3]})
    first = embedder(batch)
    copy = pickle.loads(pickle.dumps(embedder))
    assert "model" not in vars(copy)
    found = list(copy.stream(iter([batch, batch])))
    assert len(found) == 2 and all(each.equals(first) for each in found)


@pytest.mark.parametrize("column", [[1, 2], [[1], [2]]])
def test_other_columns_are_refused(embedder, column):
    with pytest.raises(ConfigError, match="neither text nor the bytes"):
        embedder(arrow.RecordBatch.from_pydict({"image": column}))
    with pytest.raises(ConfigError, match="no column 'image'"):
        embedder(arrow.RecordBatch.from_pydict({"picture": ["a"]}))


@pytest.mark.slow
def test_the_recipe_for_ray_gives_the_features_of_predict(model, files, run_folder, tmp_path):
    """Of docs/scale.md word for word, on a local cluster of two workers."""
    pytest.importorskip("ray")
    recipe = re.search(r"```python\n(import ray\n.*?)```", (ROOT / "docs/scale.md").read_text(), re.DOTALL)
    code = recipe[1].replace("photos/", f"{Path(files[0]).parent}/").replace("output/", f"{run_folder}/")
    (tmp_path / "recipe.py").write_text(code.replace("features/", f"{tmp_path}/features/"))
    done = subprocess.run(
        [sys.executable, tmp_path / "recipe.py"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "features")
    found = dict(zip(table.column("path").to_pylist(), table.column("feature").to_pylist(), strict=True))
    photographs = sorted(map(str, Path(files[0]).parent.iterdir()))
    assert sorted(found) == photographs and len(photographs) == 10
    rows = np.array([found[path] for path in photographs], np.float32)
    assert np.array_equal(rows, expected(model, photographs))
