"""Connected pairs of sockets of every kind, with small buffers, so that they clog early."""

from __future__ import annotations

import _socket
from typing import TYPE_CHECKING, Any

from gevent import Greenlet, socket
from gevent.monkey import get_original


if TYPE_CHECKING:
    from ssl import SSLContext

    Contexts = tuple[SSLContext, SSLContext]

SMALL_BYTES = 16 * 1024


def tcp_pair() -> tuple[Any, Any]:
    """Two gevent sockets, connected over loopback."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def unix_pair() -> tuple[Any, Any]:
    """Two connected unix sockets of gevent."""
    return _small(*socket.socketpair())


def native_pair() -> tuple[Any, Any]:
    """A socket of the standard library, as an unpatched process has it, and one of gevent."""
    ours, theirs = _socket.socketpair()
    native = get_original("socket", "socket")(ours.family, ours.type, ours.proto, ours.detach())
    return _small(native, socket.socket(theirs.family, theirs.type, theirs.proto, theirs.detach()))


def udp_pair(host: str = "127.0.0.1") -> tuple[Any, Any]:
    """Two UDP sockets of gevent, connected to each other."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ours, theirs = (socket.socket(family, socket.SOCK_DGRAM) for _ in "12")
    for sock in (ours, theirs):
        sock.bind((host, 0))
    ours.connect(theirs.getsockname())
    theirs.connect(ours.getsockname())
    return ours, theirs


def unix_datagram_pair(*, native: bool = False) -> tuple[Any, Any]:
    """Two connected unix datagram sockets, the first one as an unpatched process has it, or not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if native:
        kind = get_original("socket", "socket")
        ours = kind(ours.family, ours.type, ours.proto, ours.detach())
    return ours, theirs


def tls_pair(contexts: Contexts, **options: Any) -> tuple[Any, Any]:
    """Two TLS sockets of gevent, the client first; ``options`` are the server's. Blocks."""
    client, server = contexts
    ours, theirs = unix_pair()
    accepting = Greenlet.spawn(server.wrap_socket, theirs, server_side=True, **options)
    ours = client.wrap_socket(ours, server_hostname="localhost")
    return ours, accepting.get()


def _small(ours: Any, theirs: Any) -> tuple[Any, Any]:
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
    return ours, theirs
