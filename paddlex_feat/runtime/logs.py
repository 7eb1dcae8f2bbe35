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
from paddlex_feat.fileio.locks import open_to_append

FILE_ONLY = "paddlex_feat.file"  # the logger whose records the console leaves out


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
        """Print a record to standard error, above a progress bar if there is one."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        text = level + _message(record)
        bars = sys.modules.get("tqdm")  # not imported just to print a line
        with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is closed: nobody to tell
            if bars is not None:
                bars.tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)


class _LogFile(logging.FileHandler):
    """A log to which several processes may write. If one of them moves the file, the others follow to the new one.

    Where it cannot be written, it warns once; whether that ends the run is left to the run.
    """

    _warned = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")
        self._start = path.stat().st_size  # where the lines of this process begin

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_to_append(Path(self.baseFilename)), encoding=self.encoding, errors=self.errors)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is not None and not self._is_in_place(self.stream.fileno()):
                self.close()  # the next line opens the new file
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def close(self) -> None:
        """Close the file; lines that a full disk has no room for are given up."""
        try:
            super().close()
        except OSError as error:
            self._warn(error)

    def _is_in_place(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.lstat(self.baseFilename))
        except FileNotFoundError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        else:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("paddlex_feat").warning("%s is not complete: %s.", self.baseFilename, error.strerror)

    def move(self, folder: Path) -> None:
        """Move the file into `folder` and continue with the lines of this process in a new one. Raises OSError."""
        if not self._start:
            return
        path = Path(self.baseFilename)
        moved = folder / path.name
        with self.lock or contextlib.nullcontext():
            self.close()  # Windows renames no open file; the next record opens the new one
            path.rename(moved)
            with open_to_append(moved) as former, open_to_append(path) as new:
                former.seek(self._start)
                new.write(former.read())
            self._start = 0


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
    handler = _LogFile(path)
    handler.setFormatter(_FileFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("paddlex_feat")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)  # the console takes INFO and above


def move_log(path: Path, folder: Path) -> None:
    """Move the log `path`, to which this process writes, into `folder`, and continue in a new file.

    The lines of this process are in both files. Does nothing if the log held no lines before them. Raises OSError.
    """
    for handler in logging.getLogger("paddlex_feat").handlers:
        if isinstance(handler, _LogFile) and Path(handler.baseFilename) == Path(os.path.abspath(path)):  # noqa: PTH100
            handler.move(folder)
