"""What every shell of a stream has: its names, its greenlets, a wait for the relay, and one end.

`StreamPump` carries the bytes of a connection, `UdpFlow` the datagrams of a flow.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.event import Event

from nexusg.agent.lifecycle import StreamClosed, StreamConnected
from nexusg.agent.tasks import contained
from nexusg.protocol.messages import Reason, format_id
from nexusg.protocol.states import StreamState
from nexusg.protocol.stream import Cause


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nexusg.agent.session import Session
    from nexusg.agent.tasks import Task
    from nexusg.protocol.stream import Stream


class Closable(Protocol):
    """What is known here of a local service."""

    name: str

    def close(self) -> None:
        """Close, and wake up whoever waits in it. Never blocks."""


class StreamShell:
    """Base of the `StreamListener`s. ``_run`` is the life of the stream, in a greenlet."""

    __slots__ = ("_main", "_target", "_waiter", "buffered_bytes", "done", "session", "stream")

    _target: Closable | None

    def __init__(self, session: Session, stream: Stream) -> None:
        self.session = session
        self.stream = stream
        self.done = False
        self.buffered_bytes = 0  #: forward data that waits here
        self._target = None
        self._waiter: Event | None = None
        session.context.pumps.add(self)
        self._main = self._spawn(self._run)  # the greenlet that is in charge; it runs later

    # For subclasses to say -------------------------------------------------------------------

    def on_data(self, payload: memoryview | bytes) -> None:
        """Forward data, one message."""
        raise NotImplementedError

    def _run(self) -> None:
        """Dial, then carry. Blocks."""
        raise NotImplementedError

    def _user_left(self) -> None:
        """The user has gone: end now, or soon."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of what is kept: the stream has ended."""
        raise NotImplementedError

    def _helpers(self) -> Iterator[Task | None]:
        """The greenlets beside the one in charge."""
        return iter(())

    def losses(self) -> Mapping[str, int]:
        """How many datagrams were lost here, by cause."""
        return {}

    def _figures(self) -> dict[str, Any]:
        """What else ``stream.closed`` tells."""
        return {}

    # StreamListener, the part of it that all share --------------------------------------------

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
        self._release()
        if self._target is not None:
            failed = functools.partial(context.task_failed, "closing a target")
            contained(failed, self._target.close)
        self.session.connector.release(stream)
        current = gevent.getcurrent()
        for task in (self._main, *self._helpers()):
            if task is not None and task is not current:
                task.kill(block=False)
        context.pumps.discard(self)
        context.counters.closed[reason.value] += 1
        self._report_closed(reason, ended_by, error)

    # For subclasses to use -------------------------------------------------------------------

    def _wait(self, timeout_s: float | None) -> None:
        """Wait for `on_credit`. Blocks."""
        waiter = self._waiter = Event()
        try:
            waiter.wait(timeout_s)
        finally:
            self._waiter = None

    def _spawn(self, function: Callable[[], None]) -> Task:
        return self.session.context.tasks.spawn("stream", function, on_error=self._failed)

    def _failed(self, error: BaseException) -> None:
        """One of the greenlets has died of a bug, maybe the target's: the stream ends with it."""
        self.session.context.task_failed("stream", error)
        self.finish(Reason.LOCAL_ERROR, "agent", "internal error")

    def _dial_failed(self, error: Exception) -> None:
        self.session.context.counters.dial_failures += 1
        self.finish(Reason.DIAL_FAILED, "agent", str(error))

    def _report_connected(self) -> None:
        context = self.session.context
        took_s = round(context.clock() - self.stream.opened_at, 4)
        context.emit(StreamConnected(**self._names(), took_s=took_s))

    def _report_closed(self, reason: Reason, ended_by: str, error: str) -> None:
        stream, context = self.stream, self.session.context
        context.emit(
            StreamClosed(
                **self._names(),
                reason=reason.value,
                ended_by=ended_by,
                error=error,
                bytes_in=stream.bytes_in,
                bytes_out=stream.bytes_out,
                duration_s=round(context.clock() - stream.opened_at, 3),
                **self._figures(),
            )
        )

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
