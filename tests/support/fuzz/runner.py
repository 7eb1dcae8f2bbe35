"""Cases in child processes, watched from outside.

A child reports every case as it ends, so the parent knows which one it was in when it crashed or hung, and goes on
behind it. Time is the case's CPU time in all threads: on a busy machine, the clock says little. What is measured of
memory is by how much the case raised the highest resident set of the process (VmHWM) above what it was when the
imports and the sound files were there; a limit on the address space (RLIMIT_AS) saves the machine from worse.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paddlex_feat.errors import FeatError
from support.fuzz.faulty import FAULTY
from support.fuzz.target import Target
from support.fuzz.targets import TARGETS

MOST_SECONDS = 10.0  # of CPU time, for a case
PATIENCE = 60.0  # seconds by the clock after which a case hangs, whatever it waits for
MOST_MIB = 1024.0
_RESERVE = 4 * 2**30  # bytes of address space beyond what the imports take
_LONGEST_MESSAGE = 31_000  # characters; more is no message for a person


@dataclass
class Tally:
    """What became of the cases of a target.

    Attributes:
        outcomes: "accepted" or the class of the refusal -> cases.
        slowest: (CPU seconds, number) of a case.
        memory: MiB that the cases took at most beyond the imports.
        failures: number of a case -> what it did that must not be.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)
    memory: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)


def run(target: str, cases: int, seed: int = 0, first: int = 0, patience: float = PATIENCE) -> Tally:
    """Run the cases `first` … `first + cases - 1` of a target."""
    tally, number, end = Tally(), first, first + cases
    while number < end:
        for report in _reports(target, number, end, seed, patience):
            if isinstance(report, str):  # the child is gone
                tally.failures[number] = report
                number += 1
                break
            outcome, seconds, mib, fault = report
            tally.outcomes[outcome] += 1
            tally.slowest = max(tally.slowest, (seconds, number))
            tally.memory = max(tally.memory, mib)
            if fault:
                tally.failures[number] = fault
            number += 1
            if mib > MOST_MIB:  # a process's highest value never falls: the next cases need another one
                break
    return tally


def _reports(target: str, first: int, end: int, seed: int, patience: float) -> Iterator[Any]:
    """What a child says of its cases, in order; last, a text if it ended before they were done."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    noise = tempfile.NamedTemporaryFile(prefix="fuzz_")  # noqa: SIM115 - what decoders print; closed below
    folder = tempfile.TemporaryDirectory(prefix="fuzz_")  # ours, for the child is killed
    child = context.Process(target=_work, args=(target, first, end, seed, there, noise.name, folder.name), daemon=True)
    child.start()
    there.close()
    ready = False
    try:
        for _ in range(first - 1, end):
            if not here.poll(patience if ready else PATIENCE):
                yield f"hangs: no end after {patience:.0f} s"
                return
            report = here.recv()
            if ready:
                yield report
            ready = True
    except EOFError:
        child.join()
        said = f"the process died with exit code {child.exitcode}: {noise.read()[-1500:].decode(errors='replace')}"
        if not ready:
            raise RuntimeError(said) from None
        yield said
    finally:
        child.kill()
        child.join()
        noise.close()
        folder.cleanup()


def _work(name: str, first: int, end: int, seed: int, pipe: Connection, noise: str, folder: str) -> None:
    target = (TARGETS | {FAULTY.name: FAULTY})[name]
    os.dup2(os.open(noise, os.O_WRONLY | os.O_APPEND), 2)
    target.case(first, seed)
    _use(target, target.sound()[0], Path(folder) / "sound")  # imports, tables and pools of the libraries
    before = _highest_mib()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _RESERVE, size + _RESERVE))
    pipe.send("ready")
    for number in range(first, end):
        data = target.case(number, seed)
        started = time.process_time()
        outcome, fault = _use(target, data, Path(folder) / "case")
        seconds, mib = time.process_time() - started, _highest_mib() - before
        if seconds > MOST_SECONDS:
            fault = fault or f"took {seconds:.1f} s"
        if mib > MOST_MIB:
            fault = fault or f"took {mib:.0f} MiB"
        pipe.send((outcome, seconds, mib, fault))


def _use(target: Target, data: bytes, place: Path) -> tuple[str, str]:
    """(outcome, what is wrong with it)."""
    with tempfile.TemporaryDirectory(prefix=place.name, dir=place.parent) as folder:
        try:
            return target.use(data, Path(folder)), ""
        except FeatError as error:
            length = len(str(error))
            return type(error).__name__, f"a message of {length} characters" if length > _LONGEST_MESSAGE else ""
        except BaseException as error:  # noqa: BLE001 - to see it is what this is for
            return type(error).__name__, "".join(traceback.format_exception(error, limit=-6))[-1500:]


def _highest_mib() -> float:
    # Not ru_maxrss: a process inherits that of the one that started it.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
