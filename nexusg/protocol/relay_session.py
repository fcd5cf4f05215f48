"""The relay's side of one session: bytes in, bytes and events out. For development and tests.

The same core as the agent's in the other role, and the same seam (`session.py`). It behaves as the
real relay was measured to, its defects included; what it does not do is in the shell's switches.

While a token is judged nothing is read, as in the real relay: that is why the pong for the ping
behind the attest token proves acceptance (PROTOCOL.md section 2.3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nexusg.errors import LocalProtocolError, RemoteProtocolError
from nexusg.protocol.events import Closed, Ignored
from nexusg.protocol.lanes import Lane, Lanes
from nexusg.protocol.messages import (
    CONTROL,
    DATA,
    DATA_HEADER_BYTES,
    HANDSHAKE_CHALLENGE,
    MAX_PAYLOAD_BYTES,
    REAUTH_CHALLENGE,
    Challenge,
    Control,
    Malformed,
    Reason,
    decode_control,
    encode_challenge,
    encode_control,
)
from nexusg.protocol.messages import Event as ControlEvent
from nexusg.protocol.relay_events import (
    AgentSilent,
    OutboundRequested,
    RelayEvent,
    TokenOverdue,
    TokenReceived,
)
from nexusg.protocol.relay_stream import RelayStream
from nexusg.protocol.states import SESSION, SessionInput, SessionState, advance
from nexusg.protocol.wire import Wire
from nexusg.protocol.wsframes import (
    BINARY,
    CLOSE,
    INVALID_DATA,
    MAX_REASON_BYTES,
    NORMAL,
    PING,
    POLICY_VIOLATION,
    TEXT,
    TOO_BIG,
)


if TYPE_CHECKING:
    from nexusg.protocol.relay_stream import RelayListener


#: The limit on the agent's messages after the handshake (PROTOCOL.md section 1.2).
MAX_AGENT_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + DATA_HEADER_BYTES
#: How long the relay waits for each token of the handshake (PROTOCOL.md section 2.2).
TOKEN_TIMEOUT_S = 10.0
#: The grace of a re-attestation whose token names none (PROTOCOL.md section 3.1).
REAUTH_GRACE_S = 10.0
#: A ping this often, and the end after this long without a message or pong (section 1.3).
PING_EVERY_S = 54.0
READ_TIMEOUT_S = 60.0


class RelaySession:
    """The protocol of one session in the relay's role."""

    def __init__(self, *, now: float, lanes: int | None = None) -> None:
        """``now`` is monotonic seconds; ``lanes`` bounds the queues of `Lanes`, None has none."""
        self.wire = Wire(is_client=False, entropy=bytes)  # a server masks nothing
        self.streams: dict[bytes, RelayStream] = {}
        self.state = SessionState.NEW
        self.held = False  #: a token is being judged: neither ``buffer`` nor ``receive`` until then
        self.accepted = False  #: stays true when the session ends
        self.answers_pings = True  #: false for tests: the agent's WebSocket pings stay unanswered
        self.answers_health = True  #: the same for ping_client
        self.messages_in = 0
        self._lanes = None if lanes is None else Lanes(self.wire, lanes)
        self._owed: dict[RelayStream, None] = {}  # grants that found their lane full
        self._awaited: tuple[str, float] | None = ("handshake", TOKEN_TIMEOUT_S)
        self._awaited_until = now + TOKEN_TIMEOUT_S
        self._ping_at = self._silent_at = math.inf
        self._events: list[RelayEvent] = []
        self._now = now

    @property
    def established(self) -> bool:
        """Whether the agent is accepted and neither side has closed."""
        return self.state is SessionState.OPEN

    # Handshake -------------------------------------------------------------------------------

    def challenge(self, nonce: str, now: float) -> list[RelayEvent]:
        """The handshake token is good: ask for the attest token; what had arrived is read now."""
        self._step(SessionInput.CHALLENGE)
        self.wire.send_text(encode_challenge(Challenge(HANDSHAKE_CHALLENGE, nonce)))
        self._await("attest", TOKEN_TIMEOUT_S, now)
        return self._release(now)

    def accept(self, now: float) -> list[RelayEvent]:
        """The attest token is good. Register the backend first; what had arrived is read now."""
        self._step(SessionInput.ACCEPTANCE)
        self.accepted = True
        self._ping_at = now + PING_EVERY_S
        self._silent_at = now + READ_TIMEOUT_S
        return self._release(now)

    def reject(self, reason: str) -> bool:
        """Refuse the agent; then write the output and close the connection.

        A reason too long for a close frame means no close frame, as with the real relay
        (PROTOCOL.md section 1.4). Return whether there is one.
        """
        fits = len(reason.encode()) <= MAX_REASON_BYTES
        if fits:
            self.close(POLICY_VIOLATION, reason)
        self.held = False
        return fits

    def reauth_challenge(self, nonce: str, now: float, grace_s: float = REAUTH_GRACE_S) -> bool:
        """Ask for a new token within ``grace_s``; False if that was lost in a full lane."""
        self._step(SessionInput.REAUTH_CHALLENGE)
        self._await("reauth", grace_s, now)
        return self.send(Lane.CONTROL, encode_challenge(Challenge(REAUTH_CHALLENGE, nonce)))

    # Streams ---------------------------------------------------------------------------------

    def open(
        self, connect: Control, listener: RelayListener, *, recorded: bool = True
    ) -> RelayStream | None:
        """Announce a stream with the ``connect`` message; None if that was lost in a full lane.

        The answer to `OutboundRequested`, when it is a success, announces a stream just so.
        With ``recorded`` false the agent's messages about it are ignored until `record` is called
        (PROTOCOL.md section 5.4). Raises LocalProtocolError unless the session is open.
        """
        if self.state is not SessionState.OPEN:
            raise LocalProtocolError(f"no stream can be opened while it is {self.state.value}")
        stream = RelayStream(self, connect, listener)
        if not self.send(Lane.DATA, encode_control(connect)):
            return None
        if recorded:
            self.record(stream)
        return stream

    def record(self, stream: RelayStream) -> None:
        """Know ``stream`` from now on, unless it, or the session, has ended meanwhile."""
        if not stream.open:
            return
        if self.state is SessionState.CLOSED:
            stream.ended(Reason.SESSION_ENDED.value)
        else:
            self.streams[stream.id] = stream

    def forget(self, stream: RelayStream) -> None:
        """``stream`` has ended: what the agent still says about it is ignored."""
        self._owed.pop(stream, None)
        if self.streams.get(stream.id) is stream:
            del self.streams[stream.id]

    # Bytes in and out ------------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """Space for the next bytes from the agent; not while ``held``."""
        return self.wire.parser.buffer()

    def take_output(self) -> bytes:
        """The next bytes to write to the agent, empty when there are none."""
        if self._lanes is not None:
            self._lanes.refill()
            owed, self._owed = self._owed, {}
            for stream in owed:
                stream.grant_due()
        return self.wire.take_output()

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        return bool(self.wire.pending_bytes or self._lanes)

    def receive(self, count: int, now: float) -> list[RelayEvent]:
        """Take ``count`` bytes from ``buffer()``; stream data goes to the listeners at once.

        Raises RemoteProtocolError when the agent broke the protocol: call `fail` with it then.
        """
        self._now = now
        if self.wire.close_sent:
            return self._receive_last(count)
        streams, before = self.streams, self.messages_in
        for opcode, payload in self.wire.parser.receive(count):
            size = len(payload)
            if (
                opcode == BINARY
                and DATA_HEADER_BYTES <= size <= MAX_AGENT_MESSAGE_BYTES
                and payload[0] == DATA
            ):
                self.messages_in += 1
                stream = streams.get(bytes(payload[1:DATA_HEADER_BYTES]))
                if stream is not None:
                    stream.bytes_in += size - DATA_HEADER_BYTES
                    stream.listener.on_data(memoryview(payload)[DATA_HEADER_BYTES:])
                elif not self.accepted:
                    raise RemoteProtocolError("expected text frame", POLICY_VIOLATION)
            else:
                self._receive_other(opcode, payload)
                if self.held or self.wire.close_received:
                    break
        if self.messages_in != before and self.accepted:
            self._silent_at = now + READ_TIMEOUT_S  # a ping received does not count
        return self._take_events()

    def send(self, lane: Lane, message: bytes | str) -> bool:
        """Commit one encoded message, or queue it; False if it was lost."""
        if self.wire.close_sent:
            return False
        if self._lanes is not None:
            return self._lanes.put(lane, message)
        if isinstance(message, str):
            self.wire.send_text(message)
        else:
            self.wire.send_binary(message)
        return True

    def send_data(self, client_id: bytes, payload: bytes | memoryview) -> bool:
        """Commit one data message, or queue it; False if it was lost."""
        if self._lanes is None and len(payload) <= MAX_PAYLOAD_BYTES and not self.wire.close_sent:
            self.wire.send_data(client_id, payload)
            return True
        return self.send(Lane.DATA, b"\x01" + client_id + payload)  # a prelude may be longer

    def room(self, lane: Lane) -> bool:
        """Whether `send` would keep a message for ``lane``."""
        return self._lanes is None or self._lanes.room(lane)

    def owe(self, stream: RelayStream) -> None:
        """Ask ``stream`` for its grants again when there is room."""
        self._owed[stream] = None

    # Ending ----------------------------------------------------------------------------------

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Commit the close frame; what waits in the lanes is lost."""
        if self.wire.close_sent:
            return
        self._step(SessionInput.SEND_CLOSE)
        if self._lanes is not None:
            self._lanes.clear()
        self.wire.send_close(code, reason)

    def fail(self, error: RemoteProtocolError) -> None:
        """Commit the close frame for what `receive` raised (PROTOCOL.md section 1.4)."""
        self.close(error.close_code, "" if error.close_code == TOO_BIG else str(error))

    def lost(self) -> None:
        """The connection is gone: every stream ends with it."""
        self._step(SessionInput.LOST)
        self._owed.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.ended(Reason.SESSION_ENDED.value)

    # Time ------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` is to be called at the latest (monotonic seconds); perhaps infinity."""
        awaited_until = math.inf if self._awaited is None else self._awaited_until
        return min(awaited_until, self._ping_at, self._silent_at)

    def tick(self, now: float) -> list[RelayEvent]:
        """Do what is due at ``now``."""
        self._now = now
        if self.state in (SessionState.CLOSING, SessionState.CLOSED):
            self._awaited, self._ping_at, self._silent_at = None, math.inf, math.inf
            return []
        if self._awaited is not None and self._awaited_until <= now:
            self._events.append(TokenOverdue(*self._awaited))
            self._awaited = None
        if self._silent_at <= now:
            self._silent_at = math.inf
            self._events.append(AgentSilent(READ_TIMEOUT_S))
        elif self._ping_at <= now:
            self._ping_at = now + PING_EVERY_S
            self.wire.send_ping()
        return self._take_events()

    # Messages --------------------------------------------------------------------------------

    def _step(self, step: SessionInput) -> None:
        self.state = advance(SESSION, self.state, step)

    def _await(self, stage: str, seconds: float, now: float) -> None:
        self._awaited = stage, seconds
        self._awaited_until = now + seconds

    def _release(self, now: float) -> list[RelayEvent]:
        self.held = False
        return self.receive(0, now)

    def _receive_last(self, count: int) -> list[RelayEvent]:
        """After our close frame only the agent's matters (RFC 6455 section 5.5.1)."""
        for opcode, payload in self.wire.parser.receive(count):
            if opcode == CLOSE and not self.wire.close_received:
                self._receive_other(opcode, payload)
        return self._take_events()

    def _receive_other(self, opcode: int, payload: memoryview | bytes) -> None:
        if opcode in (BINARY, TEXT):
            self.messages_in += 1
            if self.accepted and len(payload) > MAX_AGENT_MESSAGE_BYTES:
                raise RemoteProtocolError("message larger than the relay takes", TOO_BIG)
            if opcode == TEXT:
                self._receive_token(payload)
            elif self.accepted:
                self._receive_binary(payload)
            else:
                raise RemoteProtocolError("expected text frame", POLICY_VIOLATION)
        elif opcode != PING or self.answers_pings:
            closed = self.wire.receive_control(opcode, payload)
            if closed is not None:
                self._step(SessionInput.RECV_CLOSE)
                self._events.append(Closed(*closed))
            elif opcode != PING and self.accepted:
                self._silent_at = self._now + READ_TIMEOUT_S

    def _receive_token(self, payload: memoryview | bytes) -> None:
        try:
            token = str(payload, "utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError("text is not UTF-8 (RFC 6455 8.1)", INVALID_DATA) from None
        if self._awaited is None:
            self._events.append(Ignored("text while no token is awaited"))
            return
        stage, _ = self._awaited
        self._awaited = None
        self._step(_STEPS[stage])
        self.held = not self.accepted
        self._events.append(TokenReceived(stage, token))

    def _receive_binary(self, payload: memoryview | bytes) -> None:
        try:
            if not len(payload) or payload[0] != CONTROL:
                raise Malformed("binary message of an unknown kind, or too short")
            self._receive_control(decode_control(payload[1:]))
        except Malformed as error:
            self._events.append(Ignored(str(error)))

    def _receive_control(self, message: Control) -> None:
        stream = self.streams.get(message.client_id)
        if message.event not in _AGENT_EVENTS:
            raise Malformed("event that an agent does not send, or that is unknown")
        if message.event == ControlEvent.OUTBOUND_CONNECT:
            self._events.append(OutboundRequested(message.client_id, message.target_addr))
        elif stream is None:
            return  # the relay says nothing about what it does not know (section 4.3)
        elif message.event == ControlEvent.RESUME_STREAM:
            stream.granted(message.credits)
        elif message.event == ControlEvent.PAUSE_STREAM:
            stream.pause()
        elif message.event == ControlEvent.DISCONNECT:
            self.forget(stream)
            stream.ended(message.reason)
        elif self.answers_health:
            pong = Control(ControlEvent.PONG_CLIENT, message.client_id)
            self.send(Lane.CONTROL, encode_control(pong))

    def _take_events(self) -> list[RelayEvent]:
        events, self._events = self._events, []
        return events


_STEPS = {
    "handshake": SessionInput.HANDSHAKE_TOKEN,
    "attest": SessionInput.ATTEST_TOKEN,
    "reauth": SessionInput.REAUTH_TOKEN,
}
_AGENT_EVENTS = frozenset(
    (
        ControlEvent.RESUME_STREAM.value,
        ControlEvent.PAUSE_STREAM.value,
        ControlEvent.DISCONNECT.value,
        ControlEvent.PING_CLIENT.value,
        ControlEvent.OUTBOUND_CONNECT.value,
    )
)
