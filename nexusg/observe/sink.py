"""Lines to a file descriptor, without ever making the hub wait.

A full pipe (a slow supervisor, a stopped terminal) would block ``os.write`` and, with it, every
greenlet. So lines go through a bounded queue to a thread of the operating system; when the queue
is full they are dropped, counted, and the count is written once there is room.

It must not know what a line says. The thread uses nothing that gevent replaces: in a patched
process ``threading`` makes greenlets, so its parts are taken from behind the patches.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import gevent
from gevent.monkey import get_original

from .turns import Turns


if TYPE_CHECKING:
    from collections.abc import Callable

#: What waits while nobody reads: a second of one line per stream at 4,000 streams a second.
CAPACITY_BYTES = 1024 * 1024

#: After it has written all there is, the thread lets lines gather. Each time it wakes up it takes
#: the interpreter away from the hub, which a line for each of a thousand streams a second would do
#: as often. The first line after a pause is written at once.
GATHER_S = 0.025

_POLL_S = 0.002  # how often ``flush`` looks; it runs once in the life of a process


class LineWriter:
    """Writes whole lines to ``fd`` from a thread of its own, which starts at once.

    ``capacity_bytes`` is how much may wait. After an overflow nothing is taken until half of it is
    free again; then ``dropped_line(count)`` goes where the missing lines would have been. Lines of
    up to PIPE_BUF bytes, also together, are one atomic write (pipe(7)), so nobody splits them; with
    ``shared`` other processes that write so, too, cannot split longer ones (``turns``).
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        dropped_line: Callable[[int], bytes],
        shared: bool = False,
    ) -> None:
        self.dropped = 0  #: lines that were not taken, ever
        self.failed = 0  #: lines that the descriptor refused: nobody reads there any more
        self._fd = fd
        self._capacity_bytes = capacity_bytes
        self._dropped_line = dropped_line
        self._turns = Turns(fd) if shared else None
        self._missed = 0  # lines dropped since the last report
        self._accepted_bytes = 0
        self._done_bytes = 0  # only the thread adds to it
        self._closed = False
        self._ahead: list[bytes | None] = []  # taken from the queue, but not written yet
        # Reentrant, because a destructor may log while a line is being queued.
        self._lock = get_original("_thread", "RLock")()
        self._lines = get_original("queue", "SimpleQueue")()
        get_original("_thread", "start_new_thread")(self._run, ())

    @property
    def queued_bytes(self) -> int:
        """How much waits to be written."""
        return self._accepted_bytes - self._done_bytes

    def write(self, line: bytes) -> None:
        """Take one line with its line end, or drop it. Never blocks, never raises."""
        with self._lock:
            room = self.queued_bytes + len(line) <= self._capacity_bytes
            if room and not self._missed and not self._closed:
                self._accept(line)
                return
            self.dropped += 1
            if not self._closed:
                if not self._missed:
                    self._lines.put(b"")  # so that the thread looks, even if the queue was empty
                self._missed += 1

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written. Return whether that was reached. Blocks."""
        deadline = time.monotonic() + timeout_s
        while self.queued_bytes or self._missed:
            if time.monotonic() >= deadline:
                return False
            gevent.sleep(_POLL_S)
        return True

    def close(self, timeout_s: float = 1.0) -> bool:
        """`flush`, then end the thread; later lines are dropped. Blocks.

        A thread that hangs in a write is left to the end of the process.
        """
        flushed = self.flush(timeout_s)
        with self._lock:
            if not self._closed:
                self._closed = True
                self._lines.put(None)
        return flushed

    def _accept(self, line: bytes) -> None:
        self._accepted_bytes += len(line)
        self._lines.put(line)

    def _run(self) -> None:
        pause = get_original("time", "sleep")
        while self._step(select.PIPE_BUF):
            if self._lines.empty() and not self._ahead:
                pause(GATHER_S)

    def _step(self, batch_bytes: int = 0) -> bool:
        """Write the next line, and those that wait behind it up to ``batch_bytes`` in all.

        Wait for one; return whether there may be more.
        """
        line = self._ahead.pop() if self._ahead else self._lines.get()
        if line is None:
            return False
        if len(line) < batch_bytes:
            line = self._gathered(line, batch_bytes)
        self._put_in_turn(line)
        self._done_bytes += len(line)
        if self._missed and self.queued_bytes <= self._capacity_bytes // 2:
            self._reopen()
        return True

    def _gathered(self, first: bytes, batch_bytes: int) -> bytes:
        lines, size = [first], len(first)
        while not self._lines.empty():
            line = self._lines.get()
            if line is None or size + len(line) > batch_bytes:
                self._ahead.append(line)
                break
            lines.append(line)
            size += len(line)
        return b"".join(lines)

    def _reopen(self) -> None:
        with self._lock:
            self._accept(self._dropped_line(self._missed))
            self._missed = 0

    def _put_in_turn(self, line: bytes) -> None:
        if self._turns is None:
            self._put(line)
            return
        self._turns.begin()
        try:
            self._put(line)
        finally:
            self._turns.end()

    def _put(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                self._wait_writable()  # whoever shares the terminal has made it non-blocking
            except OSError:
                self.failed += line.count(b"\n")  # there is no place left to tell anyone
                return

    def _wait_writable(self) -> None:
        poll = get_original("select", "poll")()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()
