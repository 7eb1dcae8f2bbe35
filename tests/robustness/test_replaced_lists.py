"""List files are replaced together: kills at any moment, runs at the same time, full disks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.datasets import CONVERT, SPLIT, copied, labelme_set
from support.runs import ROOT

from paddlex_feat.data.lists import transaction
from paddlex_feat.data.readers import LISTS, find_root
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import OutputError

FILES = (*LISTS, transaction.NAMES)


def old_and_new(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    old, new = ({name: f"{text}_{name}.jpg 1\n" for name in FILES} for text in ("old", "new"))
    for name, text in old.items():
        (root / f"{name}.txt").write_text(text)
    return old, new


def state(root: Path) -> dict[str, str]:
    return {name: transaction.read(root, name, 2**20).decode() for name in FILES}


@pytest.mark.parametrize("nth", range(30))
def test_dying_at_any_call_leaves_the_old_lists_or_the_new_ones(tmp_path, nth):
    """The process dies at its n-th change of the file system, for every n."""
    old, new = old_and_new(tmp_path)
    code = f"""
import os
from pathlib import Path
from paddlex_feat.data.lists import transaction
calls = 0
def dying(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls > {nth}:
            os._exit(9)
        return function(*args, **kwargs)
    return wrapped
for name in ("replace", "link", "rename", "unlink", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
transaction.replace_lists(Path({str(tmp_path)!r}), {new!r})
os._exit(0)
"""
    died = subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode
    # Python 3.10's pathlib keeps functions of its own, so fewer calls are counted there than the 18 or more elsewhere.
    assert died in (0, 9) and (died == 9 or nth >= (18 if sys.version_info >= (3, 11) else 10))
    assert state(tmp_path) in (old, new)
    if state(tmp_path) == new:
        assert {name: (tmp_path / f"{name}.txt.bak").read_text() for name in FILES} == old
    transaction.replace_lists(tmp_path, new)  # and nothing stands in the way of another run
    assert state(tmp_path) == new and not [p for p in tmp_path.iterdir() if p.name.startswith(".") and "new" in p.name]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["split", "convert"])
def test_sigkill_at_random_moments(faces, tmp_path, kind):
    """50 kills of each command: the lists are the old ones, or the new ones with the old ones as .bak."""
    root = tmp_path / "set"
    if kind == "split":
        copied(faces, root)
    else:
        old_and_new(labelme_set(root, faces))

    def lists() -> dict[str, bytes]:
        return {name: transaction.read(root, name, 2**20) for name in LISTS}

    old = lists()
    command = [sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", "-o", f"Global.dataset_dir={root}"]
    overrides = (
        *(SPLIT if kind == "split" else CONVERT),
        f"Global.output={tmp_path / 'out'}",
        "CheckDataset.decode=none",
    )
    command += [w for s in overrides for w in ("-o", s)]
    started = time.perf_counter()
    assert subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode in (0, 1)
    whole_run, new = time.perf_counter() - started, lists()
    assert new != old
    rng, seen, around = random.Random(0), Counter(), 0.6 * whole_run  # the moment of the change, as far as it is known
    for _ in range(50):
        for kept in root.glob("*.txt.bak*"):
            kept.unlink()
        (root / ".lists_being_replaced").unlink(missing_ok=True)
        for name, data in old.items():
            (root / f"{name}.txt").write_bytes(data)
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.7, 1.4) * around)
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = lists()
        assert after in (old, new)
        seen[after == old] += 1
        around *= 1.05 if after == old else 0.95
        if after == new:
            assert {name: (root / f"{name}.txt.bak").read_bytes() for name in LISTS} == old
    assert min(seen[True], seen[False]) >= 3  # kills before the change and after it


def test_what_a_killed_run_began_is_read_as_finished_and_nothing_is_renamed(tmp_path):
    root = tmp_path / "sub"
    root.mkdir()
    (root / "train.txt").write_text("new_train.jpg 1\n")
    (root / "gallery.txt").write_text("old_gallery.jpg 1\n")  # query.txt, too, may come from a data set of strangers
    for name in ("gallery", "query"):
        (root / f".{name}.txt.new").write_text(f"new_{name}.jpg 1\n")
    (root / ".lists_being_replaced").write_text("")
    before = {p.name: p.read_text() for p in root.iterdir()}
    assert find_root(str(tmp_path)) == root
    assert {n: read_list(root, n)[0].paths for n in LISTS} == {n: [f"new_{n}.jpg"] for n in LISTS}
    assert {p.name: p.read_text() for p in root.iterdir()} == before
    transaction.replace_lists(root, {"train": "newer.jpg 1\n"})
    assert (root / "gallery.txt").read_text() == "new_gallery.jpg 1\n" and (root / "train.txt.bak").is_file()


def test_runs_at_the_same_time_do_not_mix_their_lists(tmp_path):
    old_and_new(tmp_path)
    code = (
        "import sys; from pathlib import Path; from paddlex_feat.data.lists import transaction\n"
        "for i in range(40): transaction.replace_lists(Path(sys.argv[1]),"
        " {n: f'{sys.argv[2]}_{i}.jpg 1\\n' for n in ('train', 'gallery', 'query', 'label')})"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, tmp_path, who], cwd=ROOT) for who in ("a", "b")]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(set(state(tmp_path).values())) == 1
    kept = [sorted(p.read_text() for p in tmp_path.glob(f"{name}.txt.bak*")) for name in FILES]
    assert len(kept[0]) == 80 and len({len(k) for k in kept}) == 1


def test_files_of_the_user_are_not_taken_for_leftovers(tmp_path):
    _, new = old_and_new(tmp_path)
    (tmp_path / ".my_train.txt.new").write_text("mine")
    (tmp_path / "train.txt.bak").symlink_to(tmp_path / "elsewhere")
    transaction.replace_lists(tmp_path, new)
    assert (tmp_path / ".my_train.txt.new").read_text() == "mine" and not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "train.txt.bak.1").is_file()


def test_a_folder_that_cannot_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    old, new = old_and_new(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space"):
        transaction.replace_lists(tmp_path, new)
    assert state(tmp_path) == old
