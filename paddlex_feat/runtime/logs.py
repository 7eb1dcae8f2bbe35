"""Where messages go: the console, without breaking a progress bar, and `<output>/<mode>.log`."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlex_feat.errors import MAX_MESSAGE, FeatError, sanitize
from paddlex_feat.fileio.locks import open_log

FILE_ONLY = "paddlex_feat.file"  # the logger whose records the console leaves out
LOG_START = "PADDLEX_FEAT_LOG_START"  # environment: how long train.log was before the run
_MOST_MOVED = 256 * 2**20  # bytes
_size_at_start: dict[Path, int] = {}


def _message(record: logging.LogRecord) -> str:
    """A record's text as one line; an error's has lines of its own."""
    if record.msg == "%s" and isinstance(record.args, tuple) and isinstance(record.args[0], FeatError):
        return str(record.args[0])  # which has seen to what it quotes
    return sanitize(record.getMessage())


class ConsoleHandler(logging.Handler):
    """INFO bare, warnings and errors with their level in front."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.addFilter(lambda record: record.name != FILE_ONLY)

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        text = level + _message(record)
        bars = sys.modules.get("tqdm")  # not imported just to print a line
        with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is closed: nobody to tell
            if bars is not None:
                bars.tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)


class _LogFile(logging.FileHandler):
    """A log that, where it cannot be written, says so once, and leaves it to the run whether that is the end."""

    _said = False

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_log(Path(self.baseFilename)), encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            logging.getLogger("paddlex_feat").warning("%s is not complete: %s.", self.baseFilename, error.strerror)


class _FileFormatter(logging.Formatter):
    """One line a message; what follows it, of an error or a traceback, cannot pass for another."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _message(record)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei)[:MAX_MESSAGE].split("\n")  # an exception may quote any text
        return "\n".join(f"| {sanitize(line)}" for line in lines)[:MAX_MESSAGE]


@contextlib.contextmanager
def restored_logger() -> Iterator[None]:
    """Put handlers, level and propagation of the package's logger back when the block ends, and close its log files."""
    logger = logging.getLogger("paddlex_feat")
    former = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        for handler in logger.handlers:
            if handler not in former[0]:
                handler.close()
        logger.handlers[:] = former[0]
        logger.setLevel(former[1])
        logger.propagate = former[2]


def log_to_console() -> None:
    """Send the package's messages to standard error."""
    logger = logging.getLogger("paddlex_feat")
    logger.handlers[:] = [ConsoleHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_to_file(path: Path) -> None:
    """Send messages, with time and tracebacks, to the end of `path` too. Raises OSError, also for a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, mode="a", encoding="utf-8", errors="backslashreplace")
    size = path.stat().st_size
    # A process that another one started for a run begins where that one's log did.
    _size_at_start[path.resolve()] = min(size, int(os.environ.get(LOG_START) or size))
    handler.setFormatter(_FileFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("paddlex_feat")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)  # the console takes INFO and above


def size_at_start(path: Path) -> int:
    """How long the log was before this process began to write to it."""
    return _size_at_start.get(path.resolve(), 0)


def cut_earlier(path: Path) -> bytes:
    """Take out and return what the log held before this process began to write to it. Raises OSError.

    Of more than 256 MiB nothing is moved, and a message says so: anybody may have put a file without an end there.
    """
    size = _size_at_start.pop(path.resolve(), 0)
    if size > _MOST_MOVED:
        logging.getLogger("paddlex_feat").warning("%s is too long to be moved: earlier lines stay in it.", path)
        return b""
    if not size:
        return b""
    with open_log(path) as stream:
        stream.seek(0)
        data = stream.read()
        stream.truncate(0)
        stream.write(data[size:])  # at the end, which is the beginning now
    return data[:size]
