"""From what a connect handler returns to a target. It connects nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent import socket, ssl
from gevent.monkey import get_original

from nexusg.errors import TargetError
from nexusg.targets.blocking import BlockingTarget
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from nexusg.targets.udp import UdpTarget


if TYPE_CHECKING:
    from nexusg.targets.base import Target

_TARGET_METHODS = (
    "try_send",
    "send",
    "try_read",
    "wait_readable",
    "unsent_bytes",
    "shutdown_write",
    "close",
)
_SOCKET_METHODS = ("recv", "send", "close")
_WANTED = "a connected socket, or an object with recv(), send() and close()"
_UDP_WANTED = "a connected datagram socket"


def as_target(connection: Any, name: str, buffer: bytearray) -> Target:
    """A target over ``connection``, which it takes over; a target comes back as it is. For TCP.

    ``name`` is what logs call it, ``buffer`` the one that sockets are read into. Raises TargetError
    with code ``handler``.
    """
    sock = _socket(connection)
    if sock is not None:
        if sock.type == socket.SOCK_DGRAM:
            sock.close()
            raise _refuse("a datagram socket for a TCP stream")
        kind = TlsSocketTarget if isinstance(sock, ssl.SSLSocket) else SocketTarget
        return kind(sock, name, buffer)
    if _has(connection, _TARGET_METHODS):
        target: Target = connection
        return target
    if _has(connection, _SOCKET_METHODS):
        return BlockingTarget(connection, name)
    raise _refuse(f"{type(connection).__name__}, and {_WANTED} is wanted")


def as_udp_target(connection: Any, name: str, buffer: bytearray) -> UdpTarget:
    """The same for a UDP flow: a target over a connected datagram socket. Raises TargetError."""
    if isinstance(connection, UdpTarget):
        return connection
    sock = _socket(connection)
    if sock is None:
        raise _refuse(f"{type(connection).__name__}, and {_UDP_WANTED} is wanted")
    if sock.type != socket.SOCK_DGRAM or not _connected(sock):
        sock.close()
        raise _refuse(f"another kind of socket for a UDP flow, and {_UDP_WANTED} is wanted")
    return UdpTarget(sock, name, buffer)


def _connected(sock: Any) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _socket(connection: Any) -> Any:
    """A gevent socket for one of gevent or the standard library, None for anything else."""
    if isinstance(connection, socket.socket):
        if connection.fileno() < 0:
            raise _refuse("a closed socket")
        return connection
    if isinstance(connection, get_original("socket", "socket")):
        return _adopt(connection)
    return None


def _adopt(native: Any) -> Any:
    """A gevent socket in the place of a socket of the standard library, in an unpatched process."""
    if hasattr(native, "do_handshake"):
        raise _refuse("an ssl.SSLSocket, which blocks the process: make it with gevent.ssl")
    if native.fileno() < 0:
        raise _refuse("a closed socket")
    family, kind, protocol = native.family, native.type, native.proto
    return socket.socket(family, kind, protocol, native.detach())


def _has(connection: Any, methods: tuple[str, ...]) -> bool:
    return all(callable(getattr(connection, method, None)) for method in methods)


def _refuse(what: str) -> TargetError:
    return TargetError(f"the connect handler returned {what}", "handler")
