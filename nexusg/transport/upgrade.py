"""The HTTP upgrade to a WebSocket (RFC 6455 section 4.1), with websocket-client over our socket.

The library writes the request and checks an answer 101; it never sees a byte of a frame. Between it
and the socket stands a shim, for what it would do on its own: read without bound, byte by byte and
past every time limit, read the body of an error, take a redirect for a success (1.8), and keep
cookies for the whole process. This file knows neither names nor TLS.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent

from nexusg.errors import DialFailed, UpgradeRefused
from nexusg.transport.httphead import read_head
from nexusg.transport.tls import connection_errors
from nexusg.version import __version__


if TYPE_CHECKING:
    from nexusg.transport.address import RelayAddress
    from nexusg.transport.channel import Channel
    from nexusg.transport.httphead import ResponseHead

MAX_HEAD_BYTES = 64 * 1024  # Go's and nginx's servers stay far below; h11 stops at 16 KiB
MAX_RETRY_AFTER_S = 3600.0  # a relay, or who poses as one, must not send an agent away for days
MAX_REASON = 160  # characters of a complaint that may quote the peer
YIELD_BYTES = 4096  # the library reads byte by byte; others get a turn this often

# Its cookie jar is one for the whole process, host programs included, and is asked by host name:
# this one (RFC 6761 section 6.4) has no cookies. The true name goes into the Host header.
_NO_COOKIES_FOR = "relay.invalid"

_HINTS = {
    401: "; something in front of the relay wants credentials, the relay itself asks for none",
    403: "; something in front of the relay does not let this agent through",
    404: "; the path of a relay is /connect",
    429: "; something in front of the relay limits connections",
    502: "; something in front of the relay cannot reach it",
}


def upgrade(channel: Channel, address: RelayAddress) -> bytes:
    """Turn a connection into a WebSocket; return what came behind the answer. Blocks.

    Raises UpgradeRefused for a status other than 101, DialFailed with code ``upgrade`` for an
    answer that is not one, or with code ``tls``. The caller keeps the channel and limits the time.
    """
    import websocket  # late: importing nexusg stays cheap, and a host may still patch

    shim = HandshakeSock(channel, address)
    client: Any = websocket.WebSocket(enable_multithread=False)
    try:
        with connection_errors(address.place, "upgrade"):
            client.connect(
                f"ws://{_NO_COOKIES_FOR}{address.resource}",
                socket=shim,
                host=address.host_header,
                header=[f"User-Agent: nexusg/{__version__}"],
                suppress_origin=True,
                redirect_limit=0,
            )
    except websocket.WebSocketException as error:
        # Without its cause, which may quote the whole answer.
        raise _not_an_upgrade(address.place, str(error)) from None
    headers = client.getheaders()
    for name in ("sec-websocket-extensions", "sec-websocket-protocol"):
        if headers.get(name):
            raise _not_an_upgrade(address.place, f"it chose a {name} that was not offered")
    return shim.leftover


class HandshakeSock:
    """As much of a socket as websocket-client needs for one upgrade."""

    def __init__(self, channel: Channel, address: RelayAddress) -> None:
        self._channel = channel
        self._address = address
        self._head = b""
        self._given = 0
        #: What the peer sent behind its head: the first frames.
        self.leftover = b""

    def gettimeout(self) -> None:
        """There is none: the dial has one for all its steps."""

    def send(self, data: bytes) -> int:
        """Send everything, and say so. Blocks."""
        self._channel.sendall(data)
        return len(data)

    def recv(self, size_bytes: int) -> bytes:
        """The next bytes of the head of an answer 101, and nothing behind it. Blocks.

        Raises UpgradeRefused for any other answer, DialFailed for what is none.
        """
        if not self._head:
            self._head = self._read()
        if self._given % YIELD_BYTES == 0:
            gevent.sleep(0)
        part = self._head[self._given : self._given + size_bytes]
        self._given += len(part)
        return part

    def close(self) -> None:
        """Nothing: the socket is the caller's."""

    def _read(self) -> bytes:
        head = read_head(self._channel, MAX_HEAD_BYTES, place=self._address.place, code="upgrade")
        if head.status != HTTPStatus.SWITCHING_PROTOCOLS:
            raise _refusal(self._address, head)
        self.leftover = head.rest
        lines = [line for line in head.lines if not line.lower().startswith("set-cookie")]
        return "\r\n".join([*lines, "", ""]).encode()


def retry_after_s(value: str, now: float) -> float | None:
    """Seconds that a Retry-After asks for, or None (RFC 9110 section 10.2.3).

    ``now`` is the time of day, for the form that is a date. Not more than MAX_RETRY_AFTER_S.
    """
    if value.isascii() and value.isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _refusal(address: RelayAddress, head: ResponseHead) -> UpgradeRefused:
    status = head.status
    try:
        phrase = HTTPStatus(status).phrase  # ours: the peer's may be anything
    except ValueError:
        phrase = "not a known status"
    hint = _HINTS.get(status, "")
    if 300 <= status < 400:
        hint = "; redirects are not followed, so write the address that it leads to"
    elif (
        status == HTTPStatus.BAD_REQUEST and not address.secure
    ):  # Go's answer to HTTP on a TLS port
        hint = "; if it speaks TLS, dial it with wss://"
    message = f"{address.place} refused the upgrade with HTTP status {status} ({phrase}){hint}"
    for line in head.lines:
        name, _, value = line.partition(":")
        if name.lower() == "retry-after":
            return UpgradeRefused(status, message, retry_after_s(value.strip(), time.time()))
    return UpgradeRefused(status, message)


def _not_an_upgrade(place: str, why: str) -> DialFailed:
    return DialFailed(
        f"{place} does not answer as a WebSocket server: {why[:MAX_REASON]}", "upgrade"
    )
