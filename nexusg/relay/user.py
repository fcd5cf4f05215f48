"""One user's connection once its backend is known: bytes both ways between it and a stream.

The stream's listener writes to the user without blocking; what the kernel does not take is kept,
128 messages at most, as in the real relay. One greenlet reads the user.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, cast

import gevent
from gevent import socket
from gevent.event import Event

from nexusg.protocol.messages import format_id
from nexusg.relay.sockets import linger


if TYPE_CHECKING:
    from nexusg.agent.tasks import Task
    from nexusg.protocol.messages import Control
    from nexusg.protocol.relay_stream import RelayStream
    from nexusg.relay.link import Link
    from nexusg.relay.shared import Shared


#: The relay's copying buffer (PROTOCOL.md section 1.2).
READ_BYTES = 32 * 1024
#: Reverse messages kept for a user (PROTOCOL.md section 5.1); one more, and the user is closed.
BUFFER_FRAMES = 128
#: What is kept gets this long to reach the user when the agent has ended (section 6.5).
FLUSH_S = 0.05
#: Then a user found by the name in its ClientHello is half-closed, and closed after this.
HALF_CLOSED_S = 2.0
#: Without a credit for this long, if there is no idle timeout, the user is given up (section 5.2).
STARVED_S = 30.0

_READ = 1


class _Stop(Exception):
    """Thrown into the greenlet that reads the user."""


class _UserGone(_Stop):
    """The user's connection is over, for whatever reason."""


class _AgentDone(_Stop):
    """The agent has ended the stream, or is gone itself."""


class User:
    """Listener of one stream. ``run`` is its whole life."""

    def __init__(
        self,
        shared: Shared,
        link: Link,
        sock: socket.socket,
        *,
        half_close: bool = False,
        outbound: bool = False,
    ) -> None:
        """``half_close``: whether the agent's end is a half-close first (section 6.5).

        ``outbound``: the user is a service that the agent wanted to reach, with an idle time of
        its own, which only what it says counts against (section 6.7).
        """
        self._shared = shared
        self._link = link
        self._sock = sock
        self._half_close = half_close
        self._outbound = outbound
        config = shared.config
        self._idle_s = (
            config.outbound_idle_timeout_s if outbound else config.idle_timeout_s
        ) or None
        self._stream: RelayStream
        self._task: Task
        self._drain_task: Task | None = None
        self._stopping = False
        self._changed = Event()
        self._backlog: collections.deque[memoryview] = collections.deque()
        self._written_bytes = 0
        sock.setblocking(False)
        if (size := config.user_buffer_bytes) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self._readable = gevent.get_hub().loop.io(sock.fileno(), _READ)

    def run(self, connect: Control, prelude: bytes) -> None:
        """Open the stream with ``connect``, and serve until either side ends.

        The caller closes the socket, in the same task. Blocks.
        """
        self._task = cast("Task", gevent.getcurrent())
        habits = self._shared.habits
        stream = self._link.session.open(connect, self, recorded=habits.record_delay_s <= 0)
        if stream is None:
            return  # the connect was lost in a full lane
        self._stream = stream
        stream.deaf_to_grants = int(habits.lose_first_grant)
        stream.granter.held |= habits.never_grant
        if habits.record_delay_s > 0:
            self._shared.tasks.spawn("late record", self._record, habits.record_delay_s)
        try:
            self._link.flush()
            self._forward(prelude)
        except (_UserGone, OSError):
            pass
        except _AgentDone:
            self._farewell()
        finally:
            self._close()

    # The stream's listener -------------------------------------------------------------------

    def on_data(self, payload: memoryview) -> None:
        """Write, or keep what cannot be written."""
        try:
            sent = 0 if self._backlog else self._write(payload)
        except OSError:
            self._stop(_UserGone)
            return
        if sent == len(payload) and not self._backlog:
            self._stream.consumed()
        elif len(self._backlog) < BUFFER_FRAMES:
            self._backlog.append(memoryview(bytes(payload[sent:])))
            if self._drain_task is None:
                self._drain_task = self._shared.tasks.spawn("user writer", self._drain)
        else:
            self._stop(_UserGone)

    def on_credit(self) -> None:
        """Let the reader look again."""
        self._changed.set()

    def on_end(self, reason: str) -> None:
        """Flush and close."""
        self._stop(_AgentDone)

    # Forward ---------------------------------------------------------------------------------

    def _forward(self, data: bytes) -> None:
        stream, link = self._stream, self._link
        while True:
            if data:
                while not stream.sendable:
                    self._wait_change(self._idle_s or STARVED_S)
                if not stream.send(data):
                    return  # lost in a full lane, and a stream with a hole is worth nothing
                link.flush()
                if link.congested:
                    link.wait_room()
            while stream.paused:  # a read under way when the pause arrives still delivers
                self._wait_change(None)
            data = self._read()
            if not data:
                return

    def _read(self) -> bytes:
        while True:
            try:
                return self._sock.recv(READ_BYTES)
            except BlockingIOError:
                written_bytes = self._written_bytes
            try:
                socket.wait(self._readable, self._idle_s, TimeoutError())
            except TimeoutError:
                if self._outbound or self._written_bytes == written_bytes:
                    raise _UserGone from None

    def _wait_change(self, timeout_s: float | None) -> None:
        self._changed.clear()
        if not self._changed.wait(timeout_s):
            raise _UserGone

    # Reverse ---------------------------------------------------------------------------------

    def _write(self, payload: memoryview) -> int:
        try:
            sent = self._sock.send(payload)
        except BlockingIOError:
            return 0
        self._written_bytes += sent
        return sent

    def _drain(self) -> None:
        """Write what was kept, as the user takes it."""
        backlog = self._backlog
        try:
            while backlog:
                sent = self._write(backlog[0])
                if sent < len(backlog[0]):
                    backlog[0] = backlog[0][sent:]
                    socket.wait_write(self._sock.fileno(), self._idle_s, TimeoutError())
                else:
                    backlog.popleft()
                    self._stream.consumed()
                    self._link.flush()
            self._drain_task = None
        except OSError:
            self._stop(_UserGone)

    # Ending ----------------------------------------------------------------------------------

    def _record(self, delay_s: float) -> None:
        gevent.sleep(delay_s)
        self._link.session.record(self._stream)

    def _stop(self, why: type[_Stop]) -> None:
        if not self._stopping:
            self._stopping = True
            self._task.kill(why, block=False)

    def _farewell(self) -> None:
        if self._drain_task is not None:
            self._drain_task.join(FLUSH_S)
        if self._half_close:
            self._end_drain()
            linger(self._sock, HALF_CLOSED_S)

    def _close(self) -> None:
        self._stopping = True
        if not self._shared.habits.lose_disconnects:
            self._stream.end()
        elif self._stream.open:
            self._stream.forget()
        self._link.flush()
        try:
            self._end_drain()
        except _Stop:  # it was under way already
            self._end_drain()
        self._readable.close()
        event = "outbound.gone" if self._outbound else "user.gone"
        self._shared.log(event, stream=format_id(self._stream.id), agent=self._link.peer)

    def _end_drain(self) -> None:
        if self._drain_task is not None:
            self._drain_task.kill()
