"""An agent session with a scripted relay: ``script >> said by the relay << said by the agent``.

Time is the script's: `Script.wait` ticks at every deadline on the way, as a shell would, and fails
when a tick leaves a deadline that has passed, for a shell would spin on it. What the agent says
must be expected in order; `Script.nothing` fails when something was not.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from typing import TYPE_CHECKING, Any

from nexusg.protocol import wsframes
from nexusg.protocol.events import Accepted, ChallengeReceived
from nexusg.protocol.events import Event as SessionEvent
from nexusg.protocol.messages import (
    HANDSHAKE_CHALLENGE,
    REAUTH_CHALLENGE,
    Challenge,
    Control,
    Event,
    Reason,
    decode_control,
    encode_challenge,
    encode_control,
)
from nexusg.protocol.session import AgentSession
from nexusg.protocol.wsframes import FrameParser, encode_close, encode_frame


if TYPE_CHECKING:
    from nexusg.protocol.stream import Cause, Stream

A, B, C = (bytes([0xA0 + n]) * 16 for n in range(3))  # IDs of streams
NONCE = "n" * 43


@dataclasses.dataclass(frozen=True)
class Text:
    """A text message."""

    text: str


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary message as it is."""

    message: bytes


@dataclasses.dataclass(frozen=True)
class Data:
    """A data message."""

    client_id: bytes
    payload: bytes = b""


@dataclasses.dataclass(frozen=True)
class Ping:
    """A WebSocket ping."""

    payload: bytes = b""


@dataclasses.dataclass(frozen=True)
class Pong:
    """A WebSocket pong."""

    payload: bytes = b""


@dataclasses.dataclass(frozen=True)
class Close:
    """A close frame."""

    code: int = 1000
    reason: str = ""


Message = Text | Binary | Data | Control | Ping | Pong | Close


def connect(client_id: bytes = A, credits: int = 64, **fields: Any) -> Control:
    """The relay announces a stream."""
    defaults: dict[str, Any] = {"conn_port": 443, "transport": "tcp", "hostname": "app.test"}
    return Control(Event.CONNECT.value, client_id, credits=credits, **defaults | fields)


def grant(client_id: bytes = A, credits: int = 64) -> Control:
    """A resume_stream, with credits or without."""
    return Control(Event.RESUME_STREAM.value, client_id, credits=credits)


def disconnect(client_id: bytes = A, reason: Reason | None = None) -> Control:
    """The end of a stream; the relay gives no reason."""
    return Control(Event.DISCONNECT.value, client_id, reason=reason.value if reason else "")


def control(event: Event, client_id: bytes = A, **fields: Any) -> Control:
    """Any other control message."""
    return Control(event.value, client_id, **fields)


def challenge(nonce: str = NONCE, kind: str = HANDSHAKE_CHALLENGE) -> Text:
    """The relay asks for a token."""
    return Text(encode_challenge(Challenge(kind, nonce)))


def reauth(nonce: str) -> Text:
    """The relay asks for a token in an open session."""
    return challenge(nonce, REAUTH_CHALLENGE)


def encode(message: Message) -> tuple[int, bytes]:
    """Opcode and payload."""
    if isinstance(message, Text):
        return wsframes.TEXT, message.text.encode()
    if isinstance(message, Data):
        return wsframes.BINARY, b"\x01" + message.client_id + message.payload
    if isinstance(message, Control):
        return wsframes.BINARY, encode_control(message)
    if isinstance(message, Ping):
        return wsframes.PING, message.payload
    if isinstance(message, Pong):
        return wsframes.PONG, message.payload
    if isinstance(message, Close):
        return wsframes.CLOSE, encode_close(message.code, message.reason)
    return wsframes.BINARY, message.message


def decode(opcode: int, payload: bytes) -> Message:
    """What ``encode`` has encoded."""
    if opcode == wsframes.TEXT:
        return Text(payload.decode())
    if opcode == wsframes.PING:
        return Ping(payload)
    if opcode == wsframes.PONG:
        return Pong(payload)
    if opcode == wsframes.CLOSE:
        return Close(*wsframes.decode_close(payload))
    if payload[:1] == b"\x01":
        return Data(payload[1:17], payload[17:])
    return decode_control(payload[1:]) if payload[:1] == b"\x02" else Binary(payload)


class Listener:
    """What a stream told its shell."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data: list[bytes] = []
        self.wakes = 0
        self.causes: list[Cause] = []

    def on_data(self, payload: memoryview | bytes) -> None:
        self.data.append(bytes(payload))

    def on_credit(self) -> None:
        self.wakes += 1

    def on_end(self, cause: Cause) -> None:
        self.causes.append(cause)


class Script:
    """The session, its relay's lines, and the clock."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1000.1  # no round number: sums of floats are to be rounded
        self.listeners: dict[bytes, Listener] = {}
        numbers = itertools.count(1)
        self.session = AgentSession(
            now=self.now,
            entropy=lambda size: bytes(next(numbers) % 251 for _ in range(size)),
            open_stream=self.open_stream,
            **settings,
        )
        self._ears = FrameParser(masked=True)
        self._said: list[Message] = []
        self._events: list[SessionEvent] = []

    def open_stream(self, stream: Stream) -> Listener:
        """The session's factory of listeners."""
        self.listeners[stream.id] = Listener(stream)
        return self.listeners[stream.id]

    def stream(self, client_id: bytes = A) -> Stream:
        """The newest stream with this ID."""
        return self.listeners[client_id].stream

    def __rshift__(self, message: Message) -> Script:
        """The relay says ``message``."""
        return self.raw(encode_frame(*encode(message)))

    def raw(self, data: bytes) -> Script:
        """The relay sends ``data``."""
        view = memoryview(data)
        while view:
            room = self.session.buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            self._events += self.session.receive(count, self.now)
        return self

    def __lshift__(self, expected: Message | SessionEvent) -> Script:
        """The agent's next message, or the session's next event, is ``expected``."""
        self.hear()
        queue: list[Any] = self._events if isinstance(expected, SessionEvent) else self._said
        found = queue.pop(0) if queue else None
        if found != expected:
            rest = [str(one) for one in (found, *queue)]
            raise AssertionError("\n".join(difflib.ndiff([str(expected)], rest)))
        return self

    def hear(self) -> list[Message]:
        """Take the session's output; return what of it has not been expected yet."""
        while data := self.session.take_output():
            for opcode, payload in self._ears.feed(data):
                self._said.append(decode(opcode, bytes(payload)))
        assert not self._ears.in_message, "the output ends within a frame"
        return self._said

    def events(self) -> list[SessionEvent]:
        """Take the events that have not been expected."""
        events, self._events = self._events, []
        return events

    def nothing(self) -> Script:
        """The agent has said nothing more, and nothing more has happened."""
        assert (self.hear(), self._events) == ([], [])
        return self

    def skip(self) -> Script:
        """Do not care about what was said and happened so far."""
        self.hear().clear()
        self._events.clear()
        return self

    def wait(self, seconds: float) -> Script:
        """Let time pass, with a tick at each deadline on the way."""
        end = self.now + seconds
        while (deadline := self.session.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.tick()
        self.now = end
        return self

    def tick(self) -> Script:
        """Tick now."""
        self._events += self.session.tick(self.now)
        assert self.session.next_deadline() > self.now, "a shell would spin"
        return self

    def open(self) -> Script:
        """Play the handshake to its end."""
        self.session.send_handshake_token("token-0", self.now)
        _ = self << Text("token-0")
        _ = self >> challenge() << ChallengeReceived(NONCE)
        self.session.send_attest_token("token-1", self.now)
        _ = self << Text("token-1") << Ping(b"accepted?")
        return self >> Pong(b"accepted?") << Accepted()
