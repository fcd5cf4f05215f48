"""One HTTP request to the authorizer, and never more of its answer than is allowed.

One connection for each request (RFC 9112), through the proxy that the environment names, within
one time for everything. Redirects are not followed. It knows no JSON and no TPM.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import gevent

from nexusg.config.checks import is_loopback
from nexusg.errors import AuthorizerError, ConfigError, DialFailed
from nexusg.transport.address import DEFAULT_PORTS, RelayAddress, ascii_host
from nexusg.transport.connect import closed_on_error, connect_tcp
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import ConnectError
from nexusg.transport.httphead import read_head
from nexusg.transport.proxy import connect_through, proxy_for
from nexusg.transport.tls import TlsOptions, client_context, connection_errors, wrap
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Mapping

    from gevent import socket, ssl


#: Of a head, and of a body. The largest answer of namek, a device with a hundred names, has 10 KiB.
MAX_HEAD_BYTES, MAX_BODY_BYTES = 16 * 1024, 64 * 1024
READ_BYTES = 4096

_UNREACHABLE = "authorizer_unreachable"
_WITHOUT_TLS = "write http:// if it is on this host"
_WEBSOCKET = {"https": "wss", "http": "ws"}  # what transport calls the same thing
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Names of headers are in lower case, the last of a name counts."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class HttpClient:
    """Asks one server. ``ca_file`` replaces the system's trust; ``environ`` names proxies.

    Raises ConfigError for a URL other than https, or http to this host itself.
    """

    def __init__(
        self, url: str, ca_file: str | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._address, self._prefix = _parse(url)
        self._tls = TlsOptions(ca_file=ca_file)
        self._environ = os.environ if environ is None else environ
        self._context: ssl.SSLContext | None = None
        self.place = f"the authorizer {self._address.place}"  #: for messages

    def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        timeout_s: float,
    ) -> Answer:
        """Send one request, and return the answer, whatever its status. Blocks.

        Raises AuthorizerError: with code ``authorizer_unreachable`` when none came, ``authorizer``
        for one that is too large.
        """
        deadline = Deadline(max(timeout_s, 0))
        late = _unreachable(f"{self.place} did not answer within {timeout_s:.3g} s")
        try:
            with (
                limit(deadline, late),
                closing(self._open(deadline)) as sock,
                connection_errors(self.place, "io"),
            ):
                sock.sendall(self._request(method, path, headers, body))
                return self._answer(sock)
        except (DialFailed, ConnectError) as error:
            if error.code == "tls":
                self._context = None  # the files it was made from may be better by now
            raise _unreachable(str(error)) from error

    def _open(self, deadline: Deadline) -> socket.socket:
        address = self._address
        if address.secure and self._context is None:  # kept: reading all authorities takes long
            self._context = client_context(self._tls)
        proxy = proxy_for(address, self._environ)
        hop = proxy or address
        sock = connect_tcp(hop.host, hop.port, deadline.remaining())
        with closed_on_error(sock):
            if proxy:
                connect_through(sock, proxy, address.host, address.port, deadline)
        if self._context is None:
            return sock
        return wrap(sock, self._context, address.host, place=self.place, without=_WITHOUT_TLS)

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [
            f"{method} {self._prefix}{path} HTTP/1.1",
            f"Host: {self._address.host_header}",
            f"User-Agent: nexusg/{__version__}",
            "Connection: close",
            "Accept: application/json",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body

    def _answer(self, sock: socket.socket) -> Answer:
        head = read_head(sock, MAX_HEAD_BYTES, place=self.place, code="io")
        headers = {}
        for line in head.lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = _Body(sock, head.rest, self.place)
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return Answer(head.status, headers, body.chunked())
        length = headers.get("content-length")
        if length is None:
            return Answer(head.status, headers, body.to_the_end())
        if not _LENGTH.fullmatch(length):
            raise DialFailed(f"{self.place} sent a Content-Length that is no number")
        return Answer(head.status, headers, body.take(int(length)))


class _Body:
    """What follows a head, in one of the three forms of RFC 9112 section 6."""

    def __init__(self, sock: socket.socket, begun: bytes, place: str) -> None:
        self._sock = sock
        self._place = place
        self._data = bytearray(begun)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self._allow(count)
        while len(self._data) < count:
            if not self._fill():
                raise DialFailed(f"{self._place} closed the connection in the middle of its answer")
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def to_the_end(self) -> bytes:
        """Everything until the connection is closed."""
        while self._fill():
            pass
        return bytes(self._data)

    def chunked(self) -> bytes:
        """All chunks (RFC 9112 section 7.1). Trailers are left unread."""
        body = b""
        while size := self._chunk_size():
            body += self.take(size)
            self._allow(len(body))
            if self.take(2) != b"\r\n":
                raise self._bad_chunk()
        return body

    def _chunk_size(self) -> int:
        while not (line := _CHUNK.match(self._data)):
            if b"\n" in self._data or len(self._data) >= READ_BYTES or not self._fill():
                raise self._bad_chunk()
        size = int(line[1], 16)  # before the bytes go, which the match looks up
        del self._data[: line.end()]
        return size

    def _fill(self) -> bool:
        chunk = self._sock.recv(READ_BYTES)
        self._data += chunk
        self._allow(len(self._data))
        gevent.sleep(0)  # recv() does not yield while there is data, and a time limit needs it
        return bool(chunk)

    def _allow(self, count: int) -> None:
        if count > MAX_BODY_BYTES:
            raise AuthorizerError(f"{self._place} sent more than {MAX_BODY_BYTES} bytes")

    def _bad_chunk(self) -> DialFailed:
        return DialFailed(f"{self._place} sent a chunk that is none")


def _parse(url: str) -> tuple[RelayAddress, str]:
    """The address, and the path before all paths. The URL is not shown: it may hold a password."""
    try:
        parts = urlsplit(url)
        host, port = ascii_host(parts.hostname or ""), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    rest = url.partition("://")[2].removeprefix(parts.netloc)
    if "@" in parts.netloc or not _PATH.fullmatch(rest) or not host or port == 0:
        raise ConfigError(["the authorizer's URL cannot be used: write https://host or host:port"])
    scheme = _WEBSOCKET.get(parts.scheme)
    if scheme is None or (scheme == "ws" and not is_loopback(host)):
        raise ConfigError([f"the authorizer's URL must begin with https:// ({host})"])
    return RelayAddress(scheme, host, port or DEFAULT_PORTS[scheme], "/"), rest.rstrip("/")


def _unreachable(message: str) -> AuthorizerError:
    return AuthorizerError(message, _UNREACHABLE)
