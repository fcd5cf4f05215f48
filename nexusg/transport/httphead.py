"""Read the head of one HTTP response, and never more than is allowed. It knows no header."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import gevent

from nexusg.errors import DialFailed


READ_BYTES = 4096  # one read takes any ordinary head
_PREFIX = b"HTTP/"
_STATUS = re.compile(r"HTTP/\d\.\d ([1-5]\d\d)( |$)")
_END = re.compile(rb"\r?\n\r?\n")  # bare line feeds count (RFC 9112 section 2.2)


class Readable(Protocol):
    """What a head is read from."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; empty at the end. Blocks."""


class ResponseHead(NamedTuple):
    """A head, its lines stripped and the status line among them, and what came behind it."""

    status: int
    lines: list[str]
    rest: bytes


def read_head(sock: Readable, limit_bytes: int, *, place: str, code: str) -> ResponseHead:
    """Receive a head, and what happens to come with it. Blocks.

    Raises DialFailed with ``code`` for an end, for something that is not HTTP, and for a head of
    more than ``limit_bytes``. ``place`` is for messages. OS errors pass.
    """
    data = bytearray()
    while True:
        chunk = sock.recv(min(READ_BYTES, limit_bytes - len(data)))
        if not chunk:
            how = "in the middle of its answer" if data else "without an answer"
            raise DialFailed(f"{place} closed the connection {how}", code)
        start = max(0, len(data) - 3)  # the blank line may lie across two reads
        data += chunk
        if data[:5] != _PREFIX[: len(data)]:
            raise _not_http(data, place, code)
        if end := _END.search(data, start):
            break
        if len(data) >= limit_bytes:
            raise DialFailed(f"{place} sent more than {limit_bytes} bytes of header", code)
        gevent.sleep(0)  # recv() does not yield while there is data, and a time limit needs it
    # Latin-1 decodes anything.
    text = data[: end.end()].decode("latin-1")
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    status = _STATUS.match(lines[0])
    if not status:
        raise _not_http(data, place, code)
    return ResponseHead(int(status[1]), lines, bytes(data[end.end() :]))


def _not_http(data: bytearray, place: str, code: str) -> DialFailed:
    return DialFailed(f"{place} answered {bytes(data[:40])!r}, which is not HTTP", code)
