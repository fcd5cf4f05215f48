"""Servers in greenlets, that answer as a test tells them to."""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket


if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    Handler = Callable[[Any], object]


class Server:
    """A listener and what came to it. ``errors`` are what broke the connections, TLS or socket."""

    def __init__(self, handler: Handler, context: ssl.SSLContext | None, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._handler = handler
        self._context = context
        self._greenlets: list[Greenlet[..., None]] = []
        self._sockets: list[Any] = []
        self.errors: list[OSError] = []
        self.requests: list[bytes] = []
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((host, 0))
        self._listener.listen(16)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._accepting = Greenlet.spawn(self._accept)

    @property
    def place(self) -> str:
        """host:port of a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, path: str = "/connect") -> str:
        """The URL of the relay that this server plays."""
        return f"{'wss' if self._context else 'ws'}://{self.place}{path}"

    def read_request(self, sock: Any) -> bytes:
        """The head of a request, which is remembered. Blocks."""
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = sock.recv(4096)
            if not chunk:
                break
            data += chunk
        self.requests.append(data)
        return data

    def stop(self) -> None:
        """End everything, connections too. Blocks."""
        self._accepting.kill()
        self._listener.close()
        gevent.killall(self._greenlets)
        for sock in self._sockets:
            sock.close()

    def wait(self) -> None:
        """Until all connections so far have been dealt with. Blocks."""
        gevent.joinall(self._greenlets, timeout=5)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self._sockets.append(sock)  # here: a greenlet that is killed early never runs
            self._greenlets.append(Greenlet.spawn(self._serve, sock))

    def _serve(self, sock: Any) -> None:
        try:
            if self._context:
                sock = self._context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                self._sockets.append(sock)
                sock.do_handshake()
            self._handler(sock)
        except OSError as error:
            self.errors.append(error)


@contextmanager
def serving(
    handler: Callable[[Server, Any], object],
    *,
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Iterator[Server]:
    """Serve ``handler(server, sock)`` for each connection, which stays open after it."""
    server: Server
    server = Server(lambda sock: handler(server, sock), context, host)
    try:
        yield server
    finally:
        server.stop()


def accepting(extra: bytes = b"", headers: bytes = b"") -> Callable[[Server, Any], None]:
    """A handler that accepts the upgrade, with further headers, and sends ``extra`` at once."""

    def handle(server: Server, sock: Any) -> None:
        request = server.read_request(sock)
        sock.sendall(switching(request, headers) + extra)

    return handle


def answering(answer: bytes) -> Callable[[Server, Any], None]:
    """A handler that answers a request with these bytes."""

    def handle(server: Server, sock: Any) -> None:
        server.read_request(sock)
        sock.sendall(answer)

    return handle


def switching(request: bytes, headers: bytes = b"") -> bytes:
    """The answer 101 to a request (RFC 6455 section 4.2.2)."""
    key = headers_of(request)["sec-websocket-key"].encode()
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n" + headers + b"\r\n"
    )


def headers_of(request: bytes) -> dict[str, str]:
    """The headers of a request, their names in lower case."""
    lines = request.decode("ascii").split("\r\n")[1:]
    return {
        name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name
    }


def hanging(server: Server, sock: Any) -> None:
    """A handler that never says anything."""
    gevent.sleep(60)


def has_ipv6() -> bool:
    """Whether this machine has the IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
