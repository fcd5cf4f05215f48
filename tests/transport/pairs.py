"""Two ends of a connection whose buffers are small, so that they can be filled."""

from __future__ import annotations

from typing import Any

from gevent import socket


#: Long enough never to be reached by a passing test.
AMPLE_S = 5.0
#: More than the kernel takes for a peer that does not read, whose buffers do not grow.
CLOG_BYTES = 2 * 1024 * 1024
BUFFER_BYTES = 64 * 1024


def tcp_pair() -> tuple[Any, Any]:
    """A TCP connection over the loopback; the second end gives up waiting after AMPLE_S."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    theirs.settimeout(AMPLE_S)
    return ours, theirs
