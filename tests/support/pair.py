"""An agent session and a relay session joined in memory, with a clock that a test moves.

    pair = Pair.established()
    user, local = pair.open(b"hello")       # a stream, and its first data message
    local.stream.send(memoryview(b"hi"))
    pair.pump()
    assert user.data == b"hi"

Every byte goes through both cores; `split` cuts it into pieces of that many bytes.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from nexusg.protocol.liveness import HealthPolicy
from nexusg.protocol.messages import Control, Event
from nexusg.protocol.relay_events import RelayEvent, TokenReceived
from nexusg.protocol.relay_session import RelaySession
from nexusg.protocol.session import AgentSession
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.protocol import events
    from nexusg.protocol.relay_stream import RelayStream
    from nexusg.protocol.stream import Cause, Stream

NONCE = "n" * 43


def entropy() -> Callable[[int], bytes]:
    """A function that gives bytes that look random and are the same in each run."""
    return random.Random(1).randbytes


class Local:
    """The listener of a stream at the agent: keeps what it is told.

    With ``takes`` it dials and consumes at once, as a quick local service does.
    """

    def __init__(self, stream: Stream, takes: bool = True) -> None:
        self.stream = stream
        self.takes = takes
        self.frames: list[bytes] = []
        self.credit_calls = 0
        self.cause: Cause | None = None
        if takes:
            stream.dialled()

    @property
    def data(self) -> bytes:
        """All forward data so far."""
        return b"".join(self.frames)

    def on_data(self, payload: memoryview | bytes) -> None:
        self.frames.append(bytes(payload))
        if self.takes:
            self.stream.consumed()

    def on_credit(self) -> None:
        self.credit_calls += 1

    def on_end(self, cause: Cause) -> None:
        self.cause = cause


class User:
    """The listener of a stream at the relay: keeps what it is told.

    With ``takes`` it consumes at once, as a quick user does.
    """

    def __init__(self, takes: bool = True) -> None:
        self.stream: RelayStream  # set by whoever opens it
        self.takes = takes
        self.frames: list[bytes] = []
        self.credit_calls = 0
        self.reason: str | None = None

    @property
    def data(self) -> bytes:
        """All reverse data so far."""
        return b"".join(self.frames)

    def on_data(self, payload: memoryview) -> None:
        self.frames.append(bytes(payload))
        if self.takes:
            self.stream.consumed()

    def on_credit(self) -> None:
        self.credit_calls += 1

    def on_end(self, reason: str) -> None:
        self.reason = reason


class Pair:
    """Both sessions, what they said, and what is under way between them."""

    def __init__(
        self,
        *,
        split: int | None = None,
        lanes: int | None = None,
        forward_window: int = 64,
        health: HealthPolicy = HealthPolicy(),  # noqa: B008 - frozen
        local_takes: bool = True,
    ) -> None:
        """``local_takes`` is for the `Local` of each stream; a test may replace ``make_local``."""
        self.clock = FakeClock()
        self.agent = AgentSession(
            now=self.clock(),
            entropy=entropy(),
            open_stream=self._open_local,
            forward_window=forward_window,
            health=health,
        )
        self.relay = RelaySession(now=self.clock(), lanes=lanes)
        self.split = split
        self.agent_events: list[events.Event] = []
        self.relay_events: list[RelayEvent] = []
        self.locals: dict[bytes, Local] = {}
        self.make_local: Callable[[Stream], Local] = lambda stream: Local(stream, local_takes)
        self.to_agent = bytearray()  #: bytes under way
        self.to_relay = bytearray()
        self.bytes_moved: Counter[str] = Counter()
        self._ids = itertools.count(1)

    @classmethod
    def established(cls, **options: Any) -> Pair:
        """A pair whose handshake is done, its events forgotten; ``options`` of the constructor."""
        pair = cls(**options)
        pair.agent.send_handshake_token("stage-0", pair.clock())
        pair.pump()
        pair.relay_events += pair.relay.challenge(NONCE, pair.clock())
        pair.pump()
        pair.agent.send_attest_token("stage-1", pair.clock())
        pair.pump()
        assert pair.relay_events[-1] == TokenReceived("attest", "stage-1")
        pair.relay_events += pair.relay.accept(pair.clock())
        pair.pump()
        assert pair.agent.established
        assert pair.relay.established
        pair.agent_events.clear()
        pair.relay_events.clear()
        return pair

    def open(
        self,
        first: bytes | None = b"",
        *,
        user: User | None = None,
        recorded: bool = True,
        **connect: Any,
    ) -> tuple[User, Local]:
        """Open a stream at the relay, send ``first`` unless it is None, and pump.

        ``connect`` overrides members of the connect message.
        """
        user = user or User()
        stream = self.relay.open(self.connect(**connect), user, recorded=recorded)
        assert stream is not None, "the data lane is full"
        user.stream = stream
        if first is not None:
            assert stream.send(first)
        self.pump()
        return user, self.locals[stream.id]

    def connect(self, **members: Any) -> Control:
        """A connect message with an ID of its own."""
        usual: dict[str, Any] = {
            "event": Event.CONNECT.value,
            "client_id": next(self._ids).to_bytes(16, "big"),
            "conn_port": 443,
            "client_ip": "192.0.2.7:50000",
            "transport": "tcp",
            "hostname": "app.example.com",
            "is_tls": True,
            "credits": 64,
        }
        return Control(**{**usual, **members})

    def pump(self) -> None:
        """Move bytes both ways until there are none, or the relay reads no more for now."""
        while self.collect():
            self.deliver_to_relay()
            self.deliver_to_agent()
            if self.relay.held and not self.to_agent:
                break

    def collect(self) -> int:
        """Take the output of both sessions; return how many bytes can be delivered."""
        while output := self.agent.take_output():
            self.to_relay += output
            self.bytes_moved["to_relay"] += len(output)
        while output := self.relay.take_output():
            self.to_agent += output
            self.bytes_moved["to_agent"] += len(output)
        return len(self.to_agent) + len(self.to_relay)

    def deliver_to_relay(self) -> None:
        """Feed the relay what is under way, up to where it stops reading."""
        while self.to_relay and not self.relay.held:
            count = _fill(self.relay.buffer(), self.to_relay, self.split)
            self.relay_events += self.relay.receive(count, self.clock())

    def deliver_to_agent(self) -> None:
        """Feed the agent what is under way."""
        while self.to_agent:
            count = _fill(self.agent.buffer(), self.to_agent, self.split)
            self.agent_events += self.agent.receive(count, self.clock())

    def advance(self, seconds: float) -> None:
        """Let time pass, let both sides do what is due, and pump.

        Deadlines on the way are met when they are due, as a real shell does.
        """
        end = self.clock() + seconds
        due = self._next_deadline()
        while due < end:
            self._tick(max(due, self.clock()))
            following = self._next_deadline()
            if following <= due:
                break  # nobody has acted on it; neither will the rest of this time
            due = following
        self._tick(end)

    def _next_deadline(self) -> float:
        return min(self.agent.next_deadline(), self.relay.next_deadline())

    def _tick(self, now: float) -> None:
        self.clock.now = now
        self.agent_events += self.agent.tick(now)
        self.relay_events += self.relay.tick(now)
        self.pump()

    def _open_local(self, stream: Stream) -> Local:
        local = self.make_local(stream)
        self.locals[stream.id] = local
        return local


def _fill(room: memoryview, source: bytearray, split: int | None) -> int:
    count = min(len(room), len(source), split or len(source))
    room[:count] = source[:count]
    del source[:count]
    return count
