"""Batches of decoded images, prepared by processes: for more images than the threads of one process can decode.

Slices are handed out and reported back by tokens of a few bytes in two pipes; pixels, file names and errors pass
through shared memory (ring.py). A decoding process ends when the pipe from the one that trains is closed.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress

import numpy as np

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images import decode
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.decoder_process import READY, TOKEN, Job, Report, Setup
from paddlex_feat.data.loading.loader import BATCHES_AHEAD, Batch, CorruptImageReplacer, in_order, numbered
from paddlex_feat.data.loading.ring import Geometry, Ring, reserve
from paddlex_feat.data.loading.slices import Failure, Samples, slices

log = logging.getLogger(__name__)
HELD = 3  # batches that the caller may keep without a copy
START_SECONDS = 120
_LOOK_MILLISECONDS = 500  # how often silent processes are asked whether they live
_MAX_IMAGES = 20_000  # of a batch: the tokens of all slices in the ring fit into a pipe
# One thread a process: what libraries start for themselves would only cost.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ProcessEnded(Exception):
    """A decoding process was killed, or has failed."""


class DecodingProcesses:
    """Processes that decode for one run; they are started here and stay until `close`.

    Args:
        count: number of processes.
        batch: most images of a batch.
        cache: decoded images, which the processes share.

    Raises OSError if the system has no memory or no room for them, or if batches are too large.
    """

    def __init__(self, count: int, batch: int, augment: Augment, preprocess: Preprocess, cache: ImageCache):
        if batch > _MAX_IMAGES:
            raise OSError(None, f"a batch has more than {_MAX_IMAGES} images")
        self._count = count
        self._samples = Samples(augment, preprocess, cache)
        self._geometry = geometry = Geometry(BATCHES_AHEAD + 1 + HELD, batch, preprocess.size)
        self._children: list[subprocess.Popen[bytes]] = []
        self._files: list[int] = []
        self._stop = weakref.finalize(self, _stop, self._children, self._files)  # at the program's end at the latest
        try:
            shared = reserve(geometry)
            self._files.append(shared)
            self._ring = Ring(shared, geometry)
            self._ring.write(0, 0, Setup(augment, preprocess, cache.limit if cache.fd is not None else 0))
            jobs, self._jobs = os.pipe()
            self._done, done = os.pipe()
            self._files += [self._jobs, self._done]
            try:
                self._start((jobs, done, shared), cache.fd)
            finally:
                os.close(jobs)
                os.close(done)
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._done, select.POLLIN)
        self._ready = 0
        self._working = [0] * geometry.places  # slices at work
        self._taken = [False] * geometry.places  # by a batch in the making
        self._views: list[Callable[[], object]] = [lambda: None] * geometry.places  # weak, of what was given away
        self._reports: list[list[Report]] = [[] for _ in range(geometry.places)]

    def _start(self, pipes: tuple[int, int, int], cache: int | None) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from paddlex_feat.data.loading.decoder_process import main; "
            f"main(*{pipes!r}, {cache!r}, {tuple(self._geometry)!r})"
        )
        kept = (*pipes, *([cache] if cache is not None else []))
        for _ in range(self._count):
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [sys.executable, "-c", code],
                pass_fds=kept,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the process that trains alone
            )
            self._children.append(child)

    def wait_until_ready(self) -> None:
        """Raises OSError or ProcessEnded if a process could not start its work."""
        latest = time.monotonic() + START_SECONDS
        while self._ready < self._count:
            self._receive()
            if time.monotonic() > latest:
                raise OSError(None, f"they did not start within {START_SECONDS} seconds")

    def close(self) -> None:
        """End the processes. They hold nothing that would have to be saved."""
        self._stop()

    def batches(
        self,
        batches: Iterable[np.ndarray],
        paths: Sequence[str],
        key: tuple[int, ...],
        first: int = 0,
        bad: CorruptImageReplacer | None = None,
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """As `loader.training_batches`, the same bytes; one epoch at a time.

        An array is in shared memory, which is used again when nothing refers to it any longer.

        Raises ProcessEnded instead of a batch if a process has ended.
        """
        self._ring.epoch += 1
        made: list[int] = []

        def submit(group: tuple[int, np.ndarray]) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
            position, indices = group
            place = self._free_place()
            made.append(place)
            self._taken[place] = True
            self._reports[place].clear()
            for part, rows in enumerate(slices(len(indices), self._count)):
                files = [paths[i] for i in indices[rows].tolist()]
                self._ring.write(place, part, Job(key, position + rows.start, rows.start, files))
                self._working[place] += 1
                self._hand_out(TOKEN.pack(place, part, self._ring.epoch & 0xFFFF, 0))
            batch = Batch(position, indices, self._ring.images(place)[: len(indices)])
            return lambda: self._completed(place, batch, paths, key, bad)

        try:
            yield from in_order(numbered(batches, first), submit, BATCHES_AHEAD)
        finally:
            for place in made:
                self._taken[place] = False
            self._ring.epoch += 1  # what is not decoded yet need not be

    def _hand_out(self, token: bytes) -> None:
        try:
            os.write(self._jobs, token)
        except BrokenPipeError:  # none of them is left
            for child in self._children:
                child.wait()
            self._require_alive()

    def _completed(
        self, place: int, batch: Batch, paths: Sequence[str], key: tuple[int, ...], bad: CorruptImageReplacer | None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._require_alive()
        while self._working[place]:
            self._receive()
        failures: list[Failure] = []
        for report in self._reports[place]:
            failures += report.failures
            for name, said in report.repairs:
                decode.on_repair(name, said)
        batch.replace(sorted(failures, key=lambda failure: failure.position), paths, self._samples, key, bad)
        self._taken[place] = False
        if sum(view() is not None for view in self._views) < HELD:
            self._views[place] = weakref.ref(batch.images.base)  # of all views of the images, whatever shows them
            return batch.indices, batch.images
        return batch.indices, batch.images.copy()

    def _free_place(self) -> int:
        """A place that is not in use; at most HELD are given away, so one is free or will be."""
        while True:
            for place, working in enumerate(self._working):
                if not (working or self._taken[place] or self._views[place]() is not None):
                    return place
            self._receive()

    def _receive(self) -> None:
        """Take in what the processes have done, waiting for it at most _LOOK_MILLISECONDS."""
        if not self._poll.poll(_LOOK_MILLISECONDS):
            self._require_alive()
            return
        tokens = os.read(self._done, 512 * TOKEN.size)
        if not tokens:
            self._require_alive()
            time.sleep(0.01)  # the last one is about to end
        for at in range(0, len(tokens), TOKEN.size):
            token = tokens[at : at + TOKEN.size]
            if token == READY:
                self._ready += 1
                continue
            place, part, epoch, message = TOKEN.unpack(token)
            self._working[place] -= 1
            if message and epoch == self._ring.epoch & 0xFFFF:
                self._reports[place].append(self._ring.read(place, part))

    def _require_alive(self) -> None:
        for child in self._children:
            code = child.poll()
            if code is not None:
                how = f"signal {-code}; perhaps memory ran out" if code < 0 else f"exit code {code}"
                raise ProcessEnded(f"one has ended: {how}")


def _stop(children: list[subprocess.Popen[bytes]], files: list[int]) -> None:
    for child in children:
        with suppress(OSError):
            child.kill()
    for child in children:
        child.wait()
    for fd in files:
        os.close(fd)
    children.clear()
    files.clear()
