"""One greenlet per stream: it dials, then carries the local service's data to the relay.

Data towards the local service does not pass through that greenlet: the session's reader writes it
directly, and only what the service does not take at once is kept here, in bytes and bounded, and
written by a second greenlet that lives as long as the service is behind.

No credit, no read: a local service is read only when what it says can be sent at once, so there
is nothing to throw away at the end and TCP itself holds the service back.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from nexusg.agent.lifecycle import StreamClosed, StreamConnected, StreamPaused, StreamResumed
from nexusg.errors import NexusgError, NoRoute, TargetError
from nexusg.protocol.messages import MAX_PAYLOAD_BYTES, Reason, format_id
from nexusg.protocol.states import StreamState
from nexusg.protocol.stream import Cause
from nexusg.targets.base import READ_BYTES


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.session import Session
    from nexusg.agent.tasks import Task
    from nexusg.protocol.stream import Stream
    from nexusg.targets.base import Target


#: After the user has gone, a local service that takes nothing for this long is given up.
DELIVERY_TIMEOUT_S = 30.0
#: How long, and for how much, the rest of an answer nobody wants is read away: closing a socket
#: with unread input resets it, and the service might lose the end of what it was sent.
LINGER_S, LINGER_BYTES = 0.2, 256 * 1024
#: How often the kernel is asked whether the service's host has everything.
LINGER_STEP_S = 0.02
#: Below this part of its budget a paused stream goes on.
RESUME_PART = 4


class StreamPump:
    """The shell of one stream: a `StreamListener`, its target, and its greenlets."""

    __slots__ = (
        "_backlog",
        "_broken",
        "_drainer",
        "_main",
        "_target",
        "_user_gone",
        "_waiter",
        "buffered_bytes",
        "done",
        "session",
        "stream",
    )

    def __init__(self, session: Session, stream: Stream) -> None:
        self.stream = stream
        self.done = False
        self.buffered_bytes = 0
        self.session = session
        self._target: Target | None = None
        self._backlog: collections.deque[memoryview | bytes] | None = None
        self._broken = False  # the service takes nothing any more
        self._user_gone = False
        self._waiter: Event | None = None
        self._drainer: Task | None = None
        session.context.pumps.add(self)
        self._main = session.context.tasks.spawn("stream", self._run)

    # StreamListener: called from the protocol core, never blocking ---------------------------

    def on_data(self, payload: memoryview | bytes) -> None:
        """Write to the local service what it takes now; keep the rest."""
        target = self._target
        if self._broken or self.done:
            return
        if target is None or self._backlog:
            self._keep(bytes(payload))
            return
        try:
            taken = target.try_send(payload)
        except OSError:
            self._break()
            return
        if taken == len(payload):
            self.stream.consumed()
        else:
            self._keep(bytes(payload[taken:]))
            self._drainer = self._spawn(self._drain)

    def on_credit(self) -> None:
        """Wake the greenlet if it waits for the relay."""
        if self._waiter is not None:
            self._waiter.set()

    def on_end(self, cause: Cause) -> None:
        """The relay or the session has ended the stream."""
        if cause is Cause.USER:
            self._user_left()
        elif cause is Cause.TIMEOUT:
            self.finish(Reason.TIMEOUT, "agent", "the relay no longer knows the stream")
        elif cause is Cause.REPLACED:
            self.finish(Reason.UNKNOWN, "user", "the relay used the stream's ID again")
        else:
            self.finish(Reason.SESSION_ENDED, "session", "")

    # The end ---------------------------------------------------------------------------------

    @property
    def target_name(self) -> str:
        """The local service's name for logs, empty until it is connected."""
        return self._target.name if self._target is not None else ""

    def finish(self, reason: Reason, ended_by: str, error: str) -> None:
        """End the stream now, with all that belongs to it. Idempotent; never blocks."""
        if self.done:
            return
        self.done = True
        stream, context = self.stream, self.session.context
        if stream.state is StreamState.DELIVERING:
            stream.delivered()
        else:
            stream.abort(reason)
        self.session.flush()
        self._drop_backlog()
        if self._target is not None:
            self._target.close()
        current = gevent.getcurrent()
        for task in (self._main, self._drainer):
            if task is not None and task is not current:
                task.kill(block=False)
        context.pumps.discard(self)
        context.counters.closed[reason.value] += 1
        context.emit(
            StreamClosed(
                **self._names(),
                reason=reason.value,
                ended_by=ended_by,
                error=error,
                bytes_in=stream.bytes_in,
                bytes_out=stream.bytes_out,
                duration_s=round(context.clock() - stream.opened_at, 3),
            )
        )

    # Local service to relay ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            target = self.session.connector.connect(self.stream)
        except (TargetError, NoRoute) as error:
            self.session.context.counters.dial_failures += 1
            self.finish(Reason.DIAL_FAILED, "agent", str(error))
            return
        if self.done:
            target.close()
            return
        self._target = target
        self._report_connected()
        self.stream.dialled()
        if self._user_gone:
            self._deliver()
            return
        if self._backlog:
            self._drainer = self._spawn(self._drain)
        self._relay()

    def _relay(self) -> None:
        reason, error = Reason.NORMAL, ""
        try:
            self._carry()
        except OSError as failure:
            reason, error = Reason.LOCAL_ERROR, failure.strerror or str(failure)
        clock, stream = self.session.context.clock, self.stream
        if stream.state is not StreamState.OPEN:
            return  # ended from outside; this greenlet is about to be killed
        stream.end_of_file(clock(), reason)
        while (deadline := stream.flush(clock())) is not None:
            self.session.flush()
            self._wait(deadline - clock())
            if not self._flushing:
                return  # the user has gone meanwhile
        self.session.flush()
        if self._backlog and not self._broken:
            self._stop_drainer()
            self._deliver(reason, "target", error)
        else:
            self.finish(reason, "target", error)

    @property
    def _flushing(self) -> bool:
        return self.stream.state is StreamState.FLUSHING

    def _carry(self) -> None:
        """Carry data until the local service ends. Blocks. Raises OSError."""
        stream, target, session = self.stream, self._target, self.session
        assert target is not None
        link, window = session.link, stream.window
        while True:
            # Each wait may take long, so all conditions are looked at again after it.
            if not stream.sendable:
                self._wait(None)
            elif link.full:
                link.wait_for_room()
            else:
                bulk = window.unlimited or window.available > 1
                data = target.try_read(READ_BYTES if bulk else MAX_PAYLOAD_BYTES)
                if data is None:
                    target.wait_readable()
                elif len(data) and stream.state is StreamState.OPEN:
                    stream.send(memoryview(data))
                    link.flush()
                else:
                    return

    def _wait(self, timeout_s: float | None) -> None:
        """Wait for `on_credit`. Blocks."""
        waiter = self._waiter = Event()
        try:
            waiter.wait(timeout_s)
        finally:
            self._waiter = None

    # Relay to local service ------------------------------------------------------------------

    def _keep(self, payload: bytes) -> None:
        if self._backlog is None:
            self._backlog = collections.deque()
        limits, budget = self.session.context.config.limits, self.session.context.budget
        self._backlog.append(payload)
        self.buffered_bytes += len(payload)
        budget.add(len(payload))
        if self.buffered_bytes > limits.stream_buffer_max_bytes or (
            budget.exceeded and self.buffered_bytes > limits.stream_buffer_bytes
        ):
            text = f"the local service is {self.buffered_bytes} bytes behind"
            self.finish(Reason.BUFFER_FULL, "agent", text)
        elif (
            self.buffered_bytes > limits.stream_buffer_bytes or budget.exceeded
        ) and not self.stream.granter.held:
            self.stream.pause()
            self.session.context.counters.pauses += 1
            self.session.context.emit(
                StreamPaused(
                    **self.session.names(), **self._id(), buffered_bytes=self.buffered_bytes
                )
            )

    def _drain(self) -> None:
        """Write the backlog as fast as the service takes it. Blocks."""
        try:
            while self._backlog:
                self._write_head()
        except OSError:
            self._break()
        self._drainer = None

    def _write_head(self) -> None:
        backlog, target = self._backlog, self._target
        assert backlog
        assert target is not None
        head = backlog[0]
        taken = target.send(head) if len(head) else 0
        if self._backlog is not backlog:
            return  # the stream was ended meanwhile
        if taken < len(head):
            backlog[0] = memoryview(head)[taken:]
        else:
            backlog.popleft()
            self.stream.consumed()
        self.buffered_bytes -= taken
        self.session.context.budget.release(taken)
        limit = self.session.context.config.limits.stream_buffer_bytes
        if self.stream.granter.held and self.buffered_bytes <= limit // RESUME_PART:
            self.stream.resume()
            self.session.context.emit(StreamResumed(**self.session.names(), **self._id()))
        self.session.flush()

    def _break(self) -> None:
        """The service takes nothing any more; what it has said so far is still carried."""
        self._broken = True
        self._drop_backlog()
        if self._user_gone:
            self.finish(Reason.NORMAL, "user", "")

    def _drop_backlog(self) -> None:
        self.session.context.budget.release(self.buffered_bytes)
        self.buffered_bytes = 0
        self._backlog = None

    # After the user has gone -----------------------------------------------------------------

    def _user_left(self) -> None:
        self._user_gone = True
        if self._target is None:
            if not self._backlog:
                self.finish(Reason.NORMAL, "user", "")
            return  # the dial goes on for the sake of what is kept
        self._main.kill(block=False)
        self._stop_drainer()
        self._drainer = self._spawn(self._deliver)

    def _stop_drainer(self) -> None:
        if self._drainer is not None:
            self._drainer.kill(block=False)
            self._drainer = None

    def _deliver(
        self, reason: Reason = Reason.NORMAL, ended_by: str = "user", error: str = ""
    ) -> None:
        """Give the local service the rest, then the end (PROTOCOL.md section 6.6). Blocks."""
        assert self._target is not None
        try:
            while self._backlog:
                with gevent.Timeout(DELIVERY_TIMEOUT_S, _Undelivered()):
                    self._write_head()
            self._target.shutdown_write()
            self._linger(self._target)
        except OSError as failure:
            error = error or failure.strerror or str(failure)
        except _Undelivered:
            error = f"{self.buffered_bytes} bytes could not be delivered to the local service"
        self.finish(reason, ended_by, error)

    def _linger(self, target: Target) -> None:
        clock = self.session.context.clock
        discarded, since = 0, clock()
        while True:
            data = target.try_read(READ_BYTES)
            if data is None:
                gevent.sleep(LINGER_STEP_S)
            elif not data:
                return
            else:
                discarded += len(data)
                gevent.sleep(0)
            waited_s = clock() - since
            if waited_s > DELIVERY_TIMEOUT_S:
                return
            if target.unsent_bytes() == 0 and (discarded > LINGER_BYTES or waited_s > LINGER_S):
                return

    # Names -----------------------------------------------------------------------------------

    def _spawn(self, function: Callable[[], None]) -> Task:
        return self.session.context.tasks.spawn("stream", function)

    def _id(self) -> dict[str, Any]:
        return {"stream": format_id(self.stream.id)}

    def _names(self) -> dict[str, Any]:
        stream = self.stream
        return {
            **self.session.names(),
            **self._id(),
            "hostname": stream.hostname,
            "port": stream.conn_port,
            "client": stream.client_ip,
            "transport": "udp" if stream.is_udp else "tcp",
            "is_tls": stream.is_tls,
            "target": self.target_name,
        }

    def _report_connected(self) -> None:
        context = self.session.context
        took_s = round(context.clock() - self.stream.opened_at, 4)
        context.emit(StreamConnected(**self._names(), took_s=took_s))


class _Undelivered(NexusgError):
    """The local service took nothing for DELIVERY_TIMEOUT_S."""
