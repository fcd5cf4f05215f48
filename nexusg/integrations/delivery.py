"""How the streams of the relay's users come to a gunicorn worker's app.

`Memory` puts each into the worker's own handling of connections, as if it had accepted it from the
user. `BoundSocket` connects to the socket that gunicorn listens on. Both are connect handlers. They
must not know when the agent lives.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from nexusg.config.destination import Destination
from nexusg.errors import TargetError
from nexusg.targets.base import READ_BYTES
from nexusg.targets.dial import UNIX, dial


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.config.model import Config
    from nexusg.integrations.worker import Worker
    from nexusg.targets.base import Target
    from nexusg.targets.request import ConnectRequest


#: The first user may come before the worker's loop has begun, but hardly by so much.
READY_S = 5.0

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

# By gunicorn's setting; before version 24 it was true or false, and v1 what it meant.
_HEADERS = {"v1": "v1", "v2": "v2", "auto": "v2", True: "v1"}


class Delivery:
    """What both have in common: which streams are for gunicorn at all."""

    __name__ = "gunicorn"  # what the log calls the handler

    def __init__(self, worker: Worker, config: Config) -> None:
        self._worker = worker
        self._ports = {backend.name: set(backend.port_mappings) for backend in config.backends}

    def __call__(self, request: ConnectRequest) -> Any:
        """Where the stream goes; None leaves it to the port mappings. Blocks."""
        if request.transport != "tcp":
            return None
        if request.is_tls == bool(self._worker.cfg.is_ssl):
            return self._connect(request)
        if request.port in self._ports.get(request.backend, ()):
            return None
        raise TargetError(_WRONG[request.is_tls].format(request.port), "handler")

    def _connect(self, request: ConnectRequest) -> Any:
        raise NotImplementedError


_WRONG = {
    True: "the user speaks TLS and gunicorn does not: give it a certfile and a keyfile, or map "
    "port {} in the agent's configuration",
    False: "gunicorn speaks TLS and the user does not: map port {} in the agent's configuration",
}


class Memory(Delivery):
    """Through the worker's own servers: its limits, access log, keep-alive and graceful timeout."""

    def __init__(self, worker: Worker, config: Config) -> None:
        """Must happen before the worker's main loop, which makes the servers."""
        super().__init__(worker, config)
        self._ready = Event()
        self._server: Any = None
        make = worker.server_class or functools.partial(_HandlingServer, worker)
        # The one place where the loop asks somebody else for something of its servers.
        worker.server_class = functools.partial(self._make, make)

    def _make(self, make: Callable[..., Any], listener: Any, **options: Any) -> Any:
        server = make(listener, **options)
        if self._server is None:  # all of them do the same with a connection
            self._server = server
            server.start = functools.partial(self._start, server.start)
        return server

    def _start(self, start: Callable[[], object]) -> None:
        start()  # completes what the server tells the app of itself
        self._ready.set()

    def _connect(self, request: ConnectRequest) -> Any:
        if not self._ready.wait(READY_S):
            text = "the worker class has a main loop of its own: use serve(…, deliver='socket')"
            raise TargetError(text, "handler")
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as unused:
            unused.callback(ours.close)
            unused.callback(theirs.close)
            address = request.client_ip, request.client_port
            # As do_handle() of the server does, which cannot any more once it has been closed.
            self._server.pool.spawn(_handle, self._server, theirs, address)
            unused.pop_all()
        return ours


class _HandlingServer(StreamServer):
    """What the main loop of GeventWorker makes itself where there is no ``server_class``."""

    def __init__(
        self, worker: Worker, listener: Any, *, spawn: Any, ssl_context: Any = None, **_: Any
    ) -> None:
        self._worker = worker
        self._bound = _Bound(listener.getsockname())
        if worker.cfg.workers > 1:
            self.max_accept = 1  # leaves some to the other workers
        tls = {} if ssl_context is None else {"ssl_context": ssl_context}
        super().__init__(listener, spawn=spawn, **tls)

    def handle(self, client: Any, address: Any) -> None:
        """Serve one connection. Blocks."""
        self._worker.handle(self._bound, client, address)


class _Bound:
    """What is left of the bound socket when the server has been closed, for ``SERVER_NAME``."""

    def __init__(self, address: Any) -> None:
        self._address = address

    def getsockname(self) -> Any:
        """Where it was bound."""
        return self._address


def _handle(server: Any, client: Any, address: tuple[str, int]) -> None:
    serve = server.wrap_socket_and_handle if server.ssl_enabled else server.handle
    with contextlib.closing(client):
        serve(client, address)


class BoundSocket(Delivery):
    """To the socket that gunicorn listens on, where any of its workers takes the connection."""

    def __init__(self, worker: Worker, config: Config) -> None:
        super().__init__(worker, config)
        self._target = target_of(worker.sockets[0].getsockname())
        self._how = Destination(targets=(self._target,), proxy_protocol=_proxy_protocol(worker))
        self._buffer = bytearray(READ_BYTES)

    def _connect(self, request: ConnectRequest) -> Target:
        return dial(self._target, self._how, request, self._buffer)


def target_of(address: Any) -> str:
    """The target that leads to a bound socket, of which this is the address."""
    if isinstance(address, bytes):  # in the abstract namespace
        return f"{UNIX}@{os.fsdecode(address[1:])}"
    if isinstance(address, str):
        return f"{UNIX}{os.path.abspath(address)}"
    host, port = address[:2]
    host = _WILDCARDS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _proxy_protocol(worker: Worker) -> str:
    """The header that gunicorn expects, so that it learns the user's address."""
    if worker.server_class is not None:
        return "off"  # gevent's own HTTP server understands none
    return _HEADERS.get(worker.cfg.proxy_protocol, "off")
