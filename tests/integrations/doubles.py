"""A worker that stands in for gunicorn's, with the same main loop but for its patience."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, Timeout, socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

from tests.conftest import MS
from tests.support.relayed import AMPLE_S


if TYPE_CHECKING:
    from collections.abc import Callable


class Log:
    """Keeps lines, as ``level: text``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _line(self, level: str, message: str, *args: object) -> None:
        self.lines.append(f"{level}: {message % args}")

    def debug(self, message: str, *args: object) -> None:
        self._line("debug", message, *args)

    def info(self, message: str, *args: object) -> None:
        self._line("info", message, *args)

    def warning(self, message: str, *args: object) -> None:
        self._line("warning", message, *args)

    def error(self, message: str, *args: object) -> None:
        self._line("error", message, *args)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


class FakeWorker:
    """Its app echoes. ``addresses`` are those of its users."""

    def __init__(self, age: int = 1, *, graceful_timeout: float = AMPLE_S, **settings: Any) -> None:
        usual = {"is_ssl": False, "proxy_protocol": "off", "workers": 1, "ssl_context": None}
        self.cfg = SimpleNamespace(**{**usual, **settings}, graceful_timeout=graceful_timeout)
        self.age = age
        self.alive = True
        self.log = Log()
        self.server_class: Callable[..., Any] | None = None
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.address = listener.getsockname()
        self.sockets = [listener]
        self.addresses: list[Any] = []
        self.listeners: list[Any] = []
        self.beats = 0
        self.pool = Pool(1000)
        self.closed = Event()

    def notify(self) -> None:
        self.beats += 1

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        self.listeners.append(listener.getsockname())
        self.addresses.append(addr)
        try:
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:  # the user has gone
            pass

    def run(self) -> None:
        servers = []
        tls = {"ssl_context": self.cfg.ssl_context} if self.cfg.is_ssl else {}
        for listener in self.sockets:
            server = self.make(listener, **tls)
            server.start()
            servers.append(server)
        try:
            while self.alive:
                self.notify()
                gevent.sleep(2 * MS)
        finally:
            for server in servers:
                server.close()
        self.closed.set()
        while self.pool.free_count() != self.pool.size:
            self.notify()
            gevent.sleep(2 * MS)

    def make(self, listener: Any, **tls: Any) -> Any:
        """One server, as the loop makes it."""
        if self.server_class is None:
            return StreamServer(listener, functools.partial(self.handle, listener), spawn=self.pool)
        options = {"application": None, "spawn": self.pool, "log": self.log, "environ": {}}
        return self.server_class(listener, **options, handler_class=None, **tls)

    def close(self) -> None:
        self.pool.kill()
        for listener in self.sockets:
            listener.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for what no event announces. Blocks."""
    with Timeout(AMPLE_S, AssertionError(f"never came true: {condition}")):
        while not condition():
            gevent.sleep(MS)


def spawn(function: Callable[..., Any], *args: Any) -> Any:
    """A greenlet of a test."""
    return Greenlet.spawn(function, *args)
