"""Finds out from a user's first bytes for which host they are meant; pure, fed piece by piece.

A TLS ClientHello names its server, an HTTP/1.x request its host; anything else belongs to whoever
claims the port (PROTOCOL.md section 14). The bytes are kept and never altered.
"""

from __future__ import annotations

import dataclasses
import re


#: A prelude is one data message, so it must fit (PROTOCOL.md section 1.2).
MAX_PRELUDE_BYTES = 64 * 1024
MAX_TLS_PRELUDE_BYTES = 32 * 1024

#: The most a TLS record may hold (RFC 8446 section 5.1).
MAX_RECORD_BYTES = 16 * 1024

_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ ]+ HTTP/1\.[0-9]\r?")
_END_OF_HEAD = re.compile(rb"\n\r?\n")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the bytes are. ``host`` is as the user wrote it, without a port; "" if there is none."""

    host: str = ""
    is_tls: bool = False


class TooLong(ValueError):
    """No verdict within the bytes that may be kept: the user is to be closed."""


class _More(Exception):
    """The bytes are right so far, and there are too few of them."""


class _NotTls(Exception):
    """These bytes are no ClientHello."""


class Sniffer:
    """Collects the prelude of one user."""

    def __init__(self) -> None:
        self.prelude = bytearray()  #: every byte so far
        self._maybe_tls = True

    @property
    def room(self) -> int:
        """How many more bytes may be fed."""
        limit = MAX_TLS_PRELUDE_BYTES if self._in_tls else MAX_PRELUDE_BYTES
        return max(limit - len(self.prelude), 0)

    def feed(self, data: bytes) -> Verdict | None:
        """Add ``data``; None means that more is needed. Raises TooLong when no more is taken."""
        self.prelude += data
        verdict = self._look()
        if verdict is None and not self.room:
            raise TooLong("no host name within what may be kept")
        return verdict

    @property
    def _in_tls(self) -> bool:
        return self._maybe_tls and self.prelude[:1] == b"\x16"

    def _look(self) -> Verdict | None:
        if self._in_tls:
            try:
                return Verdict(_server_name(_client_hello(self.prelude)), is_tls=True)
            except _More:
                return None
            except _NotTls:
                self._maybe_tls = False
        return _http(self.prelude)


class _Reader:
    """Walks over bytes; what lies beyond them raises ``beyond``."""

    def __init__(self, data: bytes | bytearray, beyond: type[Exception]) -> None:
        self._data = data
        self._at = 0
        self._beyond = beyond

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise self._beyond
        self._at = end
        return bytes(self._data[end - size : end])

    def vector(self, size: int) -> bytes:
        """A vector whose length has ``size`` bytes (RFC 8446 section 3.4)."""
        return self.take(self.number(size))


def _client_hello(data: bytearray) -> bytes:
    """The body of the ClientHello, which may be spread over several records (RFC 8446 5.1)."""
    records = _Reader(data, _More)
    message = bytearray()
    while True:
        if records.number(1) != _HANDSHAKE_RECORD or records.number(1) != 3:
            raise _NotTls
        records.number(1)
        size = records.number(2)
        if not 0 < size <= MAX_RECORD_BYTES:
            raise _NotTls
        message += records.take(size)
        if message[0] != _CLIENT_HELLO:
            raise _NotTls
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if len(message) >= 4 + size:
                return bytes(message[4 : 4 + size])


def _server_name(hello: bytes) -> str:
    """The name in the server_name extension (RFC 6066 section 3); "" without one."""
    body = _Reader(hello, _NotTls)
    body.take(2 + 32)  # legacy_version, random
    body.vector(1)  # legacy_session_id
    body.vector(2)  # cipher_suites
    body.vector(1)  # legacy_compression_methods
    extensions = _Reader(body.vector(2) if body else b"", _NotTls)
    while extensions:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(content, _NotTls).vector(2), _NotTls)
            while names:
                name_kind, name = names.number(1), names.vector(2)
                if name_kind == 0:
                    return name.decode("ascii", errors="replace")
    return ""


def _http(data: bytearray) -> Verdict | None:
    line, newline, _ = data.partition(b"\n")
    if not newline:
        return None
    if not _REQUEST_LINE.fullmatch(line):
        return Verdict()
    end = _END_OF_HEAD.search(data)
    if end is None:
        return None
    for header in bytes(data[: end.start()]).split(b"\n")[1:]:
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"host":
            return Verdict(_without_port(value.strip().decode("utf-8", errors="replace")))
    return Verdict()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host.removesuffix(":")
