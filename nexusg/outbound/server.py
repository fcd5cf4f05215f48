"""Accepts local programs, and speaks SOCKS5 with them until they have said where they want to go.

What becomes of a request is its owner's business: it is handed over as a `Client`, with the socket.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket

from nexusg.outbound.listener import Listener, ListenError
from nexusg.outbound.socks5 import Dialogue, Refused, Reply
from nexusg.transport.connect import join_host_port
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import words


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.outbound.listener import ListenAddress
    from nexusg.outbound.socks5 import Credentials, Request


#: For greeting and request together (PROTOCOL.md section 11.2).
PATIENCE_S = 10.0
#: A greeting, a password and a request fit, and so does the usual first message behind them.
READ_BYTES = 4096
#: How long what a refused client still sends is read away: closing a socket with unread input
#: resets it, and the client might lose the reply.
LINGER_S = 1.0
#: After a failed accept(), most likely for want of descriptors: the first pause, and the longest.
PAUSE_S, MAX_PAUSE_S = 0.05, 1.0


class Client:
    """A local program that waits for the answer to its request. Answer it with one method."""

    __slots__ = ("_pid", "early", "name", "request", "sock")

    def __init__(self, sock: socket.socket, name: str, request: Request, early: bytes) -> None:
        self.sock = sock
        self.name = name  #: ``ip:port``, or the unix socket that it has connected to
        self.request = request
        self.early = early  #: what it has said for the other end already
        self._pid = os.getpid()

    def accept(self) -> None:
        """Tell it that it is connected; the socket is the caller's then. Raises OSError."""
        self.sock.sendall(Reply.SUCCEEDED.message)

    def refuse(self, reply: Reply) -> None:
        """Tell it why it is not, and close. Blocks."""
        if self._pid == os.getpid():
            _farewell(self.sock, reply.message)
        self.sock.close()  # in a child of fork it is the parent's client


class Socks5Server:
    """One listener and its clients, each in a task until it is handed over.

    ``spawn(name, function, *args)`` makes a task. ``serve`` is called with each `Client`, and must
    not raise; ``refused(name, reason)`` with those that said nothing of use; ``troubled(reason)``
    when accepting fails, once until it succeeds again.
    """

    def __init__(
        self,
        address: ListenAddress,
        *,
        spawn: Callable[..., object],
        serve: Callable[[Client], None],
        refused: Callable[[str, str], None],
        troubled: Callable[[str], None],
        credentials: Credentials | None = None,
        shared: bool = False,
    ) -> None:
        """``shared``: several processes of this user listen on the same port."""
        self._listener = Listener(address, shared=shared)
        self._spawn = spawn
        self._serve = serve
        self._refused = refused
        self._troubled = troubled
        self._credentials = credentials
        self._open: set[socket.socket] = set()  # whose tasks have not begun
        self._stopped = False

    def start(self) -> str:
        """Listen, and accept in the background; where it listens. Raises ListenError. Blocks."""
        sock = self._listener.open()
        if self._stopped:
            self._listener.close()
            raise ListenError("the server was stopped", final=True)
        self._spawn("socks listener", self._accept, sock)
        return self._listener.place

    def stop(self) -> None:
        """Accept nobody else. Who was handed over is not touched. Never blocks."""
        self._stopped = True
        self._listener.close()
        for sock in list(self._open):
            sock.close()

    def disown(self) -> None:
        """In a child of fork: leave the listener to the parent."""
        self._listener.disown()
        self.stop()

    def _accept(self, listening: socket.socket) -> None:
        pause_s = PAUSE_S
        while not self._stopped:
            try:
                sock, address = listening.accept()
            except OSError as error:
                if self._stopped:
                    return
                if pause_s == PAUSE_S:
                    self._troubled(f"cannot accept on {self._listener.place}: {words(error)}")
                gevent.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            pause_s = PAUSE_S
            self._open.add(sock)
            self._spawn("socks client", self._converse, sock, self._name(address))
            gevent.sleep(0)  # a crowd of clients must not keep everybody else waiting

    def _name(self, address: Any) -> str:
        return join_host_port(*address[:2]) if isinstance(address, tuple) else self._listener.place

    def _converse(self, sock: socket.socket, name: str) -> None:
        self._open.discard(sock)
        served = False
        try:
            with limit(Deadline(PATIENCE_S), Refused("it made no request in time")):
                client = self._meet(sock, name)
            if client is not None:
                served = True
                self._serve(client)
        except Refused as error:
            self._refused(name, str(error))
            _farewell(sock, error.answer)
        except OSError:
            pass  # it has gone, and did not want anything
        finally:
            if not served:
                sock.close()

    def _meet(self, sock: socket.socket, name: str) -> Client | None:
        """The client with its request; None if it has gone. Raises OSError, Refused. Blocks."""
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        dialogue = Dialogue(self._credentials)
        while dialogue.request is None:
            data = sock.recv(READ_BYTES)
            if not data:
                return None
            if answer := dialogue.receive(data):
                sock.sendall(answer)
        return Client(sock, name, dialogue.request, dialogue.leftover)


def _farewell(sock: socket.socket, answer: bytes) -> None:
    """Send ``answer`` so that it arrives, and close. Blocks."""
    try:
        with limit(Deadline(LINGER_S), TimeoutError()):
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(READ_BYTES):
                pass
    except OSError:
        pass  # it has gone, or goes on talking
    finally:
        sock.close()
