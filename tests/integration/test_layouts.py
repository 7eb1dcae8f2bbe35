"""Random data sets of every layout: none is taken for another, and all become the same items when converted."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.layouts import LAYOUTS, Made, make
from support.runs import CLIP, TINY, run_here, train_tiny

from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import find_root, reader_of, require_lists

CONVERT = (
    "Global.mode=check_dataset",
    "CheckDataset.convert.enable=True",
    "CheckDataset.convert.src_dataset_type=auto",
    "CheckDataset.convert.crops=True",
    "CheckDataset.decode=none",
    "Train.samples_per_class=null",
)
CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "8"))  # of each layout


def classes(*lists: ImageList) -> Counter[str]:
    return Counter(records.name_of(label) for records in lists for label in records.labels)


def require_made(top: Path, made: Made) -> dict[str, ImageList]:
    root = find_root(str(top))
    assert reader_of(root).name == made.reader
    lists = require_lists(str(top))
    assert {p.part for p in made.images} <= {"train", "test", "all"}
    if made.images[0].part == "all":  # divided at random
        found = classes(*lists.values()), None
        expected = Counter(image.name for image in made.images), None
    else:
        found = classes(lists["train"]), classes(lists["gallery"])
        expected = tuple(Counter(i.name for i in made.images if i.part == part) for part in ("train", "test"))
    if made.reader != "LabelMeShapes":  # whose pictures hold images of one part alone
        assert found == expected
    assert found[0] and found[0].keys() <= {image.name for image in made.images}
    return lists


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_is_taken_for_another(layout, tmp_path):
    for case in range(CASES):
        top = tmp_path / str(case)
        made = make(layout, random.Random(f"{layout} {case}"), top)
        require_made(top, made)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_converted_stays_the_same(layout, tmp_path):
    made = make(layout, random.Random(layout), tmp_path / "set")
    before = require_made(tmp_path / "set", made)
    words = (*CONVERT, f"Global.dataset_dir={tmp_path / 'set'}", f"Global.output={tmp_path / 'out'}")
    done = run_here("-c", "PP-ShiTuV2_rec", *(word for setting in words for word in ("-o", setting)))
    result = json.loads((tmp_path / "out/check_dataset_result.json").read_text(encoding="utf-8"))
    assert result["dataset_type"] == "ShiTuRecDataset", done.stderr[-1500:]
    after = require_lists(str(tmp_path / "set"))
    for name, records in before.items():
        assert [records.name_of(label) for label in records.labels] == [
            after[name].name_of(c) for c in after[name].labels
        ]
        pairs = zip(records.files(), after[name].files(), strict=True)
        assert all(np.array_equal(read_bgr(one), read_bgr(other)) for one, other in pairs)


def test_class_folders_are_trained_and_evaluated_leave_one_out(small_faces, tmp_path):
    root = tmp_path / "set"
    for name, records in require_lists(str(small_faces)).items():
        part = "train" if name == "train" else "test"
        for number, (file, label) in enumerate(zip(records.files(), records.labels, strict=True)):
            target = root / part / f"person {label}" / f"{name}{number}.pgm"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(file).read_bytes())
    done = train_tiny(root, tmp_path / "out")
    assert done.returncode == 0 and "find themselves" not in done.stderr, done.stderr[-2000:]
    names = json.loads((tmp_path / "out/class_names.json").read_text())
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert "person 10" in names.values() and record["dataset_read_as"].startswith("ClassFolders: ")
    assert record["dataset"]["gallery"] == record["dataset"]["query"]
    weights = f"Evaluate.weight_path={tmp_path / 'out/best_model/inference'}"
    words = ("Global.mode=evaluate", f"Global.dataset_dir={root}", f"Global.output={tmp_path / 'eval'}", weights)
    done = run_here("-c", CLIP, *(word for setting in (*TINY, *words) for word in ("-o", setting)))
    result = json.loads((tmp_path / "eval/evaluate_result.json").read_text())
    assert done.returncode == 0 and 0 < result["metrics"]["recall1"] <= 1
    table = (tmp_path / "eval/evaluate/queries.csv").read_text().splitlines()
    assert table[0].endswith('"name","top1_name"') and '"person ' in table[1]
    assert not any(line.split(",")[0] == line.split(",")[4] for line in table[1:])  # no query finds itself
    verified = run_here("verify", str(tmp_path / "out"))
    assert verified.returncode == 0, verified.stdout + verified.stderr
