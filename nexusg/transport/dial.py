"""Open the WebSocket connection to a relay: name, TCP, proxy, TLS, upgrade, within one time.

It knows the order of the steps and cleans up after them; each step is a file of its own. It knows
no frames, no tokens and no settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gevent import socket

from nexusg.errors import DialFailed
from nexusg.transport.address import parse_address
from nexusg.transport.channel import Channel
from nexusg.transport.connect import closed_on_error, connect_tcp, join_host_port
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import ConnectError
from nexusg.transport.proxy import connect_through, proxy_for
from nexusg.transport.tls import SYSTEM_TRUST, client_context, connection_errors, open_channel
from nexusg.transport.upgrade import upgrade


if TYPE_CHECKING:
    from collections.abc import Mapping

    from nexusg.transport.address import RelayAddress
    from nexusg.transport.proxy import Proxy
    from nexusg.transport.tls import TlsOptions

# For everything together. A look-up with a dead first name server takes 5 to 10 s, a lost SYN 1 to
# 7 s; the reference allows 45 s, by when the next attempt is the better bet.
DIAL_TIMEOUT_S = 30.0
# How much may wait unsent in the kernel. Without it that is megabytes, and a pong or a grant queues
# behind all of them. 64 KiB are 5 ms at 100 Mbit/s: enough to be told to write more in time.
UNSENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Upgraded:
    """An open WebSocket connection. Feed ``leftover`` to the frame parser before the first read.

    ``peer`` is the address at the other end of the TCP connection, the proxy's if there is one.
    """

    channel: Channel
    leftover: bytes
    peer: str
    tls_version: str | None
    via_proxy: bool


def open_link(
    url: str,
    *,
    tls: TlsOptions = SYSTEM_TRUST,
    timeout_s: float = DIAL_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
    buffer: bytearray | None = None,
) -> Upgraded:
    """Connect to the relay at a wss:// or ws:// URL and upgrade (PROTOCOL.md section 1.1).

    ``environ`` names proxies, and is the process's own if not given; ``buffer`` is that of a
    `TlsChannel`. Raises DialFailed, whose code
    and text name the step that failed or hung, or UpgradeRefused. Whatever is raised, no socket
    stays open. Blocks.
    """
    address = parse_address(url)
    context = client_context(tls) if address.secure else None
    proxy = proxy_for(address, os.environ if environ is None else environ)
    deadline = Deadline(timeout_s)
    sock = _connect(address, proxy, deadline)
    channel = Channel(sock)
    with closed_on_error(sock), connection_errors(address.place, "upgrade"):
        if proxy:
            connect_through(sock, proxy, address.host, address.port, deadline)
        if context:
            with limit(deadline, _late("did not finish the TLS handshake", address, timeout_s)):
                name = tls.server_name or address.host
                channel = open_channel(sock, context, name, buffer, place=address.place)
        with limit(deadline, _late("did not answer the upgrade", address, timeout_s)):
            leftover = upgrade(channel, address)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        peer = join_host_port(*sock.getpeername()[:2])
    return Upgraded(channel, leftover, peer, channel.tls_version, proxy is not None)


def _connect(address: RelayAddress, proxy: Proxy | None, deadline: Deadline) -> socket.socket:
    hop = proxy or address
    try:
        return connect_tcp(hop.host, hop.port, deadline.remaining())
    except ConnectError as error:
        if proxy is None:
            raise DialFailed(str(error), error.code) from error
        code = "timeout" if error.code == "timeout" else "proxy"
        raise DialFailed(f"{proxy.place} cannot be reached: {error}", code) from error


def _late(what: str, address: RelayAddress, timeout_s: float) -> DialFailed:
    return DialFailed(
        f"{address.place} {what} within the {timeout_s:.3g} s of the whole dial", "timeout"
    )
