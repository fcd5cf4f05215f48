"""From the text of a target to a connection: ``host:port``, ``unix:/path`` or ``unix:@name``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent import socket

from nexusg.errors import TargetError
from nexusg.targets.sockets import SocketTarget
from nexusg.transport.connect import connect_native, connect_unix
from nexusg.transport.failure import ConnectError


if TYPE_CHECKING:
    from nexusg.targets.base import Target

#: For the look-up and all addresses together (PROTOCOL.md section 6.2).
TIMEOUT_S = 10.0

UNIX = "unix:"


def dial(target: str, buffer: bytearray, timeout_s: float = TIMEOUT_S) -> Target:
    """Connect to a local service; ``buffer`` is what it is read into.

    Names are resolved each time (PROTOCOL.md section 10.3). Raises TargetError with code
    ``refused``, ``timeout``, ``dns``, ``unreachable`` or ``io``. Blocks.
    """
    try:
        if target.startswith(UNIX):
            sock = connect_unix(target[len(UNIX) :], timeout_s)
        else:
            host, port = split(target)
            sock = connect_native(host, port, timeout_s)
    except ConnectError as error:
        raise TargetError(f"target {target}: {error}", error.code) from error
    return SocketTarget(sock, target, buffer)


def split(target: str, protocol: str = "tcp") -> tuple[str, int]:
    """Host and port of a target. Raises TargetError if no port of ``protocol`` is named so.

    Without a host it is this one, as with the reference agent.
    """
    host, _, service = target.rpartition(":")
    try:
        port = int(service) if service.isdecimal() else socket.getservbyname(service, protocol)
    except OSError as error:
        text = f"target {target}: the system knows no {protocol.upper()} service {service!r}"
        raise TargetError(text, "dns") from error
    return host.strip("[]") or "localhost", port
