"""Log lines on standard error, without breaking a progress bar."""

from __future__ import annotations

import logging
import sys


class ConsoleHandler(logging.Handler):
    """INFO bare, warnings and errors with their level in front."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

        self.addFilter(lambda record: record.name != "paddlex_feat.file")  # for the log file alone

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        text = level + record.getMessage()
        bars = sys.modules.get("tqdm")  # not imported just to print a line
        if bars is not None:
            bars.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
