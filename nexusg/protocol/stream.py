"""One stream at the agent: its state, its credits both ways, and the order of its messages.

The start-of-stream rule (PROTOCOL.md section 5.4): nothing is sent for a stream until it is
*settled*, that is until its first data message has arrived or a moment has passed, because the
relay announces a stream before it records it and ignores what comes in between.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import (
    BATCH,
    UDP_BATCH,
    UDP_WINDOW,
    BarrierStep,
    FlushBarrier,
    Granter,
    SendWindow,
)
from nexusg.protocol.messages import MAX_PAYLOAD_BYTES, Control, Event, Reason, encode_grant
from nexusg.protocol.states import STREAM, StreamInput, StreamState, advance


if TYPE_CHECKING:
    from nexusg.protocol.session import AgentSession


#: The relay stops sending for us at a pause of the old kind at most this long (PROTOCOL.md 4.3).
RELAY_PAUSE_S = 30.0

_OPEN, _CLOSED = StreamState.OPEN, StreamState.CLOSED


class Cause(enum.Enum):
    """Why a stream was ended from outside its shell."""

    USER = "user"  #: the user has gone; what is buffered is still to be delivered
    TIMEOUT = "timeout"  #: the relay has forgotten the stream (PROTOCOL.md section 7)
    REPLACED = "replaced"  #: the relay used its ID again
    SESSION = "session"  #: the session is over
    REFUSED = "refused"  #: the relay does not make the connection that was asked for


class StreamListener(Protocol):
    """The shell of one stream. None of its methods may block or raise."""

    def on_data(self, payload: memoryview | bytes) -> None:
        """Forward data, one message; a view is valid only during the call.

        Call ``stream.consumed()`` once the local service has taken it; a datagram at once, whatever
        becomes of it, because the relay must never wait for the credits of a UDP stream.
        """

    def on_credit(self) -> None:
        """Something that a sender may be waiting for has changed: look at the stream again."""

    def on_end(self, cause: Cause) -> None:
        """The stream has ended for ``cause``; after USER call ``stream.delivered()`` at the end."""


class _Nobody:
    """The listener of a stream that was refused."""

    def on_data(self, payload: memoryview | bytes) -> None:
        """Drop it."""

    def on_credit(self) -> None:
        """Nobody waits."""

    def on_end(self, cause: Cause) -> None:
        """It never began."""


_NOBODY = _Nobody()


class Stream:
    """One user's connection. Made by `AgentSession`; all methods are called by its shell."""

    __slots__ = (
        "_barrier",
        "_deferred",
        "_eof_reason",
        "_session",
        "_uncounted",
        "bytes_in",
        "bytes_out",
        "client_ip",
        "conn_port",
        "frames_in",
        "granter",
        "hostname",
        "id",
        "idle_mark",
        "idle_since",
        "is_tls",
        "is_udp",
        "listener",
        "opened_at",
        "outstanding_pings",
        "paused",
        "relay_pause_until",
        "settled",
        "state",
        "window",
    )

    def __init__(
        self,
        session: AgentSession,
        connect: Control,
        forward_window: int,
        now: float,
        *,
        recorded: bool = False,
    ) -> None:
        """``recorded``: the relay knows the stream already, so no grant can be lost."""
        self._session = session
        self.id = connect.client_id
        self.conn_port = connect.conn_port
        self.client_ip = connect.client_ip
        self.hostname = connect.hostname
        self.is_tls = connect.is_tls
        self.is_udp = connect.transport == "udp"
        self.state = StreamState.OPENING
        self.window = SendWindow(connect.credits or None)
        self.granter = _granter(self.is_udp, forward_window, recorded)
        self.listener: StreamListener = _NOBODY
        self.settled = False
        self.paused = False  #: we asked the relay to stop reading its user
        self.relay_pause_until = 0.0  #: a relay of v0.3.6 asked us to stop until then
        self.opened_at = self.idle_since = now
        self.idle_mark = 0  # bytes and frames at the last sweep: a change means activity
        self.outstanding_pings = 0
        self.bytes_in = self.bytes_out = self.frames_in = 0
        self._uncounted = 0  # forward messages that have cost the relay no credits
        self._barrier: FlushBarrier | None = None
        self._eof_reason = Reason.NORMAL
        self._deferred: Reason | None = None

    @property
    def activity(self) -> int:
        """A number that changes with every message of the stream."""
        return self.frames_in + self.window.sent

    @property
    def sendable(self) -> bool:
        """Whether `send` would take at least one frame now."""
        return (
            self.state is _OPEN
            and self.settled
            and (self.window.available > 0 or self.window.unlimited)
            and not self.relay_pause_until
        )

    @property
    def pingable(self) -> bool:
        """Whether a health ping makes sense: not while dialling, nor at the end."""
        return self.state is _OPEN and self.settled

    @property
    def starved(self) -> bool:
        """Whether the relay has used up all its credits and has data waiting, for all we know."""
        granter = self.granter
        return bool(not self.is_udp and self._live and granter.given and self._out <= granter.doubt)

    def dialled(self) -> None:
        """The target is connected."""
        self.state = advance(STREAM, self.state, StreamInput.DIALLED)

    def send(self, data: memoryview | bytes) -> int:
        """Commit ``data`` to the output as far as the credits go; return the bytes taken.

        Look at `sendable` first and read at most what the credits allow, and nothing is left over.
        """
        if self.state is not _OPEN:
            raise LocalProtocolError(f"no data can be sent on a stream that is {self.state.value}")
        taken, size = 0, len(data)
        wire, window = self._session.wire, self.window
        if wire.close_sent:
            return size  # dropped like any message then: the stream ends with the session
        if 0 < size <= MAX_PAYLOAD_BYTES and window.ready:
            window.take()
            wire.send_data(self.id, data)
            self.bytes_out += size
            return size
        while taken < size and window.ready:
            window.take()
            wire.send_data(self.id, data[taken : taken + MAX_PAYLOAD_BYTES])
            taken = min(taken + MAX_PAYLOAD_BYTES, size)
        self.bytes_out += taken
        return taken

    def send_datagram(self, datagram: memoryview | bytes) -> None:
        """Commit one datagram, perhaps an empty one, as one message (PROTOCOL.md section 5.7).

        Look at `sendable` first. Raises LocalProtocolError when it is not, or when the datagram is
        larger than a message may be.
        """
        if self.state is not _OPEN:
            raise LocalProtocolError(f"nothing can be sent on a stream that is {self.state.value}")
        if len(datagram) > MAX_PAYLOAD_BYTES:
            raise LocalProtocolError(f"a datagram of {len(datagram)} bytes is too large")
        if not self._session.wire.close_sent:  # else dropped: the stream ends with the session
            self.window.take()
            self._session.wire.send_data(self.id, datagram)
            self.bytes_out += len(datagram)

    def consumed(self, frames: int = 1) -> None:
        """The local service has taken ``frames`` messages: give the relay credits when due."""
        if self.granter.consume(frames) and self.settled:
            self._grant_due()

    def pause(self) -> None:
        """Too much is buffered: ask the relay to stop reading, and withhold grants.

        A grant silently cancels a pause (PROTOCOL.md section 4.3), so both go together.
        """
        self.granter.held = True
        if self.settled and not self.paused and self._live:
            self.paused = True
            self._session.send_control(
                Control(Event.PAUSE_STREAM, self.id, reason=Reason.BUFFER_FULL.value)
            )

    def resume(self) -> None:
        """There is room again: give what was withheld."""
        self.granter.held = False
        if not self.settled or not self._live:
            return
        was_paused, self.paused = self.paused, False
        if not self._grant_due() and was_paused:
            self._session.send_control(Control(Event.RESUME_STREAM, self.id))

    def trickle(self) -> None:
        """Give one credit ahead, so that the relay does not give up a stalled stream."""
        if self.settled and self._live and self.granter.advance():
            self._session.send_binary(encode_grant(self.id, 1))

    def end_of_file(self, now: float, reason: Reason = Reason.NORMAL) -> None:
        """The local service has finished: call `flush` until it returns None."""
        self.state = advance(STREAM, self.state, StreamInput.LOCAL_EOF)
        self._eof_reason = reason
        if not self.is_udp and FlushBarrier.needed(self.window, self.bytes_out):
            self._barrier = FlushBarrier(self.window, now)

    def flush(self, now: float) -> float | None:
        """Go on with the flush barrier (PROTOCOL.md section 6.4).

        Returns when to call again at the latest, sooner after ``on_credit``; None when the
        disconnect is committed and the stream is closed.
        """
        while self._barrier is not None and not self._session.wire.close_sent:
            step = self._barrier.step(now)
            if step is BarrierStep.DONE:
                break
            if step is BarrierStep.WAIT:
                return self._barrier.deadline
            self.window.take()
            self._session.wire.send_data(self.id, b"")
        self.state = advance(STREAM, self.state, StreamInput.FLUSHED)
        self._finish(self._eof_reason)
        return None

    def abort(self, reason: Reason) -> None:
        """End the stream now with ``reason``; without effect on a closed one."""
        if self.state is not _CLOSED:
            user_gone = self.state is StreamState.DELIVERING
            self.state = advance(STREAM, self.state, StreamInput.ABORT)
            self._finish(None if user_gone else reason)

    def delivered(self) -> None:
        """The user had gone, and the local service has taken all there was."""
        self.state = advance(STREAM, self.state, StreamInput.DELIVERED)
        self._finish(None)

    # Called by the session -------------------------------------------------------------------

    def settle(self) -> None:
        """The relay knows the stream by now: send what was held back."""
        self.settled = True
        if self._deferred is not None:
            self._send_disconnect(self._deferred)
        elif self._live:
            if self.granter.held:
                self.pause()
            else:
                self._grant_due()
            self.listener.on_credit()

    def granted(self, credits: int) -> None:
        """The relay's resume_stream."""
        self.relay_pause_until = 0.0
        self.window.grant(credits)
        self.listener.on_credit()

    def ended(self, cause: Cause) -> None:
        """The relay, or the end of the session, has ended the stream."""
        if cause is Cause.USER:
            self.state = advance(STREAM, self.state, StreamInput.RECV_DISCONNECT)
            self._barrier = None
        else:
            self.state = advance(STREAM, self.state, StreamInput.LOST)
        self.listener.on_end(cause)

    @property
    def _live(self) -> bool:
        """Whether the relay still knows the stream."""
        return self.state not in (_CLOSED, StreamState.DELIVERING)

    @property
    def _out(self) -> int:
        """The credits that the relay has or has used for what is under way, by our books."""
        return self.granter.given - (self.frames_in - self._uncounted)

    def _grant_due(self) -> int:
        granter = self.granter
        if granter.held or not self._live:
            return 0
        credits = granter.first(self.frames_in)
        if credits:
            self._uncounted = self.frames_in
        elif self.is_udp:  # one flow that waits stops the relay's whole port (section 5.7)
            credits = granter.due()
        else:
            credits = granter.due(self._room())
        if credits:
            self.paused = False
            self._session.send_binary(encode_grant(self.id, credits))
        return credits

    def _room(self) -> int:
        """How many credits may be given now for the sake of the relay's lane."""
        out = self._out
        if out < 0:  # it was still without limits, longer than we thought
            self.granter.overrun(-out)
            self._uncounted -= out
            out = 0
        share = self._session.governor.share(self.id, self._session.now)
        room = min(share, self.granter.limit) - out
        # Nearly without credits a stream gets a batch whatever its share: it would be stuck.
        return max(room, BATCH) if out <= BATCH else room

    def _finish(self, reason: Reason | None) -> None:
        if reason is not None:
            if self.settled:
                self._send_disconnect(reason)
            else:
                self._deferred = reason
        self._session.forget(self)

    def _send_disconnect(self, reason: Reason) -> None:
        self._session.send_control(Control(Event.DISCONNECT, self.id, reason=reason.value))


def _granter(is_udp: bool, window: int, recorded: bool) -> Granter:
    if is_udp:  # never near the end of its credits, nor with few of them if the first are lost
        return Granter(UDP_WINDOW, UDP_BATCH, second=UDP_WINDOW // 2)
    # Almost all, but what may be missing later must be less than what is given in any case.
    return Granter(window, second=0 if recorded else window - min(window // 16, BATCH))
