"""The small web service behind the demo: a page at ``/`` and a WebSocket echo at ``/ws``."""

from __future__ import annotations

import html
import ssl
from typing import TYPE_CHECKING, Any

from gevent import socket
from gevent.pywsgi import WSGIServer
from gevent.ssl import SSLContext
from geventwebsocket.handler import WebSocketHandler


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

PAGE = """\
<!doctype html>
<meta charset="utf-8">
<title>nexusg demo</title>
<h1>It works</h1>
<p>You asked for <b>{host}</b>. This page came from a service that nothing outside can reach,
through an agent and a relay.</p>
<p><input id="said" placeholder="say something"> <output id="heard"></output></p>
<script>
const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
said.oninput = () => socket.send(said.value);
socket.onmessage = (message) => {{ heard.value = "the service heard: " + message.data; }};
</script>
"""

STOP_S = 1.0  # for requests that are being answered


class DemoService:
    """The service, by HTTP and by TLS with the certificate in ``certificate_file``."""

    def __init__(self, certificate_file: Path) -> None:
        # No ALPN: it speaks HTTP/1.1 only, and that is what a client then assumes.
        context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_file)
        self._servers = (_server(), _server(ssl_context=context))

    def __enter__(self) -> DemoService:
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop(timeout=STOP_S)

    @property
    def http(self) -> str:
        """Where it speaks HTTP."""
        return f"127.0.0.1:{self._servers[0].server_port}"

    @property
    def tls(self) -> str:
        """Where it speaks TLS."""
        return f"127.0.0.1:{self._servers[1].server_port}"


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application."""
    path = environ["PATH_INFO"]
    if path == "/ws" and (channel := environ.get("wsgi.websocket")):
        _echo(channel)
        return []
    if path != "/":
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"There is a page at / and a WebSocket at /ws.\n"]
    page = PAGE.format(host=html.escape(environ.get("HTTP_HOST", "nothing")))
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    return [page.encode()]


def _echo(channel: Any) -> None:
    while (message := channel.receive()) is not None:
        channel.send(message)


class _Server(WSGIServer):
    """Quick, and without a traceback for every client that does not trust the certificate."""

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        # Or the answer waits 40 ms until the client has acknowledged the session tickets.
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            super().wrap_socket_and_handle(client_socket, address)
        except OSError:
            client_socket.close()


def _server(**tls: Any) -> WSGIServer:
    return _Server(("127.0.0.1", 0), application, log=None, handler_class=WebSocketHandler, **tls)
