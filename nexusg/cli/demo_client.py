"""The user of the demo: asks for the page and talks to the echo, through the public ports."""

from __future__ import annotations

import http.client
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import websocket
from gevent import socket
from gevent.ssl import SSLContext


if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 10.0

#: What `fetch` and `echo` raise when there is no answer, or none that makes sense.
FAILURES = (OSError, http.client.HTTPException, websocket.WebSocketException)


@dataclass(frozen=True)
class Reply:
    """An HTTP response."""

    status: str
    body: str
    took_s: float


def fetch(host: str, port: int, ca_file: Path | None = None) -> Reply:
    """GET / of ``host`` at a public port of this machine, with ``ca_file`` by TLS.

    Blocks. Raises FAILURES.
    """
    started = time.monotonic()
    connection = http.client.HTTPConnection(host, port)
    connection.sock = _connected(host, port, ca_file)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    return Reply(f"{response.status} {response.reason}", body, time.monotonic() - started)


def echo(host: str, port: int, text: str) -> str:
    """What the WebSocket at /ws of ``host`` answers to ``text``. Blocks. Raises FAILURES."""
    client: Any = websocket.WebSocket()
    with _connected(host, port, None) as sock:
        client.connect(f"ws://{host}:{port}/ws", socket=sock)
        client.send(text)
        answer = client.recv()
    return str(answer)


def _connected(host: str, port: int, ca_file: Path | None) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # it is timed
    if ca_file is None:
        return sock
    context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    return context.wrap_socket(sock, server_hostname=host)
