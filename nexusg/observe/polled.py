"""Lines to a file descriptor from a process that must have neither threads nor a hub.

The master of several workers forks, and a fork is safe only in a process with a single thread. So
a line is written when the descriptor has room, and else kept until it is looked at again. Like
``sink``, it must not know what a line says.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from gevent.monkey import get_original

from .turns import Turns


if TYPE_CHECKING:
    from collections.abc import Callable

#: What is kept while nobody reads: some hundred lines, and the master writes a few an hour.
CAPACITY_BYTES = 64 * 1024

LOOK_AGAIN_S = 0.02  # how soon there may be room


class PolledWriter:
    """Writes lines of up to PIPE_BUF bytes to ``fd``; nothing but ``close`` ever waits.

    What is more than ``capacity_bytes`` is dropped, and ``dropped_line(count)`` says so in its
    place. The other writers must take turns (``turns``): then room that was seen is still there
    when the line is written.
    """

    def __init__(
        self,
        fd: int,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        dropped_line: Callable[[int], bytes],
    ) -> None:
        self.dropped = 0  #: lines that were not taken, ever
        self._fd = fd
        self._capacity_bytes = capacity_bytes
        self._dropped_line = dropped_line
        self._missed = 0  # lines dropped since the last report
        self._lines: list[bytes] = []
        self._turns = Turns(fd)
        self._poll = get_original("select", "poll")()
        self._poll.register(fd, select.POLLOUT)

    @property
    def waiting(self) -> bool:
        """Whether `flush` has something to write."""
        return bool(self._lines) or self._missed > 0

    def write(self, line: bytes) -> None:
        """Take one line with its line end, or drop it. Never blocks, never raises."""
        self.flush()
        if self._missed or sum(map(len, self._lines)) + len(line) > self._capacity_bytes:
            self.dropped += 1
            self._missed += 1
            return
        self._lines.append(line)
        self.flush()

    def flush(self) -> None:
        """Write what there is room for. Never blocks, never raises."""
        if not self.waiting or not self._turns.begin(wait=False):
            return
        try:
            while self.waiting and self._poll.poll(0) and self._write_next():
                pass
        finally:
            self._turns.end()

    def close(self, timeout_s: float) -> bool:
        """Write what waits. Return whether all was written. Blocks the process, hub and all."""
        pause = get_original("select", "poll")()
        deadline = time.monotonic() + timeout_s
        self.flush()
        while self.waiting and time.monotonic() < deadline:
            pause.poll(LOOK_AGAIN_S * 1000)
            self.flush()
        return not self.waiting

    def _write_next(self) -> bool:
        if not self._lines:
            self._lines.append(self._dropped_line(self._missed))
            self._missed = 0
        try:
            written = os.write(self._fd, self._lines[0])
        except BlockingIOError:
            return False  # whoever shares it has made it non-blocking, and used the room
        except OSError:
            written = len(self._lines[0])  # nobody reads there any more
        self._lines[0] = self._lines[0][written:]
        if not self._lines[0]:
            del self._lines[0]
        return True
