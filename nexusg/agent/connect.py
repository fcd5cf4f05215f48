"""What a connect handler is given, and what it may be (PROTOCOL.md section 13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nexusg.protocol.messages import format_id
from nexusg.targets.request import ConnectRequest


if TYPE_CHECKING:
    from nexusg.protocol.stream import Stream


__all__ = ["ConnectHandler", "ConnectRequest", "connect_request", "split_address"]

# Five digits: longer ones are no port, and int() refuses very long ones.
_PORT_DIGITS = 5


#: Returns a connected socket or an object with ``recv``, ``send`` and ``close``; raises `NoRoute`,
#: or returns None, to leave the stream to the handler before it and in the end to the mappings.
ConnectHandler = Callable[[ConnectRequest], Any]


def connect_request(
    backend: str, stream: Stream, normalize: Callable[[str], str]
) -> ConnectRequest:
    """The request for ``stream``; ``normalize`` is what the configuration does to host names."""
    client_ip, client_port = split_address(stream.client_ip)
    return ConnectRequest(
        backend=backend,
        client_id=format_id(stream.id),
        hostname=normalize(stream.hostname),
        original_hostname=stream.hostname,
        port=stream.conn_port,
        client_ip=client_ip,
        client_port=client_port,
        is_tls=stream.is_tls,
        transport="udp" if stream.is_udp else "tcp",
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``ip:port``, ``[ip]:port`` or a bare address, which has port 0."""
    host, colon, port = address.rpartition(":")
    is_port = port.isdecimal() and len(port) <= _PORT_DIGITS
    if not colon or not is_port or (":" in host and not host.startswith("[")):
        return address.strip("[]"), 0
    return host.strip("[]"), int(port)
