"""Active checks of the targets of one destination: a connection to each, again and again.

With `health.path` the connection has to answer an HTTP GET of it. What a check finds is the pool's
to judge. It dials as a stream of the route does, so a check finds what a stream would find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import gevent

from nexusg.agent.tasks import contained
from nexusg.config.checks import is_wsgi
from nexusg.errors import DialFailed, TargetError
from nexusg.targets.base import READ_BYTES
from nexusg.targets.dial import dial
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.failure import words
from nexusg.transport.httphead import read_head
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent import socket

    from nexusg.config.model import Destination
    from nexusg.targets.base import Target
    from nexusg.targets.certificates import Certificates
    from nexusg.targets.pool import Member, Pool


#: The interval varies by this part, so that the agents of many hosts do not check all at once.
JITTER = 0.1
#: For the head of the answer: what web servers take of a request's, roughly.
HEAD_BYTES = 16 * 1024
#: How often, how long each time, and for how much, the rest of an answer is awaited: a connection
#: that is closed with unread input is reset, and the service might log that.
LINGER_STEPS, LINGER_STEP_S, LINGER_BYTES = 10, 0.02, 256 * 1024

_OK, _TOO_HIGH = 200, 400


class HealthCheck:
    """Checks the members of ``pool``. ``run`` is its greenlet."""

    def __init__(
        self,
        pool: Pool,
        destination: Destination,
        buffer: bytearray,
        certificates: Certificates,
        *,
        rng: Callable[[], float],
        failed: Callable[[BaseException], object],
    ) -> None:
        """``buffer`` is what answers are read into; ``failed`` is told of bugs."""
        self._pool = pool
        self._destination = destination
        self._buffer = buffer
        self._certificates = certificates
        self._rng = rng
        self._failed = failed
        # An application in this process is there as long as the process is.
        self._members = [one for one in pool.members if not is_wsgi(one.target)]

    def run(self) -> None:
        """Check each member, pause, and begin again. Blocks until it is killed."""
        while self._members:
            for member in self._members:
                contained(self._failed, self._check, member)
            gevent.sleep(self._pause_s())

    def _pause_s(self) -> float:
        return self._destination.health.interval_s * (1 + JITTER * (2 * self._rng() - 1))

    def _check(self, member: Member) -> None:
        try:
            self._probe(member.target)
        except TargetError as error:
            self._pool.checked(member, error)
        else:
            self._pool.checked(member, None)

    def _probe(self, target: str) -> None:
        """Connect, and ask if there is something to ask. Blocks. Raises TargetError."""
        timeout_s = self._destination.health.timeout_s
        late = TargetError(f"target {target}: no answer to a check in {timeout_s:g} s", "timeout")
        with limit(Deadline(timeout_s), late):
            connection = self._dial(target, timeout_s)
            try:
                if self._destination.health.path is not None:
                    self._ask(connection, target)
            except OSError as error:
                text = f"target {target}: the check's connection broke: {words(error)}"
                raise TargetError(text, "io") from error
            except DialFailed as error:
                raise TargetError(f"target {target}: {error}", "io") from error
            finally:
                connection.close()

    def _dial(self, target: str, timeout_s: float) -> Target:
        # Without a request, since nobody is connected: the PROXY header is that of our own.
        return dial(target, self._destination, None, self._buffer, timeout_s, self._certificates)

    def _ask(self, connection: Target, target: str) -> None:
        path = self._destination.health.path
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {self._host(target)}\r\nConnection: close\r\n"
            f"User-Agent: nexusg/{__version__} (health check)\r\nAccept: */*\r\n\r\n"
        )
        unsent = memoryview(request.encode())
        while unsent:
            unsent = unsent[connection.send(unsent) :]
        status = _status(connection)
        if not _OK <= status < _TOO_HIGH:
            raise TargetError(
                f"target {target}: GET {path} was answered with {status}", "unhealthy"
            )
        _linger(connection)

    def _host(self, target: str) -> str:
        if self._destination.health.host is not None:
            return self._destination.health.host
        return "localhost" if target.startswith("unix:") else target.rpartition("//")[2]


class _Received:
    """What `read_head` needs of a socket, for a target."""

    def __init__(self, connection: Target) -> None:
        self._connection = connection
        self.early = b""

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; empty at end of file. Blocks. Raises OSError."""
        if self.early:
            data, self.early = self.early[:size], self.early[size:]
            return data
        while (view := self._connection.try_read(size)) is None:
            self._connection.wait_readable()
        return bytes(view)


def _status(connection: Target) -> int:
    """The status of the answer, after those that only say that it is to come. Blocks."""
    received = _Received(connection)
    while True:
        head = read_head(cast("socket.socket", received), HEAD_BYTES, place="it", code="io")
        if head.status >= _OK:
            return head.status
        received.early = head.rest


def _linger(connection: Target) -> None:
    left = LINGER_BYTES
    for _ in range(LINGER_STEPS):
        while (data := connection.try_read(READ_BYTES)) is not None:
            left -= len(data)
            if not data or left < 0:
                return
            gevent.sleep(0)
        gevent.sleep(LINGER_STEP_S)
