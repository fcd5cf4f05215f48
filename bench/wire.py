"""What load and service say to each other: a little HTTP/1.1, and bodies that prove themselves.

``GET /small`` is answered with SMALL, ``GET /down/N`` with N bytes of the pattern; ``POST /up`` has
a body that is checked against the pattern. Requests may be pipelined.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from bench import Failed, WrongBytes


if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent import socket

SMALL = b"hello world"

#: The pattern repeats with this period, which no buffer size on the way divides.
PERIOD_BYTES = 1_000_003
READ_BYTES = 256 * 1024

_BLOCK = random.Random(1).randbytes(PERIOD_BYTES)
_PATTERN = _BLOCK + _BLOCK[:READ_BYTES]
_VIEW = memoryview(_PATTERN)


def send_pattern(sock: socket.socket, size: int) -> None:
    """Send the first ``size`` bytes of the pattern. Blocks."""
    sent = 0
    while sent < size:
        start = sent % PERIOD_BYTES
        end = min(start + READ_BYTES, PERIOD_BYTES, start + size - sent)
        sock.sendall(_VIEW[start:end])
        sent += end - start


class Reader:
    """Reads heads and bodies from a socket, one after the other."""

    def __init__(self, sock: socket.socket, buffer_bytes: int = READ_BYTES) -> None:
        self._sock = sock
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def head(self) -> bytes:
        """The next head, without the empty line; b"" at the end of the connection. Blocks."""
        while (found := self._buffer.find(b"\r\n\r\n", self._start, self._end)) < 0:
            if self._start:
                rest = bytes(self._view[self._start : self._end])
                self._view[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            count = self._sock.recv_into(self._view[self._end :])
            if not count:
                if self._end:
                    raise Failed("the connection ended within a head")
                return b""
            self._end += count
        head = bytes(self._view[self._start : found])
        self._start = found + 4
        return head

    def pattern(self, size: int, count: Callable[[int], object] = int) -> None:
        """Read a body of ``size`` bytes; ``count`` is told of each part.

        Raises WrongBytes unless it is the pattern. Blocks.
        """
        done = 0
        while done < size:
            part = self._part(size - done)
            if not _PATTERN.startswith(part, done % PERIOD_BYTES):
                raise WrongBytes(f"wrong bytes behind the first {done} of a body")
            done += len(part)
            count(len(part))

    def body(self, size: int) -> bytes:
        """A body of ``size`` bytes. Blocks."""
        data = bytearray()
        while len(data) < size:
            data += self._part(size - len(data))
        return bytes(data)

    def _part(self, limit: int) -> memoryview:
        if self._start == self._end:
            self._start = 0
            self._end = self._sock.recv_into(self._view)
            if not self._end:
                raise Failed("the connection ended within a body")
        start = self._start
        self._start = min(self._end, start + limit)
        return self._view[start : self._start]


def length(head: bytes) -> int:
    """The Content-Length in ``head``, 0 without one."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def answer(body_bytes: int, status: str = "200 OK") -> bytes:
    """The head of an answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {body_bytes}\r\n\r\n".encode()


def request(host: str, target: str, body_bytes: int = 0, *, close: bool = False) -> bytes:
    """The head of a request; a POST if there is a body."""
    lines = [f"{'POST' if body_bytes else 'GET'} {target} HTTP/1.1", f"Host: {host}"]
    if body_bytes:
        lines.append(f"Content-Length: {body_bytes}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()
