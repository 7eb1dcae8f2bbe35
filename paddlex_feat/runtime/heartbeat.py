"""End this process when another machine of the job has died.

The kernel closes the connections of a killed process, which the others notice at once, at least with gloo. A machine
that loses its power or its network closes nothing, and NCCL waits for it without a limit. Therefore every process
sends rank 0 a datagram each second, rank 0 answers, and a process that hears nothing for some minutes ends with an
error. Paddle's store is not used: it has one connection, which collectives use from another thread.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from paddlex_feat.errors import FeatError, PeerLostError
from paddlex_feat.runtime.distributed import ProcessGroup

log = logging.getLogger(__name__)
BEAT = 1.0  # seconds
_TOKEN = 16  # bytes that begin every datagram of the job
_NOBODY = 2**32 - 1
_ended = threading.Event()


def start(group: ProcessGroup, seconds: float, report: Callable[[FeatError], None]) -> None:
    """Watch the other processes from a thread; all ranks call it together, once they are connected.

    Args:
        group: the processes of the job, on all machines.
        seconds: silence after which a process counts as lost. One that was never heard, because datagrams do not pass
            between the machines, is not watched; that is logged.
        report: called with the PeerLostError just before this process is ended.
    """
    import numpy as np

    host = os.environ.get("PADDLE_MASTER", "").rpartition(":")[0]
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.settimeout(BEAT)
    if group.rank == 0:
        server.bind(("", 0))
    message = np.frombuffer(os.urandom(_TOKEN), np.uint8).astype(np.int32)
    port, *token = group.broadcast(np.array([server.getsockname()[1], *message], np.int32)).tolist()
    if not host:
        log.warning("PADDLE_MASTER is not set: a machine that dies is not noticed.")
        return
    _ended.clear()
    watch = _Watch(group, server, (host, port), bytes(token), seconds, report)
    threading.Thread(target=watch.run, name="heartbeat", daemon=True).start()


def stop() -> None:
    """Stop watching; all ranks call it after their last exchange, when one may end much earlier than another."""
    _ended.set()


class _Watch:
    """The thread's state.

    seen: when each rank was heard last: on rank 0 all others, elsewhere rank 0 alone.
    """

    def __init__(
        self,
        group: ProcessGroup,
        server: socket.socket,
        first: tuple[str, int],
        token: bytes,
        seconds: float,
        report: Callable[[FeatError], None],
    ):
        self._group = group
        self._socket = server
        self._first = first
        self._token = token
        self._seconds = seconds
        self._report = report
        self._seen: dict[int, float] = {}
        self._addresses: dict[int, tuple[str, int]] = {}

    def run(self) -> None:
        """Beat and listen until `stop`, or end the process."""
        before = began = time.monotonic()
        pause = max(10 * BEAT, self._seconds / 4)
        expected = set(range(1, self._group.size)) if self._group.rank == 0 else {0}
        while not _ended.is_set():
            # Python's own watchdog needs no lock of the interpreter, with which the main thread may wait in C++.
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback_later(2 * self._seconds + 10 * BEAT, exit=True, file=sys.__stderr__)
            if self._group.rank:
                self._send(self._group.rank, self._first)
                _ended.wait(BEAT)
            lost = self._listen()
            now = time.monotonic()
            if now - before > pause:  # this process was stopped, and heard nothing meanwhile
                self._seen = dict.fromkeys(self._seen, now)
            before = now
            lost = next((rank for rank, at in self._seen.items() if now - at > self._seconds), lost)
            if lost is not None and not _ended.is_set():
                self._end(lost)
            if expected - self._seen.keys() and now - began > self._seconds:
                unheard = ", ".join(map(str, sorted(expected - self._seen.keys())))
                log.warning("No datagrams pass between this machine and ranks %s: their death is not noticed.", unheard)
                expected &= self._seen.keys()
        faulthandler.cancel_dump_traceback_later()

    def _send(self, number: int, address: tuple[str, int]) -> None:
        try:
            self._socket.sendto(self._token + number.to_bytes(4, "big"), address)
        except OSError as error:  # such as a network that is down: silence, which counts
            log.debug("heartbeat: %s", error)

    def _listen(self) -> int | None:
        """Take what has come and, on rank 0, answer. Returns the rank that rank 0 reports as lost, if any."""
        self._socket.settimeout(0 if self._group.rank else BEAT)
        until = time.monotonic() + BEAT
        while time.monotonic() < until:
            try:
                data, address = self._socket.recvfrom(64)
            except OSError:  # nothing more
                return None
            number = int.from_bytes(data[_TOKEN:], "big")
            if data[:_TOKEN] != self._token or len(data) != _TOKEN + 4:  # not of this job
                continue
            if self._group.rank:
                self._seen[0] = time.monotonic()
                if number != _NOBODY:
                    return number
            elif 0 < number < self._group.size:
                self._seen[number], self._addresses[number] = time.monotonic(), address
                self._send(_NOBODY, address)
        return None

    def _end(self, lost: int) -> None:
        for rank, address in self._addresses.items():
            if rank != lost:
                self._send(lost, address)
        error = PeerLostError(
            f"Rank {lost} has not been heard for {self._seconds:g} seconds; its machine or the network is down.",
            where=f"rank {self._group.rank}",
            fix="Look at that machine, then start the job again on all with -o Train.resume=auto.",
        )
        try:
            self._report(error)
        finally:
            os._exit(1)  # the main thread waits in C++ and cannot be told
