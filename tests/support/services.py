"""Small local services in greenlets: what the streams of an agent under test are delivered to.

with Service(echo) as service:
    ...  # service.target is what a port mapping takes
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from gevent import Greenlet, killall, socket
from gevent.event import Event

from tests.support.relayed import AMPLE_S


if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 64 * 1024


class Service:
    """Runs ``serve(sock)`` for each connection, and closes it afterwards. Use as a context."""

    def __init__(self, serve: Callable[[Any], object], buffer_bytes: int | None = None) -> None:
        """``buffer_bytes`` is what the kernel keeps for it; by default it grows to megabytes."""
        self.accepted = 0
        self.open: set[Any] = set()
        self._serve = serve
        self._changed = Event()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if buffer_bytes is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1024)
        self.target = "{}:{}".format(*self._listener.getsockname())
        self._greenlets: set[Any] = set()
        self._accepting = Greenlet.spawn(self._accept)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Accept no more, and drop what is open. Blocks."""
        self._accepting.kill()
        self._listener.close()
        killall(list(self._greenlets))
        for sock in list(self.open):
            sock.close()

    def wait_open(self, count: int) -> None:
        """Until exactly ``count`` connections are open. Blocks."""
        while len(self.open) != count:
            self._changed.clear()
            assert self._changed.wait(AMPLE_S), f"{len(self.open)} connections are open"

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.accepted += 1
            self.open.add(sock)  # here: a greenlet that is killed early never runs
            greenlet = Greenlet.spawn(self._run, sock)
            self._greenlets.add(greenlet)
            greenlet.rawlink(self._greenlets.discard)
            self._changed.set()

    def _run(self, sock: Any) -> None:
        try:
            self._serve(sock)
        except OSError:  # the agent has ended it
            pass
        finally:
            sock.close()
            self.open.discard(sock)
            self._changed.set()


def echo(sock: Any) -> None:
    """Send back what comes."""
    while data := sock.recv(PIECE_BYTES):
        sock.sendall(data)


def hold(sock: Any) -> None:
    """Read until the end, and say nothing."""
    while sock.recv(PIECE_BYTES):
        pass


def ask(expected: bytes, answer: bytes) -> Callable[[Any], None]:
    """A service that answers once it has read ``expected`` bytes, as many as there are in it."""

    def serve(sock: Any) -> None:
        got = b""
        while len(got) < len(expected):
            piece = sock.recv(len(expected) - len(got))
            if not piece:
                return
            got += piece
        sock.sendall(answer)

    return serve


class Source:
    """Sends ``data`` as soon as the first byte has come, and closes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, sock: Any) -> None:
        sock.recv(PIECE_BYTES)
        sock.sendall(self.data)


class Sink:
    """Reads to the end, as long as its gate is open; what came is counted and hashed."""

    def __init__(self, *, open_: bool = True) -> None:
        self.gate = Event()
        self.bytes = 0
        self.ended = Event()
        self._hash = hashlib.sha256()
        if open_:
            self.gate.set()

    def __call__(self, sock: Any) -> None:
        try:
            while True:
                self.gate.wait()
                piece = sock.recv(PIECE_BYTES)
                if not piece:
                    return
                self.bytes += len(piece)
                self._hash.update(piece)
        finally:
            self.ended.set()

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything so far."""
        return self._hash.digest()
