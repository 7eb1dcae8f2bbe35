"""Fuzzing of every reader: PYTHONPATH=tests python -m support.fuzz [TARGET|all] [CASES] [SEED] [FIRST]

Without CASES, each target runs the long version's number. FIRST is the number of the first case, so
`PYTHONPATH=tests python -m support.fuzz png 1 0 417` repeats one case, and `--save FILE` writes its bytes.
Exit code 1 if any case failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from support.fuzz.runner import Tally, run
from support.fuzz.targets import CASES, TARGETS

ROW = "{:<10} {:>7} {:>9} {:>8} {:>12} {:>9} {:>7}  {}"


def describe(name: str, tally: Tally) -> str:
    """A row of the table."""
    refused = {k: n for k, n in tally.outcomes.most_common() if k != "accepted"}
    seconds, number = tally.slowest
    return ROW.format(
        name,
        sum(tally.outcomes.values()),
        tally.outcomes["accepted"],
        sum(refused.values()),
        f"{seconds:.2f} (#{number})",
        f"{tally.memory:.0f}",
        len(tally.failures),
        ", ".join(f"{kind} {count}" for kind, count in refused.items()),
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="all", choices=["all", *TARGETS])
    parser.add_argument("cases", nargs="?", type=int)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("first", nargs="?", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write the first case's bytes to this file, and run nothing")
    args = parser.parse_args()
    if args.save:
        args.save.write_bytes(TARGETS[args.target].case(args.first, args.seed))
        return 0
    print(ROW.format("target", "cases", "accepted", "refused", "slowest, s", "peak MiB", "failed", "refused as"))
    failed = False
    for name in TARGETS if args.target == "all" else [args.target]:
        tally = run(name, args.cases or CASES[name], args.seed, args.first)
        print(describe(name, tally), flush=True)
        for number, fault in list(tally.failures.items())[:20]:
            print(f"    case {number}: {fault}", flush=True)
        failed |= bool(tally.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
