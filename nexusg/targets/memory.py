"""A connection within the process: what a connect handler returns to serve a stream itself.

Both ends are socket-like and targets alike. They work in a process that gevent has not patched.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Any

from gevent.event import Event
from gevent.lock import Semaphore
from gevent.socket import SHUT_RD, SHUT_RDWR, SHUT_WR


#: What one direction holds before its writer waits: as much as a socket pair holds, roughly.
LIMIT_BYTES = 64 * 1024


def memory_pair(limit_bytes: int = LIMIT_BYTES) -> tuple[MemorySocket, MemorySocket]:
    """Two connected ends. Each direction holds at most ``limit_bytes``."""
    if limit_bytes < 1:
        raise ValueError("a direction must hold at least one byte")
    there, back = _Pipe(limit_bytes), _Pipe(limit_bytes)
    return MemorySocket(there, back), MemorySocket(back, there)


class MemorySocket:
    """One end of `memory_pair`. One greenlet may read it while others write by ``sendall``.

    As with sockets, ``settimeout`` rules ``recv``, ``recv_into``, ``send`` and ``sendall``: None
    waits for ever, 0 never. Flags are not supported, and there is no file descriptor.
    """

    __slots__ = ("_inbound", "_outbound", "_timeout_s", "_turn", "name")

    def __init__(self, outbound: _Pipe, inbound: _Pipe) -> None:
        self.name = "memory"
        self._outbound = outbound
        self._inbound = inbound
        self._timeout_s: float | None = None
        self._turn: Semaphore | None = None  # of those in `sendall`

    def __repr__(self) -> str:
        return f"<MemorySocket {self.name}>"

    # What a Target can do -----------------------------------------------------------------------

    def try_send(self, data: memoryview | bytes) -> int:
        """Take what fits at once and return how much. Raises OSError."""
        return self._outbound.put(data)

    def send(self, data: memoryview | bytes) -> int:
        """Take at least one byte and return how many. Blocks. Raises OSError."""
        while True:
            sent = self._outbound.put(data)
            if sent or not data:
                return sent
            self._wait(self._outbound.writable)

    def try_read(self, limit: int) -> bytes | None:
        """At most ``limit`` bytes; empty at end of file; None when there is nothing yet."""
        return self._inbound.take(limit)

    def wait_readable(self) -> None:
        """Return when `try_read` may have something. Blocks."""
        self._inbound.readable.wait()

    def unsent_bytes(self) -> int:
        """Return 0: what was taken is with the other end."""
        return 0

    def shutdown_write(self) -> None:
        """Half-close: the other end reads what there is, then the end of file."""
        self._outbound.end()

    def close(self) -> None:
        """Close this end, and wake up whoever waits at either end; idempotent."""
        self._outbound.close_writer()
        self._inbound.close_reader()

    # What a socket can do ------------------------------------------------------------------------

    def recv(self, bufsize: int) -> bytes:
        """At most ``bufsize`` bytes; empty at end of file. Blocks. Raises OSError."""
        while (data := self._inbound.take(bufsize)) is None:
            self._wait(self._inbound.readable)
        return data

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0) -> int:
        """Fill ``buffer``, or the first ``nbytes`` of it; return how much. Blocks."""
        view = memoryview(buffer)
        data = self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def sendall(self, data: memoryview | bytes) -> None:
        """Send everything, and nothing of another greenlet's in between. Blocks. Raises OSError."""
        if self._turn is None:
            self._turn = Semaphore()
        view = memoryview(data)
        with self._turn:
            while len(view):
                view = view[self.send(view) :]

    def makefile(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """A file to read from, buffered. The end stays open when it is closed."""
        if mode != "rb" or not buffering:
            raise ValueError("only a buffered file to read bytes from can be made")
        return io.BufferedReader(
            _Reader(self), io.DEFAULT_BUFFER_SIZE if buffering < 0 else buffering
        )

    def shutdown(self, how: int) -> None:
        """End one direction or both."""
        if how in (SHUT_WR, SHUT_RDWR):
            self._outbound.end()
        if how in (SHUT_RD, SHUT_RDWR):
            self._inbound.end()

    def settimeout(self, timeout: float | None) -> None:
        """How long a call may wait, in seconds; None for ever."""
        self._timeout_s = timeout

    def gettimeout(self) -> float | None:
        """What `settimeout` has set."""
        return self._timeout_s

    def setblocking(self, flag: bool) -> None:
        """Wait for ever, or never."""
        self._timeout_s = None if flag else 0.0

    def fileno(self) -> int:
        """Return -1: the kernel knows nothing of it."""
        return -1

    def getpeername(self) -> str:
        """Return ``memory``."""
        return "memory"

    @property
    def ended(self) -> bool:
        """Whether the other end sends no more, be it that something is left to be read."""
        return self._inbound.ended

    def _wait(self, event: Event) -> None:
        if self._timeout_s == 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not event.wait(self._timeout_s):
            raise TimeoutError("timed out")


class _Reader(io.RawIOBase):
    """What a buffered file reads from."""

    def __init__(self, sock: MemorySocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


class _Pipe:
    """One direction.

    ``readable`` and ``writable`` are set when `take` and `put` have an answer, be it an error.
    """

    __slots__ = ("_data", "_limit", "_reader", "_writer", "ended", "readable", "writable")

    def __init__(self, limit_bytes: int) -> None:
        self._data = bytearray()
        self._limit = limit_bytes
        self.ended = False  # nothing more will be put
        self._reader = self._writer = True  # that end is open
        self.readable = Event()
        self.writable = Event()
        self._tell()

    def put(self, data: memoryview | bytes) -> int:
        """Take what there is room for."""
        if not self._writer:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.ended or not self._reader:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        part = memoryview(data)[: self._limit - len(self._data)]
        self._data += part
        self._tell()
        return len(part)

    def take(self, limit: int) -> bytes | None:
        """Give up to ``limit`` bytes, empty at the end, None when there is nothing yet."""
        if not self._reader:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if not self._data:
            return b"" if self.ended else None
        part = bytes(self._data[:limit])
        del self._data[:limit]
        self._tell()
        return part

    def end(self) -> None:
        """Nothing more will be put."""
        self.ended = True
        self._tell()

    def close_writer(self) -> None:
        """The end that puts is closed."""
        self._writer = False
        self.end()

    def close_reader(self) -> None:
        """The end that takes is closed, and what it has not taken is lost."""
        self._reader = False
        self._data.clear()
        self._tell()

    def _tell(self) -> None:
        over = self.ended or not self._reader
        for event, ready in (
            (self.readable, over or self._data),
            (self.writable, over or len(self._data) < self._limit),
        ):
            event.set() if ready else event.clear()
