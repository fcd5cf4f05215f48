"""What the relay does with sockets in more than one place: listen, end politely, name the peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket
from gevent.server import StreamServer
from gevent.ssl import SSLSocket

from nexusg.errors import ConfigError
from nexusg.transport.connect import join_host_port
from nexusg.transport.failure import words


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.tasks import Tasks


#: How long a closing connection may still carry what its peer has sent meanwhile. Closing at once
#: would answer that with a reset, which can destroy what was written last.
LINGER_S = 1.0
#: The most that Linux takes by default is 4096; a burst of users must not be refused.
BACKLOG = 1024


class Listener:
    """A listening TCP socket; each connection is served by a task and closed after it."""

    def __init__(
        self,
        tasks: Tasks,
        name: str,
        address: tuple[str, int],
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        """``serve(sock, peer)`` is called in a task called ``name``; ``peer`` is ``ip:port``."""
        self._tasks = tasks
        self._name = name
        self._serve = serve
        self._address = address
        self._server: StreamServer | None = None
        self._open: set[socket.socket] = set()
        self.port = address[1]  #: the one it is bound to, once started

    def start(self) -> None:
        """Bind, and accept from the next loop turn on. Raises ConfigError."""
        host, port = self._address
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(self._address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            where = join_host_port(host, port)
            raise ConfigError([f"cannot listen on {where}: {words(error)}"]) from error
        self.port = sock.getsockname()[1]
        # Called with the server's own wrapper and its arguments; only what was accepted is used.
        spawn: Any = self._spawn
        self._server = StreamServer(sock, self._run, spawn=spawn)
        self._server.start()

    def stop(self) -> None:
        """Accept no more. Connections go on until their tasks end."""
        if self._server is not None:
            self._server.stop()

    def close_rest(self) -> None:
        """Close the connections whose tasks were ended before they began."""
        for sock in list(self._open):
            sock.close()

    def _spawn(self, _wrapper: Any, _handle: Any, _close: Any, accepted: Any) -> None:
        self._open.add(accepted[0])
        self._tasks.spawn(self._name, self._run, *accepted)

    def _run(self, sock: socket.socket, address: Any) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(sock, peer_name(address))
        finally:
            self._open.discard(sock)
            sock.close()


def linger(sock: socket.socket, timeout_s: float = LINGER_S) -> None:
    """Say that nothing more comes, then read and drop until the peer has ended too. Blocks.

    The caller closes the socket.
    """
    try:
        with gevent.Timeout(timeout_s, TimeoutError()):
            sock.settimeout(None)
            if isinstance(sock, SSLSocket):
                _say_goodbye(sock)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    except OSError:
        pass


def _say_goodbye(sock: SSLSocket) -> None:
    try:
        sock.unwrap()
    except TimeoutError:
        raise
    except (OSError, ValueError):
        pass  # data of the peer's crossed it, or TLS has ended: close_notify is out if it can be


def peer_name(address: Any) -> str:
    """``ip:port`` of what accept() returns, ``[ip]:port`` for IPv6."""
    return join_host_port(*address[:2])
