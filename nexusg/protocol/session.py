"""The agent's side of one session: bytes in, bytes and events out.

The shell calls, in any order it likes, because no call switches greenlets:

* ``buffer()``, fill it, ``receive(count, now)``, and act on the events;
* ``take_output()`` after anything else, and write what it returns;
* ``tick(now)`` at ``next_deadline()`` at the latest;
* ``lost()`` when the connection is gone.

Time comes in as an argument, randomness as ``entropy``; nothing here reads a clock or logs.
"""

from __future__ import annotations

import collections
import math
import struct
from typing import TYPE_CHECKING

from nexusg.errors import RemoteProtocolError
from nexusg.protocol.credit import WINDOW
from nexusg.protocol.events import Closed, HandshakeStalled, Ignored, RelaySilent
from nexusg.protocol.governor import Governor
from nexusg.protocol.handshake import Handshake
from nexusg.protocol.liveness import Health, HealthPolicy, Liveness, Sign
from nexusg.protocol.messages import (
    CONTROL,
    DATA,
    DATA_HEADER_BYTES,
    Control,
    Malformed,
    Reason,
    decode_control,
    encode_control,
)
from nexusg.protocol.messages import Event as ControlEvent
from nexusg.protocol.outbound import Requests
from nexusg.protocol.states import SessionInput, SessionState
from nexusg.protocol.stream import RELAY_PAUSE_S, Cause, Stream
from nexusg.protocol.tombstones import Tombstones
from nexusg.protocol.wire import Wire
from nexusg.protocol.wsframes import BINARY, CLOSE, MAX_MESSAGE_BYTES, NORMAL, PONG, TEXT


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.protocol.events import Event
    from nexusg.protocol.outbound import OpenOutbound
    from nexusg.protocol.stream import StreamListener


_CLIENT_ID = struct.Struct("16s").unpack_from
#: How long a relay may take to record a stream that it has announced (PROTOCOL.md section 5.4).
SETTLE_S = 0.02
#: The relay gives up a stream after 30 s, or its idle timeout, without a credit (section 5.2).
TRICKLE_S = 10.0


class AgentSession:
    """The protocol of one session in the agent's role."""

    def __init__(
        self,
        *,
        now: float,
        entropy: Callable[[int], bytes],
        open_stream: Callable[[Stream], StreamListener],
        forward_window: int = WINDOW,
        health: HealthPolicy = HealthPolicy(),  # noqa: B008 - frozen
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """``now`` is monotonic seconds; ``entropy(n)`` gives n random bytes.

        ``open_stream`` is called for each new stream and returns its listener; it must not block.
        """
        self.wire = Wire(is_client=True, entropy=entropy, max_message_bytes=max_message_bytes)
        self.streams: dict[bytes, Stream] = {}
        self.messages_in = 0
        self.sooner = False  #: whether the next deadline may have come nearer
        self._handshake = Handshake(self.wire)
        self._liveness = Liveness(now)
        self._health = Health(health, now)
        self._open_stream = open_stream
        self.governor = Governor()
        self._forward_window = forward_window
        self._settling: collections.OrderedDict[bytes, Stream] = collections.OrderedDict()
        self._tombstones = Tombstones()
        self._requests = Requests(self)
        self._trickle_at = now + TRICKLE_S
        self._events: list[Event] = []
        self.now = now  #: as of the last call that said so

    # Handshake -------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """Where the session is in its life."""
        return self._handshake.state

    @property
    def stage(self) -> str:
        """The token that the relay judges, or judged last: "", "handshake" or "attest"."""
        return self._handshake.stage

    @property
    def accepted(self) -> bool:
        """Whether the relay has ever accepted this session."""
        return self._handshake.accepted

    @property
    def established(self) -> bool:
        """Whether the relay has accepted this session and neither side has closed it."""
        return self._handshake.established

    def send_handshake_token(self, token: str, now: float) -> None:
        """Stage 0: the first message of all."""
        self._handshake.send_handshake_token(token, now)

    def send_attest_token(self, token: str, now: float) -> None:
        """Stage 1: the answer to `ChallengeReceived`."""
        self._handshake.send_attest_token(token, now)

    def send_reauth_token(self, nonce: str, token: str) -> bool:
        """The answer to `ReauthRequested`; False if a newer challenge has made it useless."""
        return self._handshake.send_reauth_token(nonce, token)

    # Bytes in and out ------------------------------------------------------------------------

    def buffer(self) -> memoryview:
        """Space for the next bytes from the relay."""
        return self.wire.parser.buffer()

    def take_output(self) -> bytes:
        """The next bytes to write to the relay, empty when there are none."""
        return self.wire.take_output()

    def receive(self, count: int, now: float) -> list[Event]:
        """Take ``count`` bytes from ``buffer()``; stream data goes to the listeners at once.

        Raises RemoteProtocolError when the relay broke the protocol: `close` with its code then.
        """
        self.now = now
        self._liveness.heard(now)
        if self.wire.close_sent:
            return self._receive_last(count)
        streams = self.streams
        for opcode, payload in self.wire.parser.receive(count):
            size = len(payload) - DATA_HEADER_BYTES
            if opcode == BINARY and size >= 0 and payload[0] == DATA:
                self.messages_in += 1
                (client_id,) = _CLIENT_ID(payload, 1)
                stream = streams.get(client_id)
                if stream is not None:  # counted before the first grant, which it comes before
                    stream.frames_in += 1
                    stream.bytes_in += size
                if stream is None or not stream.settled:
                    self._unusual_data(client_id)
                    stream = streams.get(client_id)
                if stream is not None:
                    stream.listener.on_data(payload[DATA_HEADER_BYTES:])
            else:
                self._receive_other(opcode, payload)
                if self.wire.close_received:
                    break
        return self._take_events()

    def send_control(self, message: Control) -> None:
        """Commit one control message."""
        self.send_binary(encode_control(message))

    def send_binary(self, message: bytes) -> None:
        """Commit one encoded message, unless the session is being closed."""
        if not self.wire.close_sent:
            self.wire.send_binary(message)

    def connect_outbound(
        self, client_id: bytes, target_addr: str, open_stream: OpenOutbound, now: float
    ) -> None:
        """Ask for a connection to ``host:port``, as `Requests.send` does."""
        self._requests.send(client_id, target_addr, open_stream, self._forward_window, now)

    # Ending ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse new streams from now on; existing ones are untouched (PROTOCOL.md section 15)."""
        if self.established:
            self._handshake.step(SessionInput.DRAIN)

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Commit the close frame, behind the disconnects still held back; once."""
        if self.wire.close_sent or self.state is SessionState.CLOSED:
            return
        for stream in list(self._settling.values()):
            self._settle(stream)
        self._handshake.step(SessionInput.SEND_CLOSE)
        self.wire.send_close(code, reason)

    def lost(self) -> None:
        """The connection is gone: every stream ends with it."""
        self._handshake.step(SessionInput.LOST)
        self._settling.clear()
        streams, self.streams = [*self.streams.values(), *self._requests.take()], {}
        for stream in streams:
            stream.ended(Cause.SESSION)

    def forget(self, stream: Stream) -> None:
        """``stream`` has closed: late data for it is normal from now on."""
        if self.streams.get(stream.id) is stream:
            del self.streams[stream.id]
            self.governor.forget(stream.id)
        self._requests.forget(stream)
        self._health.forget(stream)
        self._tombstones.add(stream.id, self.now)

    # Time ------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` is to be called at the latest (monotonic seconds); perhaps infinity."""
        self.sooner = False
        if self.state in _ENDING:
            return math.inf
        due = [self._liveness.deadline]
        if self._handshake.deadline is not None:
            due.append(self._handshake.deadline)
        if self._settling:
            due.append(next(iter(self._settling.values())).opened_at + SETTLE_S)
        if self.streams:
            due.append(self._health.deadline)
        return min(due)

    def tick(self, now: float) -> list[Event]:
        """Do what is due at ``now``."""
        self.now = now
        if self.state in _ENDING:
            return []
        while self._settling:
            stream = next(iter(self._settling.values()))
            if stream.opened_at + SETTLE_S > now:
                break
            self._settle(stream)
        self._check_relay(now)
        if self.streams:
            self._check_streams(now)
        return self._take_events()

    def probe(self, now: float) -> None:
        """The network has changed: find out quickly whether the relay is still there."""
        if self.established:
            self._liveness.probe(now)
            self.wire.send_ping()

    def _check_relay(self, now: float) -> None:
        handshake = self._handshake
        if handshake.deadline is not None and handshake.deadline <= now:
            self._events.append(HandshakeStalled(*handshake.overdue))
            handshake.deadline = None
        if not handshake.established:
            self._liveness.heard(now)  # silence is judged by the handshake's own deadlines
            return
        sign = self._liveness.check(now)
        if sign is Sign.PING:
            self.wire.send_ping()
        elif sign is Sign.DEAD:
            self._events.append(RelaySilent(now - self._liveness.heard_at))

    def _check_streams(self, now: float) -> None:
        silent = self._health.sweep(self.streams.values(), now)
        if silent is not None:
            for stream in silent:
                self.send_control(Control(ControlEvent.PING_CLIENT, stream.id))
            self._trickle(now)
        again, lost = self._health.overdue(now, self._liveness.heard_at)
        for stream in again:
            self._health.ask(stream, now)
            self.send_control(Control(ControlEvent.PING_CLIENT, stream.id))
        for stream in lost:
            stream.listener.on_end(Cause.TIMEOUT)
            stream.abort(Reason.TIMEOUT)

    def _trickle(self, now: float) -> None:
        trickle = now >= self._trickle_at
        if trickle:
            self._trickle_at = now + TRICKLE_S
        for stream in list(self.streams.values()):  # a listener may end its stream
            if stream.relay_pause_until and stream.relay_pause_until <= now:
                stream.granted(0)
            if trickle and stream.starved:
                stream.trickle()

    # Messages --------------------------------------------------------------------------------

    def _receive_last(self, count: int) -> list[Event]:
        """After our close frame only the relay's matters (RFC 6455 section 5.5.1)."""
        for opcode, payload in self.wire.parser.receive(count):
            if opcode == CLOSE and not self.wire.close_received:
                self._receive_other(opcode, payload)
        return self._take_events()

    def _unusual_data(self, client_id: bytes) -> None:
        """Data for a stream that is not settled, has ended, or never was."""
        self._receive_proof_or_fail()
        if client_id in self._settling:
            self._settle(self._settling[client_id])
        elif not self._tombstones.holds(client_id, self.now):
            self._events.append(Ignored("data for an unknown stream"))
            self.disown(client_id)

    def disown(self, client_id: bytes) -> None:
        """Say that ``client_id`` is no stream of ours, and no more about it for a while."""
        self._tombstones.add(client_id, self.now)
        if self.wire.may_answer:
            reason = Reason.UNKNOWN.value
            self.send_control(Control(ControlEvent.DISCONNECT, client_id, reason=reason))

    def _receive_other(self, opcode: int, payload: memoryview | bytes) -> None:
        if opcode == BINARY:
            self.messages_in += 1
            self._receive_proof_or_fail()
            self._receive_binary(payload)
        elif opcode == TEXT:
            self.messages_in += 1
            self._events.append(self._handshake.receive_text(payload))
        else:
            closed = self.wire.receive_control(opcode, payload)
            if closed is not None:
                self._handshake.step(SessionInput.RECV_CLOSE)
                self._events.append(Closed(*closed))
            elif opcode == PONG:
                self._accept(self._handshake.receive_proof())

    def _receive_proof_or_fail(self) -> None:
        self._accept(self._handshake.receive_proof())
        if not self._handshake.established:
            raise RemoteProtocolError(f"binary message while the session is {self.state.value}")

    def _accept(self, accepted: Event | None) -> None:
        if accepted is not None:
            self._events.append(accepted)

    def _receive_binary(self, payload: memoryview | bytes) -> None:
        try:
            if not len(payload) or payload[0] != CONTROL:
                raise Malformed("binary message of an unknown kind")
            self._receive_control(decode_control(payload[1:]))
        except Malformed as error:
            self._events.append(Ignored(str(error)))

    def _receive_control(self, message: Control) -> None:
        if message.event == ControlEvent.CONNECT:
            self._connect(message)
            return
        if message.event not in _STREAM_EVENTS:
            raise Malformed("unknown event")
        stream = self.streams.get(message.client_id)
        if message.event == ControlEvent.DISCONNECT:
            self._disconnect(message.client_id, stream)
        elif message.event == ControlEvent.OUTBOUND_RESULT:
            self._requests.receive(message)
        elif stream is None:
            return  # credits and pongs may follow the end of their stream (section 4.4)
        elif message.event == ControlEvent.RESUME_STREAM:
            stream.granted(message.credits)
        elif message.event == ControlEvent.PAUSE_STREAM:
            stream.relay_pause_until = self.now + RELAY_PAUSE_S
        elif message.event == ControlEvent.PONG_CLIENT:
            self._health.pong(stream, self.now)

    def _connect(self, message: Control) -> None:
        old = self.streams.pop(message.client_id, None)
        if old is not None:
            self._health.forget(old)
            old.ended(Cause.REPLACED)
        self._settling.pop(message.client_id, None)  # so that the order stays that of time
        stream = Stream(self, message, self._forward_window, self.now)
        self._settling[stream.id] = stream
        self.sooner = True
        if self.state is SessionState.DRAINING:
            stream.abort(Reason.SHUTDOWN)  # which is held back until it is settled
            return
        self.streams[stream.id] = stream
        stream.listener = self._open_stream(stream)

    def _disconnect(self, client_id: bytes, stream: Stream | None) -> None:
        self._settling.pop(client_id, None)
        if stream is not None:
            self.forget(stream)
            stream.ended(Cause.USER)

    def _settle(self, stream: Stream) -> None:
        self._settling.pop(stream.id, None)
        stream.settle()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


_ENDING = (SessionState.CLOSING, SessionState.CLOSED)
_STREAM_EVENTS = frozenset(event.value for event in ControlEvent) - {ControlEvent.CONNECT.value}
