"""SIGKILL while a gallery is changed: what was acknowledged is there, of what was not there is all or nothing.

PADDLEX_FEAT_KILLS asks for more kills than a landing's 60; 300 were counted for docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.exchange import export_gallery, import_gallery
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = int(os.environ.get("PADDLEX_FEAT_KILLS", "60"))
D, EACH = 32, 25
IDENTITY = ModelIdentity("m", "d", "p", D)
State = dict[str, tuple[str, int]]  # label and number of the feature by key


def vector(number: int) -> np.ndarray:
    row = np.random.default_rng(number).standard_normal(D)
    return (row / np.linalg.norm(row)).astype(np.float32)


def after(state: State, step: int) -> tuple[str, State]:
    """What the step does, and the gallery after it."""
    kind = ("add", "replace", "remove", "import", "compact", "rebuild")[random.Random(step).randrange(6)]
    changed = dict(state)
    if kind in ("add", "import"):
        changed |= {f"{kind} {step} {i}": (f"label {i % 3}", 1000 * step + i) for i in range(EACH)}
    elif kind == "replace":
        for key in sorted(state)[:EACH]:
            changed[key] = ("replaced", changed[key][1] + 7)
    elif kind == "remove":
        for key in random.Random(step + 1).sample(sorted(state), min(EACH, len(state))):
            del changed[key]
    elif kind == "rebuild":
        changed = {key: (label, number + 13) for key, (label, number) in state.items()}
    return kind, changed


def items(state: State, keys: list[str]) -> list[NewItem]:
    return [NewItem(key, vector(state[key][1]), state[key][0], data=key, thumbnail=bytes(3000)) for key in keys]


def do(gallery: Gallery, before: State, step: int, folder: Path) -> None:
    """One change of a gallery that has `before`."""
    kind, changed = after(before, step)
    new = [key for key in changed if changed[key] != before.get(key)]
    if kind in ("add", "replace"):
        gallery.add_items(items(changed, new))
    elif kind == "remove":
        gallery.remove(keys=[key for key in before if key not in changed])
    elif kind == "compact":
        gallery.compact()
    elif kind == "rebuild":
        known = gallery.items()
        rows = np.array([vector(changed[item.key][1]) for item in known], np.float32).reshape(len(known), D)
        gallery._backend.rebuild(IDENTITY, [item.id for item in known], rows, gallery.version())
    else:
        with Gallery.create(folder / f"{step}.gallery", IDENTITY) as other:
            other.add_items(items(changed, new))
            import_gallery(gallery, export_gallery(other, "npz", folder / str(step))[0])


def change_until_killed(path: Path, state: State, step: int, told: int) -> None:
    """In a child: change by change, each told once it is acknowledged."""
    with Gallery(path) as gallery:
        while True:
            os.write(told, f"begun {step}\n".encode())
            do(gallery, state, step, path.parent)
            state = after(state, step)[1]
            os.write(told, f"done {step}\n".encode())
            step += 1


def test_killed_at_any_moment_a_gallery_has_what_was_acknowledged_and_nothing_half(tmp_path):
    path, chance = tmp_path / "a.gallery", random.Random(5)
    Gallery.create(path, IDENTITY).close()
    state: State = {}
    step = within = 0
    for _ in range(KILLS):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                change_until_killed(path, state, step, writing)
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(chance.uniform(0.005, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # it has not ended by an error of its own
        with os.fdopen(reading) as stream:
            lines = stream.read().split("\n")[:-1]
        for line in lines:
            if line.startswith("done"):
                state, step = after(state, step)[1], step + 1
        found = read(path)
        whole = after(state, step)[1]
        assert found in (expected(state), expected(whole))
        if lines and lines[-1].startswith("begun"):
            within += 1
            if found == expected(whole):  # it was on the disk, and not yet acknowledged
                state, step = whole, step + 1
    assert within > KILLS / 4


def expected(state: State) -> dict[str, tuple[str, bytes]]:
    return {key: (label, vector(number).tobytes()) for key, (label, number) in state.items()}


def read(path: Path) -> dict[str, tuple[str, bytes]]:
    """Label and feature by key, as a reader finds them."""
    with Gallery(path) as gallery:
        rows = {int(i): row for ids, part in gallery.rows() for i, row in zip(ids, part, strict=True)}
        found = gallery.items()
        assert rows.keys() == {item.id for item in found} and len(gallery) == len(found)
        assert all(item.data == item.key for item in found)
    return {item.key: (str(item.label), rows[item.id].tobytes()) for item in found}
