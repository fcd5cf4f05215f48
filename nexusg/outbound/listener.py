"""Where local programs connect: an address from the settings, and the socket that listens there.

It does not know what is spoken there.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat

from gevent import socket

from nexusg.config.checks import UNIX, listen_address
from nexusg.transport.connect import closed_on_error, join_host_port
from nexusg.transport.failure import ConnectError, words
from nexusg.transport.resolve import SocketAddress, resolve


#: Programs that connect at once, while the agent is busy; Linux cuts it to its own limit.
BACKLOG = 1024
#: Like a password, a file decides who may use the relay: its owner, unless told otherwise.
FILE_MODE = 0o600


class ListenError(Exception):
    """Nothing listens. ``final`` when trying again is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclasses.dataclass(frozen=True, slots=True)
class ListenAddress:
    """``host:port``, ``:port`` for every interface, or a unix socket's ``path``."""

    host: str = ""
    port: int = 0
    path: str = ""  #: ``@name`` is abstract

    @property
    def place(self) -> str:
        """What the settings call it."""
        return f"{UNIX}{self.path}" if self.path else join_host_port(self.host, self.port)


def parse_listen_address(text: str) -> ListenAddress:
    """The address in ``text``. Raises ListenError."""
    text = text.strip()
    if problem := listen_address(text):
        raise ListenError(f"cannot listen: {text!r} {problem}", final=True)
    if text.startswith(UNIX):
        return ListenAddress(path=text[len(UNIX) :])
    host, _, port = text.rpartition(":")
    return ListenAddress(host.strip("[]"), int(port))


class Listener:
    """A listening socket, and its file if it has one."""

    def __init__(self, address: ListenAddress, *, shared: bool = False) -> None:
        """``shared``: others of this user may listen on the same port; not on the same file."""
        self.address = address
        self._shared = shared
        self.sock: socket.socket | None = None
        self._file: tuple[int, int] | None = None

    def open(self) -> socket.socket:
        """Bind and listen. Raises ListenError. Blocks while a name is looked up."""
        try:
            self.sock = self._unix() if self.address.path else self._tcp()
        except OSError as error:
            text = f"cannot listen on {self.address.place}: {words(error)}"
            raise ListenError(text) from error
        except ConnectError as error:
            raise ListenError(f"cannot listen on {self.address.place}: {error}") from error
        return self.sock

    @property
    def place(self) -> str:
        """Where it listens; with the real port if any would do."""
        if self.sock is None or self.address.path:
            return self.address.place
        return join_host_port(*self.sock.getsockname()[:2])

    def close(self) -> None:
        """Listen no more, and wake up whoever accepts with an OSError. Never blocks."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()
            if self._file is not None and self._file == _identity(self.address.path):
                os.unlink(self.address.path)

    def disown(self) -> None:
        """In a child of fork: close what is the parent's, and leave its file alone."""
        self._file = None
        self.close()

    def _tcp(self) -> socket.socket:
        host, port = self.address.host, self.address.port
        if host:
            # Programs that are told a name try all its addresses, so one of them is enough.
            found = resolve(host, port)
            best = min(found, key=lambda one: one.family != socket.AF_INET)
            return _bound(best, self._shared)
        try:
            return _bound(SocketAddress(socket.AF_INET6, ("::", port, 0, 0)), self._shared)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            # A host without IPv6.
            return _bound(SocketAddress(socket.AF_INET, ("0.0.0.0", port)), self._shared)

    def _unix(self) -> socket.socket:
        path = self.address.path
        sock = socket.socket(socket.AF_UNIX)
        with closed_on_error(sock):
            if path.startswith("@"):
                sock.bind("\0" + path[1:])
            else:
                _remove_stale(path)
                sock.bind(path)
                self._file = _identity(path)
                os.chmod(path, FILE_MODE)  # nobody can connect before listen()
            sock.listen(BACKLOG)
        return sock


def _bound(address: SocketAddress, shared: bool) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    with closed_on_error(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.address[0] != "::")
        sock.bind(address.address)
        sock.listen(BACKLOG)
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket that an agent has left behind, and nothing else. Raises OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file of this name that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
