"""One greenlet per stream: it dials, then carries the local service's data to the relay.

A stream that is idle for long gives its greenlet back, and has a new one when its service speaks:
the greenlet is more than half of what an idle stream costs.

Data towards the local service does not pass through that greenlet: the session's reader writes it
directly, and only what the service does not take at once is kept here, in bytes and bounded, and
written by a second greenlet that lives as long as the service is behind.

No credit, no read: a local service is read only when what it says can be sent at once, so there
is nothing to throw away at the end and TCP itself holds the service back.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import gevent

from nexusg.agent.lifecycle import StreamPaused, StreamResumed
from nexusg.agent.shell import StreamShell
from nexusg.errors import NoRoute, TargetError
from nexusg.protocol.messages import MAX_PAYLOAD_BYTES, Reason
from nexusg.protocol.states import StreamState
from nexusg.targets.base import READ_BYTES
from nexusg.targets.sockets import SocketTarget


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
#: What the largest read of a local service costs.
READ_CREDITS = -(-READ_BYTES // MAX_PAYLOAD_BYTES)
#: Below this part of its budget a paused stream goes on.
RESUME_PART = 4


class StreamPump(StreamShell):
    """The shell of one stream: a `StreamListener`, its target, and its greenlets."""

    __slots__ = ("_backlog", "_broken", "_drainer", "_resting", "_tired", "_user_gone")

    _target: Target | None

    def __init__(self, session: Session, stream: Stream) -> None:
        super().__init__(session, stream)
        self._backlog: collections.deque[memoryview | bytes] | None = None
        self._broken = ""  # why the service takes nothing any more
        self._user_gone = False
        self._resting = False  # the greenlet waits for the service
        self._tired = False  # it is to end when there is nothing to read
        self._drainer: Task | None = None

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
        except Exception as error:  # a target of the program's own may raise anything, here to us
            self._break(error)
            return
        if taken == len(payload):
            self.stream.consumed()
        else:
            self._keep(bytes(payload[taken:]))
            self._start_drainer()

    def _release(self) -> None:
        self._drop_backlog()

    def _helpers(self) -> Iterator[Task | None]:
        yield self._drainer

    def rest(self) -> bool:
        """Nothing has moved for long: do without a greenlet, where possible; whether it is.

        It is with plain sockets; of TLS the kernel does not see what is decrypted already. Never
        blocks.
        """
        target = self._target
        if not self._resting or type(target) is not SocketTarget:
            return False
        self._tired = True
        target.rouse()
        return True

    # Local service to relay ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            target = self.session.connector.connect(self.stream)
        except (TargetError, NoRoute) as error:
            self._dial_failed(error)
            return
        if self.done:
            target.close()
            return
        self._begin(target)

    def _begin(self, target: Target) -> None:
        """Both ends are connected: carry. Blocks."""
        self._target = target
        self._report_connected()
        self.stream.dialled()
        if self._user_gone:
            self._deliver()
            return
        self._write_early(target)
        self._relay()

    def _relay(self) -> None:
        reason, error = Reason.NORMAL, ""
        try:
            if not self._carry():
                return
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
        if self._backlog:
            self._deliver(reason, "target", error)
        else:
            self.finish(reason, "target", error)

    @property
    def _flushing(self) -> bool:
        return self.stream.state is StreamState.FLUSHING

    def _carry(self) -> bool:
        """Carry data until the local service ends, or until it is left to the hub to wait for it.

        Return whether it has ended. Blocks. Raises OSError.
        """
        stream, target, session = self.stream, self._target, self.session
        assert target is not None
        link, window = session.link, stream.window
        while True:
            # Each wait may take long, so what is needed is looked at again after it.
            if not stream.sendable:
                self._wait(None)
                continue
            if link.full:
                link.wait_for_room()
                if not stream.sendable:
                    continue
            credits = READ_CREDITS if window.unlimited else window.available
            limit = min(credits * MAX_PAYLOAD_BYTES, READ_BYTES)
            data = target.try_read(limit)
            if data is None:
                if self._tired and type(target) is SocketTarget:
                    self._tired = False
                    target.when_readable(self._wake)
                    return False
                self._rest_for(target)
                continue
            self._tired = False
            size = len(data)
            if not size or stream.state is not StreamState.OPEN:
                return True
            stream.send(data)
            link.flush()
            if size < limit:  # that was all there is, most likely: do not ask the kernel again
                self._rest_for(target)

    def _rest_for(self, target: Target) -> None:
        self._resting = True
        try:
            target.wait_readable()
        finally:
            self._resting = False

    def _wake(self) -> None:
        """The service has spoken, or ended. Called by the hub."""
        if self.stream.state is StreamState.OPEN and not self._user_gone:
            self._main = self._spawn(self._relay)

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

    def _write_early(self, target: Target) -> None:
        """Write what came during the dial; most often all of it is taken at once."""
        try:
            while self._backlog:
                if not self._write_head(target.try_send):
                    self._start_drainer()
                    return
        except OSError as error:
            self._break(error)

    def _start_drainer(self) -> None:
        if self._backlog and self._drainer is None:
            self._drainer = self._spawn(self._drain)

    def _drain(self) -> None:
        """Write the backlog as fast as the service takes it. Blocks."""
        target = self._target
        assert target is not None
        try:
            while self._backlog:
                self._write_head(target.send)
        except OSError as error:
            self._break(error)
        self._drainer = None

    def _write_head(self, write: Callable[[memoryview | bytes], int]) -> bool:
        """Write of the first message what ``write`` takes; whether that is all of it."""
        backlog = self._backlog
        assert backlog
        head = backlog[0]
        taken = min(write(head), len(head)) if len(head) else 0
        if self._backlog is not backlog:
            return False  # the stream was ended meanwhile
        whole = taken == len(head)
        if whole:
            backlog.popleft()
            self.stream.consumed()
        elif taken:
            backlog[0] = memoryview(head)[taken:]
        self.buffered_bytes -= taken
        self.session.context.budget.release(taken)
        limit = self.session.context.config.limits.stream_buffer_bytes
        if self.stream.granter.held and self.buffered_bytes <= limit // RESUME_PART:
            self.stream.resume()
            self.session.context.emit(StreamResumed(**self.session.names(), **self._id()))
        self.session.flush()
        return whole

    def _break(self, error: Exception) -> None:
        """The service takes nothing any more; what it has said so far is still carried."""
        self._broken = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._drop_backlog()
        if not isinstance(error, OSError):
            self.session.context.task_failed("stream", error)

    def _drop_backlog(self) -> None:
        self.session.context.budget.release(self.buffered_bytes)
        self.buffered_bytes = 0
        self._backlog = None

    # After the user has gone -----------------------------------------------------------------

    def _user_left(self) -> None:
        self._user_gone = True
        if self._target is not None:
            self._main.kill(block=False)
            self._main = self._spawn(self._deliver)
        elif not self.buffered_bytes:
            self.finish(Reason.NORMAL, "user", "")
        # Otherwise the dial goes on for the sake of what is kept.

    def _deliver(
        self, reason: Reason = Reason.NORMAL, ended_by: str = "user", error: str = ""
    ) -> None:
        """Give the local service the rest, then the end (PROTOCOL.md section 6.6). Blocks."""
        # The drainer is let finish: ended in the midst of a write, nobody knows what was written.
        self._start_drainer()
        while self._drainer is not None:
            before = self.buffered_bytes
            self._drainer.join(DELIVERY_TIMEOUT_S)
            if self._drainer is not None and self.buffered_bytes == before:
                error = f"{before} bytes could not be delivered to the local service"
                self.finish(reason, ended_by, error)
                return
        try:
            self._say_end()
        except OSError as failure:
            error = error or failure.strerror or str(failure)
        self.finish(reason, ended_by, error or self._broken)

    def _say_end(self) -> None:
        target = self._target
        assert target is not None
        if not self._broken:
            target.shutdown_write()
            self._linger(target)

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
