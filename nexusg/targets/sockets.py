"""Targets over connected sockets: TCP, unix and TLS. How they were connected is not known here.

`Endpoint` is what they share with UDP sockets, which are no streams (``udp.py``).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import sys
import termios
from typing import TYPE_CHECKING, Any, NoReturn

from gevent import sleep
from gevent.monkey import get_original
from gevent.socket import SHUT_WR
from gevent.socket import socket as gevent_socket
from gevent.ssl import SSLWantReadError, SSLWantWriteError

from nexusg.transport.waiting import READ, WRITE, release, rouse, wait, watcher


if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent._types import _IoWatcher
    from gevent.ssl import SSLSocket


#: What TLS encrypts at a time (RFC 8446 section 5.1).
RECORD_BYTES = 16 * 1024
# When TLS must read to write, or write to read, the other greenlet may be waiting for that already.
# It happens in a renegotiation (TLS 1.2) only, so trying again soon is good enough.
CROSSED_S = 0.01

_NativeSocket: Any = get_original("socket", "socket")
_GONE = "the connection to the target was closed"


class Endpoint:
    """A socket of any kind, which it takes over and makes non-blocking.

    A socket of gevent becomes one of the standard library, unless it is TLS: where nothing may wait
    the methods in C are all that is needed, and it is smaller by the watchers it does not have.
    ``buffer`` is what reads go to. It is shared by all targets of an agent, so that an idle one
    costs little.
    """

    __slots__ = ("_buffer", "_readable", "_sock", "_writable", "name")

    _tls = False

    def __init__(self, sock: gevent_socket | SSLSocket, name: str, buffer: bytearray) -> None:
        self.name = name
        self._sock: Any = sock if self._tls else _native(sock)
        self._sock.settimeout(0.0)
        self._buffer = buffer
        self._readable: _IoWatcher | None = None
        self._writable: _IoWatcher | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def wait_readable(self) -> None:
        """Return when a read may have something. Blocks. Raises OSError."""
        if self._readable is None:
            self._readable = watcher(self._sock, READ, _GONE)
        wait(self._readable)

    def rouse(self) -> None:
        """Let `wait_readable` return, with or without something to read. Never blocks."""
        if self._readable is not None:
            rouse(self._readable)

    def when_readable(self, function: Callable[[], None]) -> None:
        """Have the hub call ``function`` once when a read may have something. Never blocks.

        Only while nobody is in `wait_readable`. Raises OSError.
        """
        if self._readable is None:
            self._readable = watcher(self._sock, READ, _GONE)
        self._readable.start(functools.partial(self._is_readable, function))

    def _is_readable(self, function: Callable[[], None]) -> None:
        assert self._readable is not None
        self._readable.stop()
        function()

    def close(self) -> None:
        """Close, and wake up whoever waits in a method with an OSError; idempotent."""
        sock, self._sock = self._sock, _CLOSED
        for used in (self._readable, self._writable):
            if used is not None:
                release(used, _GONE)
        self._readable = self._writable = None
        try:
            sock.close()
        except OSError:  # what the service did to it no longer matters
            pass

    def _wait_writable(self) -> None:
        if self._writable is None:
            self._writable = watcher(self._sock, WRITE, _GONE)
        wait(self._writable)


class SocketTarget(Endpoint):
    """A target over a stream socket; over a TLS socket use `TlsSocketTarget`."""

    __slots__ = ()

    def try_send(self, data: memoryview | bytes) -> int:
        """Take what fits at once and return how much. Raises OSError."""
        try:
            return self._sock.send(data)  # type: ignore[no-any-return]
        except BlockingIOError:
            return 0

    def send(self, data: memoryview | bytes) -> int:
        """Take at least one byte and return how many. Blocks. Raises OSError."""
        while True:
            try:
                return self._sock.send(data)  # type: ignore[no-any-return]
            except BlockingIOError:
                self._wait_writable()

    def try_read(self, limit: int) -> memoryview | None:
        """At most ``limit`` bytes, valid until the next switch; None when there is nothing yet.

        Raises OSError.
        """
        try:
            count = self._sock.recv_into(self._buffer, min(limit, len(self._buffer)))
        except BlockingIOError:
            return None
        return memoryview(self._buffer)[:count]

    def unsent_bytes(self) -> int:
        """How much the kernel still holds for the service; 0 if it cannot tell."""
        try:
            answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def shutdown_write(self) -> None:
        """Half-close: the service reads the end of file, and may still answer."""
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:  # it has gone; the next read says so
            pass


class TlsSocketTarget(SocketTarget):
    """The same over a TLS socket of gevent whose handshake is done.

    When a record has gone out in part, OpenSSL insists on getting the same bytes again, and at
    least as many. So after `try_send` or `send` took less than all, the next call of either must
    begin with the rest and must not be shorter. A stream does so: it retries the head of its
    backlog.
    """

    __slots__ = ("_crossed", "_pid")

    _tls = True

    def __init__(self, sock: SSLSocket, name: str, buffer: bytearray) -> None:
        super().__init__(sock, name, buffer)
        self._crossed = False  # a read has to write first
        self._pid = os.getpid()

    def try_send(self, data: memoryview | bytes) -> int:
        """Take what fits at once, record by record, and return how much. Raises OSError.

        OpenSSL reports a write only when all of it has gone, however much that is.
        """
        view, sent = memoryview(data), 0
        try:
            while sent < len(view):
                sent += self._sock.write(view[sent : sent + RECORD_BYTES])
        except (SSLWantWriteError, SSLWantReadError):
            pass
        return sent

    def send(self, data: memoryview | bytes) -> int:
        """Take one record and return its size. Blocks. Raises OSError."""
        record = memoryview(data)[:RECORD_BYTES]
        while True:
            try:
                return self._sock.write(record)  # type: ignore[no-any-return]
            except SSLWantWriteError:
                self._wait_writable()
            except SSLWantReadError:
                sleep(CROSSED_S)

    def try_read(self, limit: int) -> memoryview | None:
        """At most ``limit`` bytes, valid until the next switch; None when there is nothing yet.

        Raises OSError.
        """
        try:
            return super().try_read(limit)
        except SSLWantReadError:
            return None
        except SSLWantWriteError:
            self._crossed = True
            return None

    def wait_readable(self) -> None:
        """Return when `try_read` may have something. Blocks. Raises OSError."""
        if self._crossed:
            self._crossed = False
            sleep(CROSSED_S)
        elif not self._sock.pending():  # what is decrypted already is not seen by the kernel
            super().wait_readable()

    def shutdown_write(self) -> None:
        """Do nothing: the end is announced by `close`.

        Python can only send close_notify in a call that reads, too, and fails for good on data that
        is under way from the service.
        """

    def close(self) -> None:
        """Send close_notify if that is possible at once, and close; idempotent."""
        try:
            if self._pid == os.getpid():  # in a fork the connection goes on without us
                self._sock.unwrap()
        except (OSError, ValueError):  # it is full, closed, or no longer TLS
            pass
        super().close()


def _native(sock: Any) -> Any:
    if not isinstance(sock, gevent_socket):
        return sock
    return _NativeSocket(sock.family, sock.type, sock.proto, sock.detach())


def _closed() -> OSError:
    return OSError(errno.EBADF, _GONE)


class _Closed:
    """What stands for the socket of a closed target."""

    def _refuse(self, *_: object) -> NoReturn:
        raise _closed()

    send = write = recv_into = pending = fileno = shutdown = unwrap = getsockopt = _refuse

    def close(self) -> None:
        """It is."""


_CLOSED = _Closed()
