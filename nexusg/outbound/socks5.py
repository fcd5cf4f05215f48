"""The server's side of SOCKS5 as pure states: bytes in, answers and in the end a request out.

RFC 1928 with the command CONNECT only, without authentication or with user and password (RFC 1929).
It knows no socket, and not who makes the connections.
"""

from __future__ import annotations

import dataclasses
import enum
import hmac
import ipaddress
import struct
from typing import TYPE_CHECKING

from nexusg.transport.connect import join_host_port


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.config.secret import Secret


class Reply(enum.IntEnum):
    """What a client is told about its request (RFC 1928 section 6)."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6  # "TTL expired" in the RFC
    COMMAND = 7
    ADDRESS_TYPE = 8

    @property
    def message(self) -> bytes:
        """The reply on the wire. What the relay has bound is not known: 0.0.0.0:0."""
        return struct.pack(">BBBB4xH", _VERSION, self, 0, _IPV4, 0)


_VERSION, _AUTH_VERSION = 5, 1  # RFC 1928 section 3, RFC 1929 section 2
_NO_AUTH, _USER_PASSWORD, _NO_METHOD = 0, 2, 0xFF
_CONNECT = 1
_IPV4, _DOMAIN, _IPV6 = 1, 3, 4
_SIZES = {_IPV4: 4, _DOMAIN: 1, _IPV6: 16}  # a name follows its length

# What a relay gives as its reason is text for people, and all there is to go by (PROTOCOL.md 11.4).
# The first that is found counts: "dial failed: i/o timeout" is a timeout.
_REASONS = (
    ("not allowed", Reply.NOT_ALLOWED),
    ("limit", Reply.FAILURE),
    ("timeout", Reply.TIMED_OUT),
    ("timed out", Reply.TIMED_OUT),
    ("deadline", Reply.TIMED_OUT),
    ("network is unreachable", Reply.NETWORK_UNREACHABLE),
    ("unreachable", Reply.HOST_UNREACHABLE),
    ("no route", Reply.HOST_UNREACHABLE),
    ("no such host", Reply.HOST_UNREACHABLE),
    ("refused", Reply.REFUSED),
    ("dial failed", Reply.REFUSED),
)


def reply_for(reason: str) -> Reply:
    """The reply that says best what a relay has given as its reason for not connecting."""
    reason = reason.lower()
    return next((reply for text, reply in _REASONS if text in reason), Reply.FAILURE)


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """Who may use the server."""

    username: str
    password: Secret

    def match(self, username: bytes, password: bytes) -> bool:
        """Whether these are they. Takes as long whichever is wrong."""
        right_user = hmac.compare_digest(self.username.encode(), username)
        return hmac.compare_digest(self.password.reveal().encode(), password) and right_user


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Where a client wants to be connected to; ``host`` is a name or an address."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """``host:port``, with brackets around IPv6."""
        return join_host_port(self.host, self.port)


class Refused(Exception):
    """The client is to be sent ``answer``, which may be empty, and closed. The text says why."""

    def __init__(self, text: str, answer: bytes = b"") -> None:
        super().__init__(text)
        self.answer = answer


class Dialogue:
    """What is said until ``request`` is there: greeting, perhaps a password, and the request."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        """With ``credentials`` only who knows them is served."""
        self.request: Request | None = None
        self._credentials = credentials
        self._buffer = bytearray()
        self._answer = b""
        self._state: Callable[[], bool] = self._greet

    def receive(self, data: bytes) -> bytes:
        """Take what the client says, and return what to answer. Raises Refused."""
        self._buffer += data
        while self.request is None and self._state():
            pass
        answer, self._answer = self._answer, b""
        return answer

    @property
    def leftover(self) -> bytes:
        """What came behind the request: the first bytes of the connection."""
        return bytes(self._buffer)

    # Each state returns False when it needs more bytes, and takes none then.

    def _greet(self) -> bool:
        buffer = self._buffer
        if not buffer:
            return False
        if buffer[0] != _VERSION:
            raise self._refuse(f"{_spoken(buffer[0])}, not SOCKS5")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return False
        methods = self._take(2 + buffer[1])[2:]
        if not methods:
            raise self._refuse("the greeting offers no method")
        method = _NO_AUTH if self._credentials is None else _USER_PASSWORD
        if method not in methods:
            wanted = "no authentication" if method == _NO_AUTH else "a user and a password"
            raise self._refuse(f"the client does not offer {wanted}", bytes((_VERSION, _NO_METHOD)))
        self._answer += bytes((_VERSION, method))
        self._state = self._ask if self._credentials is None else self._authenticate
        return True

    def _authenticate(self) -> bool:
        buffer, credentials = self._buffer, self._credentials
        assert credentials is not None
        if buffer and buffer[0] != _AUTH_VERSION:
            raise self._refuse("the client does not speak RFC 1929")
        if len(buffer) < 2:
            return False
        middle = 2 + buffer[1]
        if len(buffer) <= middle or len(buffer) <= middle + buffer[middle]:
            return False
        said = self._take(middle + 1 + buffer[middle])
        if not credentials.match(said[2:middle], said[middle + 1 :]):
            raise self._refuse("wrong user or password", bytes((_AUTH_VERSION, 1)))
        self._answer += bytes((_AUTH_VERSION, 0))
        self._state = self._ask
        return True

    def _ask(self) -> bool:
        buffer = self._buffer
        if buffer and buffer[0] != _VERSION:
            raise self._refuse("the request is not one of SOCKS5")
        if len(buffer) < 4:
            return False
        command, kind = buffer[1], buffer[3]
        if command != _CONNECT:
            raise self._refuse(f"command {command} is not supported", Reply.COMMAND.message)
        if kind not in _SIZES:
            text = f"address type {kind} is not supported"
            raise self._refuse(text, Reply.ADDRESS_TYPE.message)
        end = 4 + _SIZES[kind]
        if kind == _DOMAIN and len(buffer) >= end:
            end += buffer[4]
        if len(buffer) < end + 2:
            return False
        said = self._take(end + 2)
        self.request = Request(self._host(kind, said[4:end]), int.from_bytes(said[end:], "big"))
        return True

    def _host(self, kind: int, address: bytes) -> str:
        if kind != _DOMAIN:
            return str(ipaddress.ip_address(address))
        try:
            host = address[1:].decode()
        except UnicodeDecodeError:
            raise self._refuse("the host name is not UTF-8", Reply.FAILURE.message) from None
        if not host:
            raise self._refuse("the host name is empty")
        return host

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _refuse(self, text: str, answer: bytes = b"") -> Refused:
        return Refused(text, self._answer + answer)


def _spoken(first: int) -> str:
    """What a client speaks instead, judging from its first byte."""
    if first == 4:
        return "the client speaks SOCKS4"
    if first == 0x16:
        return "the client speaks TLS"
    if chr(first).isupper() and first < 0x80:
        return "the client seems to speak HTTP"
    return "the client speaks something else"
