"""The log of a process of our own: lines to stdout, those of libraries among them.

Only for the command line: it changes the root logger. An embedded agent uses
`LogObserver.for_logger` instead.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from .logs import LogObserver
from .polled import PolledWriter
from .render import renderer, timestamp
from .sink import LineWriter


if TYPE_CHECKING:
    from nexusg.config.model import Logging

    from .logs import Fields

STDOUT = 1

FLUSH_S = 1.0  # how long the end of the process waits for whoever reads its log


class StdoutLog(LogObserver):
    """A `LogObserver` whose lines go to a file descriptor without ever stopping the hub.

    The lines of a ``worker`` carry its number, and it shares the descriptor with the others.
    """

    def __init__(self, settings: Logging, fd: int = STDOUT, *, worker: int | None = None) -> None:
        super().__init__(self._write, level=settings.level, streams=settings.streams)
        terminal = os.isatty(fd)
        self._render = renderer(
            console=settings.format == "console" or (settings.format == "auto" and terminal),
            colors=terminal and not os.environ.get("NO_COLOR"),  # no-color.org
        )
        self._worker: Fields = {} if worker is None else {"worker": worker}
        self._writer = self._open(fd)
        self._handler: _Handler | None = None

    def adopt_logging(self) -> None:
        """Take the records of all other loggers, at WARNING and above, and Python's warnings."""
        self._handler = _Handler(self)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)

    def close(self, timeout_s: float = FLUSH_S) -> bool:
        """Undo `adopt_logging` and write what waits. Return whether all was written. Blocks."""
        if self._handler is not None:
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(self._handler)
            # Ends here and not with the process: logging then takes a lock that gevent has undone.
            self._handler = None
        return self._writer.close(timeout_s)

    def _open(self, fd: int) -> LineWriter | PolledWriter:
        return LineWriter(fd, dropped_line=self._dropped, shared=bool(self._worker))

    def _write(self, level: str, name: str, at: float, fields: Fields) -> None:
        self._writer.write(self._line(level, name, at, fields))

    def _dropped(self, count: int) -> bytes:
        return self._line("warning", "log.dropped", time.time(), {"count": count})

    def _line(self, level: str, name: str, at: float, fields: Fields) -> bytes:
        head = {"timestamp": timestamp(at), "level": level, "event": name, **self._worker}
        return self._render({**head, **fields, **head})  # first in order, and not to be replaced


class MasterLog(StdoutLog):
    """The log of the process above several workers: it starts no thread and needs no hub."""

    def __init__(self, settings: Logging, fd: int = STDOUT) -> None:
        #: To be flushed now and then while something is ``waiting``.
        self.writer = PolledWriter(fd, dropped_line=self._dropped)
        super().__init__(settings, fd)

    def _open(self, fd: int) -> PolledWriter:
        return self.writer


def setup_cli_logging(
    settings: Logging, fd: int = STDOUT, *, worker: int | None = None
) -> StdoutLog:
    """The log of this process as ``settings`` want it, the records of libraries included."""
    log = StdoutLog(settings, fd, worker=worker)
    log.adopt_logging()
    return log


class _Handler(logging.Handler):
    """Records of ``logging`` as lines called ``log.record``."""

    def __init__(self, log: StdoutLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, LookupError):  # its arguments do not fit its format
            message = str(record.msg)
        fields: Fields = {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[0]:
            fields["exc_info"] = record.exc_info
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._log.line(level, "log.record", **fields)
