"""Try the whole package on a machine with paddlepaddle-gpu, in about ten minutes.

    python scripts/accept_gpu.py [--json FILE] [--items 1,2,13] [--keep FOLDER]
    python scripts/accept_gpu.py --dry        what can be tried on a CPU; the rest is listed as not run

Prints one line a check: number, name, figure, bound, and ok, FAIL or not run with the reason. Writes all lines as
JSON. Exit code 1 if a check failed. Each item runs in a process of its own, so a crash ends none of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # of a checkout that is not installed

from accept.bench import FAIL, NOT_RUN, Bench, Failed, Line, NotRun, last_words  # noqa: E402

PATIENCE = 300  # seconds that an item may take
ITEMS = range(1, 15)


def main(words: list[str]) -> int:
    """Run the items; 0 if none failed, 1 if one did, 2 without a GPU or with words that make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="run on the CPU what can be run there")
    parser.add_argument(
        "--json", type=Path, default=Path("accept_gpu.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--items", type=_items, default=list(ITEMS), help="numbers, separated by commas; default: all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep data and outputs there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # what a process of one item is started with
    parser.add_argument("--gpus", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        return _run_item(given.one, given.gpus, given.keep, given.json)
    gpus = 0 if given.dry else _visible_gpus()
    if not given.dry and not gpus:
        print("Paddle sees no GPU here: install paddlepaddle-gpu (see README.md), or try --dry.", file=sys.stderr)
        return 2
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        return _run_all(given.items, gpus, given.keep.resolve(), given.json)
    with tempfile.TemporaryDirectory(prefix="accept_gpu_") as folder:
        return _run_all(given.items, gpus, Path(folder), given.json)


def _items(text: str) -> list[int]:
    """Numbers of items, separated by commas."""
    known = {str(number): number for number in ITEMS}
    unknown = [word for word in text.split(",") if word.strip() not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a number from {ITEMS[0]} to {ITEMS[-1]}")
    return [known[word.strip()] for word in text.split(",")]


def _visible_gpus() -> int:
    import paddle

    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def _run_all(items: list[int], gpus: int, folder: Path, report: Path) -> int:
    started, lines = time.monotonic(), []
    for item in items:
        lines += _in_a_process(item, gpus, folder)
    counts = {verdict: sum(line["verdict"] == verdict for line in lines) for verdict in ("ok", FAIL, NOT_RUN)}
    seconds = round(time.monotonic() - started)
    report.write_text(
        json.dumps({"gpus": gpus, "seconds": seconds, **counts, "lines": lines}, indent=2), encoding="utf-8"
    )
    print(f"{counts['ok']} ok, {counts[FAIL]} FAIL, {counts[NOT_RUN]} not run, {seconds} s; {report}")
    return 1 if counts[FAIL] else 0


def _in_a_process(item: int, gpus: int, folder: Path) -> list[dict[str, object]]:
    """Run one item, whose process prints its lines, and read what it has left."""
    file, log = folder / f"item_{item}.jsonl", folder / f"item_{item}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", str(item), "--gpus", str(gpus), "--keep", str(folder)]
    with log.open("wb") as errors:
        process = subprocess.Popen([*command, "--json", str(file)], stderr=errors, start_new_session=True)
        try:
            code: object = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = f"none after {PATIENCE} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # this item's own processes
                process.wait()
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []
    if code != 0:
        reason = last_words(log.read_text(errors="replace"))
        line = Line(item, "the item's process", f"exit code {code}", "0", FAIL, reason)
        print(line, flush=True)
        lines.append(asdict(line))
    return lines


def _run_item(item: int, gpus: int, folder: Path, file: Path) -> int:
    from accept import ITEMS

    bench = Bench(item, "gpu:0" if gpus else "cpu", gpus, folder)
    console = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the item's log
    with file.open("a", encoding="utf-8") as stream:

        def tell(line: Line) -> None:
            print(line, file=console, flush=True)
            stream.write(json.dumps(asdict(line)) + "\n")
            stream.flush()

        for check in ITEMS[item]:
            name = check.__name__.replace("_", " ")
            try:
                for line in check(bench):
                    tell(line)
            except NotRun as reason:
                tell(bench.not_run(name, str(reason)))
            except Failed as reason:
                tell(Line(item, name, verdict=FAIL, reason=str(reason)))
            except Exception as error:  # noqa: BLE001 - the other checks of the item follow
                tell(Line(item, name, verdict=FAIL, reason=" ".join(f"{type(error).__name__}: {error}".split())[:600]))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the item's process is ended too
    sys.exit(main(sys.argv[1:]))
