"""The relay session, driven by an agent session (Pair) and by hand-made frames (Peer)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexusg.errors import LocalProtocolError, RemoteProtocolError
from nexusg.protocol.events import Closed, Ignored, ReauthRequested
from nexusg.protocol.lanes import Lane
from nexusg.protocol.messages import Control, Event, Reason, encode_control, encode_grant
from nexusg.protocol.relay_events import (
    AgentSilent,
    OutboundRequested,
    RelayEvent,
    TokenOverdue,
    TokenReceived,
)
from nexusg.protocol.relay_session import MAX_AGENT_MESSAGE_BYTES, RelaySession
from nexusg.protocol.states import SessionState
from nexusg.protocol.stream import Cause
from nexusg.protocol.wsframes import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameParser,
    decode_close,
    encode_close,
    encode_frame,
)
from tests.support.pair import NONCE, Pair, User


KEY = b"\x01\x02\x03\x04"


class Peer:
    """A relay session and an agent that sends what a test tells it to."""

    def __init__(self, accepted: bool = True, **options: Any) -> None:
        self.now = 100.0
        self.relay = RelaySession(now=self.now, **options)
        self._parser = FrameParser(masked=False)
        if accepted:
            self.send(TEXT, b"stage-0")
            self.relay.challenge(NONCE, self.now)
            self.send(TEXT, b"stage-1")
            self.relay.accept(self.now)
            self.received()

    def frame(self, opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
        return encode_frame(opcode, payload, KEY, fin=fin)

    def send(self, opcode: int, payload: bytes = b"", fin: bool = True) -> list[RelayEvent]:
        return self.send_bytes(self.frame(opcode, payload, fin))

    def send_bytes(self, data: bytes) -> list[RelayEvent]:
        room = self.relay.buffer()
        room[: len(data)] = data
        return self.relay.receive(len(data), self.now)

    def control(self, event: str, client_id: bytes, **members: Any) -> list[RelayEvent]:
        return self.send(BINARY, encode_control(Control(event, client_id, **members)))

    def received(self) -> list[tuple[int, bytes]]:
        messages = []
        while data := self.relay.take_output():
            messages += [(op, bytes(payload)) for op, payload in self._parser.feed(data)]
        return messages


# Handshake -----------------------------------------------------------------------------------


def test_handshake_step_by_step() -> None:
    peer = Peer(accepted=False)
    assert peer.relay.state is SessionState.NEW
    assert peer.send(TEXT, b"stage-0") == [TokenReceived("handshake", "stage-0")]
    assert peer.relay.held
    assert peer.relay.challenge(NONCE, peer.now) == []
    assert not peer.relay.held
    [(opcode, payload)] = peer.received()
    assert opcode == TEXT
    assert json.loads(payload) == {"type": "handshake_challenge", "nonce": NONCE}
    assert peer.send(TEXT, b"stage-1") == [TokenReceived("attest", "stage-1")]
    assert not peer.relay.established
    assert peer.relay.accept(peer.now) == []
    assert peer.relay.established
    assert peer.relay.accepted
    assert peer.received() == [], "there is no success message"


def test_the_ping_behind_the_attest_token_is_answered_after_the_acceptance() -> None:
    peer = Peer(accepted=False)
    peer.send(TEXT, b"stage-0")
    peer.relay.challenge(NONCE, peer.now)
    peer.received()
    both = peer.frame(TEXT, b"stage-1") + peer.frame(PING, b"?")
    assert peer.send_bytes(both) == [TokenReceived("attest", "stage-1")]
    assert peer.received() == []
    peer.relay.accept(peer.now)
    assert peer.received() == [(PONG, b"?")]


def test_what_follows_a_token_is_read_after_the_verdict() -> None:
    peer = Peer(accepted=False)
    both = peer.frame(TEXT, b"stage-0") + peer.frame(TEXT, b"stage-1")
    assert peer.send_bytes(both) == [TokenReceived("handshake", "stage-0")]
    assert peer.relay.challenge(NONCE, peer.now) == [TokenReceived("attest", "stage-1")]


def test_pings_are_answered_while_a_token_is_awaited() -> None:
    peer = Peer(accepted=False)
    peer.send(PING, b"early")
    peer.send(PONG, b"unasked for")
    assert peer.received() == [(PONG, b"early")]


@pytest.mark.parametrize("split", [None, 1, 3])
@pytest.mark.parametrize("lanes", [None, 256])
def test_an_agent_session_is_accepted(split: int | None, lanes: int | None) -> None:
    pair = Pair.established(split=split, lanes=lanes)
    assert pair.agent.accepted
    assert pair.relay.state is pair.agent.state is SessionState.OPEN


def test_a_rejection_names_its_reason() -> None:
    peer = Peer(accepted=False)
    peer.send_bytes(peer.frame(TEXT, b"stage-0") + peer.frame(PING))
    assert peer.relay.reject("token is expired")
    [(opcode, payload)] = peer.received()
    assert (opcode, decode_close(payload)) == (CLOSE, (1008, "token is expired"))
    assert not peer.relay.held
    peer.relay.lost()
    assert peer.relay.state is SessionState.CLOSED


def test_a_long_reason_means_no_close_frame() -> None:
    peer = Peer(accepted=False)
    peer.send(TEXT, b"stage-0")
    assert peer.relay.reject("ü" * 61 + "!")
    peer = Peer(accepted=False)
    peer.send(TEXT, b"stage-0")
    assert not peer.relay.reject("ü" * 62)
    assert peer.received() == []
    peer.relay.lost()
    assert peer.relay.state is SessionState.CLOSED


@pytest.mark.parametrize("payload", [b"", b"token", b"\x01" + bytes(16), b"\x02{}"])
def test_a_binary_message_instead_of_a_token(payload: bytes) -> None:
    peer = Peer(accepted=False)
    with pytest.raises(RemoteProtocolError, match="expected text frame") as caught:
        peer.send(BINARY, payload)
    peer.relay.fail(caught.value)
    [(_, close)] = peer.received()
    assert decode_close(close) == (1008, "expected text frame")


def test_a_token_that_is_not_text() -> None:
    peer = Peer(accepted=False)
    with pytest.raises(RemoteProtocolError, match="UTF-8") as caught:
        peer.send(TEXT, b"\xff")
    assert caught.value.close_code == 1007


def test_a_large_token_is_taken() -> None:
    peer = Peer(accepted=False)
    assert peer.send(TEXT, b"t" * 40_000) == [TokenReceived("handshake", "t" * 40_000)]


def test_tokens_are_overdue_after_ten_seconds_each() -> None:
    peer = Peer(accepted=False)
    assert peer.relay.next_deadline() == 110.0
    assert peer.relay.tick(109.9) == []
    assert peer.relay.tick(110.0) == [TokenOverdue("handshake", 10.0)]
    assert peer.relay.next_deadline() == math.inf
    peer = Peer(accepted=False)
    peer.send(TEXT, b"stage-0")
    assert peer.relay.next_deadline() == math.inf, "judging has no limit here"
    peer.relay.challenge(NONCE, 130.0)
    assert peer.relay.tick(140.0) == [TokenOverdue("attest", 10.0)]


def test_a_challenge_out_of_turn_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="challenge is not possible"):
        Peer(accepted=False).relay.challenge(NONCE, 0.0)
    with pytest.raises(LocalProtocolError, match="no stream can be opened while it is new"):
        Peer(accepted=False).relay.open(Control("connect", bytes(16)), User())


# Re-attestation ------------------------------------------------------------------------------


def test_reauth_with_an_agent_session() -> None:
    pair = Pair.established()
    assert pair.relay.reauth_challenge("again", pair.clock())
    pair.pump()
    assert pair.agent_events == [ReauthRequested("again")]
    assert pair.agent.send_reauth_token("again", "fresh")
    pair.pump()
    assert pair.relay_events == [TokenReceived("reauth", "fresh")]
    assert not pair.relay.held, "traffic goes on meanwhile"
    assert pair.relay.tick(pair.clock() + 11) == []


def test_only_the_first_text_after_the_challenge_counts() -> None:
    peer = Peer()
    assert peer.send(TEXT, b"early") == [Ignored("text while no token is awaited")]
    peer.relay.reauth_challenge("again", peer.now)
    assert peer.send(TEXT, b"garbage") == [TokenReceived("reauth", "garbage")]
    assert peer.send(TEXT, b"good") == [Ignored("text while no token is awaited")]


def test_the_grace_of_a_reauth_ends() -> None:
    peer = Peer()
    peer.relay.reauth_challenge("again", peer.now, 3.0)
    assert peer.relay.next_deadline() == 103.0
    assert peer.relay.tick(103.0) == [TokenOverdue("reauth", 3.0)]


def test_a_reauth_challenge_can_be_lost_in_a_full_lane() -> None:
    peer = Peer(lanes=1)
    assert peer.relay.reauth_challenge("one", peer.now)
    assert not peer.relay.reauth_challenge("two", peer.now)
    [(opcode, payload)] = peer.received()
    assert opcode == TEXT
    assert json.loads(payload)["nonce"] == "one"


# Liveness ------------------------------------------------------------------------------------


def test_ping_every_54_seconds_and_the_end_after_60_of_silence() -> None:
    peer = Peer()
    assert peer.relay.next_deadline() == 154.0
    assert peer.relay.tick(153.9) == []
    assert peer.received() == []
    assert peer.relay.tick(154.0) == []
    assert peer.received() == [(PING, b"")]
    assert peer.relay.next_deadline() == 160.0
    assert peer.relay.tick(160.0) == [AgentSilent(60.0)]
    assert peer.relay.tick(161.0) == []


def test_pings_received_do_not_extend_the_deadline() -> None:
    peer = Peer()
    peer.now = 159.0
    peer.send(PING)
    assert peer.relay.tick(160.0) == [AgentSilent(60.0)]


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [(PONG, b"any"), (TEXT, b"unasked"), (BINARY, b"\x01" + bytes(16)), (BINARY, b"junk")],
)
def test_pongs_and_messages_extend_the_deadline(opcode: int, payload: bytes) -> None:
    peer = Peer()
    peer.now = 150.0
    peer.send(opcode, payload)
    peer.relay.tick(154.0)
    assert peer.relay.next_deadline() == 208.0
    assert peer.relay.tick(207.0) == []
    assert peer.relay.next_deadline() == 208.0
    peer.relay.tick(208.0)
    assert peer.relay.next_deadline() == 210.0


def test_ten_idle_minutes_with_an_agent_session() -> None:
    pair = Pair.established()
    pair.advance(600)
    assert pair.relay_events == pair.agent_events == []


def test_pings_can_be_swallowed() -> None:
    peer = Peer()
    peer.relay.answers_pings = False
    peer.send(PING, b"?")
    assert peer.received() == []


# Streams -------------------------------------------------------------------------------------


def test_a_stream_that_is_not_recorded_loses_what_the_agent_says() -> None:
    pair = Pair.established()
    user, local = pair.open(recorded=False)
    local.stream.send(memoryview(b"banner"))
    pair.pump()
    assert user.frames == []
    assert user.stream.window.unlimited, "the grant was lost as well"
    pair.relay.record(user.stream)
    local.stream.send(memoryview(b"more"))
    pair.pump()
    assert user.frames == [b"more"]


def test_a_stream_that_has_ended_is_not_recorded() -> None:
    pair = Pair.established()
    user, _ = pair.open(recorded=False)
    user.stream.end()
    pair.relay.record(user.stream)
    assert pair.relay.streams == {}


def test_a_stream_is_not_recorded_in_a_session_that_has_ended() -> None:
    pair = Pair.established()
    user, _ = pair.open(recorded=False)
    pair.relay.lost()
    assert user.reason is None
    pair.relay.record(user.stream)
    assert user.reason == Reason.SESSION_ENDED.value
    assert pair.relay.streams == {}


def test_an_id_used_again_belongs_to_the_new_stream() -> None:
    pair = Pair.established()
    old, _ = pair.open(client_id=b"a" * 16)
    new, _ = pair.open(client_id=b"a" * 16)
    old.stream.forget()
    assert pair.relay.streams == {b"a" * 16: new.stream}


def test_what_a_full_lane_loses_and_what_it_delays() -> None:
    pair = Pair.established(lanes=2)
    user, local = pair.open(user=User(takes=False))
    local.stream.send(memoryview(bytes(8 * 32768)))
    pair.pump()
    while pair.relay.room(Lane.DATA):
        assert user.stream.send(b"x")
    assert not user.stream.send(b"x")
    assert pair.relay.open(pair.connect(), User()) is None
    while pair.relay.room(Lane.CONTROL):
        pair.relay.send(Lane.CONTROL, encode_control(Control(Event.PONG_CLIENT, bytes(16))))
    user.stream.consumed(8)
    assert local.stream.window.acknowledged == 0
    pair.pump()
    assert local.stream.window.acknowledged == 8, "a grant that finds no room is not lost"


# Control messages ----------------------------------------------------------------------------


def test_health_pings_are_answered_for_known_streams_only() -> None:
    peer = Peer()
    stream = peer.relay.open(Control("connect", b"a" * 16), User())
    peer.received()
    peer.control("ping_client", b"b" * 16)
    assert peer.received() == []
    peer.control("ping_client", b"a" * 16)
    pong = encode_control(Control(Event.PONG_CLIENT, b"a" * 16))
    assert peer.received() == [(BINARY, pong)]
    peer.relay.answers_health = False
    peer.control("ping_client", b"a" * 16)
    assert peer.received() == []
    assert stream is not None


@pytest.mark.parametrize("event", ["disconnect", "pause_stream", "resume_stream", "ping_client"])
def test_unknown_ids_are_ignored(event: str) -> None:
    peer = Peer()
    assert peer.control(event, b"x" * 16, credits=3) == []
    assert peer.received() == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x03what",
        b"\x01short",
        b"\x02",
        b"\x02not json",
        b'\x02{"event":"disconnect","client_id":"?"}',
        encode_control(Control("connect", bytes(16))),
        encode_control(Control("outbound_result", bytes(16), success=True)),
        encode_control(Control("hello", bytes(16))),
    ],
)
def test_what_makes_no_sense_is_ignored(message: bytes) -> None:
    peer = Peer()
    [event] = peer.send(BINARY, message)
    assert isinstance(event, Ignored)
    assert peer.received() == []


def test_a_request_for_a_connection_and_its_answers() -> None:
    """PROTOCOL.md section 11.3: a success is announced like a connect."""
    peer = Peer()
    [event] = peer.control("outbound_connect", b"o" * 16, target_addr="example.test:80")
    assert event == OutboundRequested(b"o" * 16, "example.test:80")
    assert peer.received() == []
    result = Control("outbound_result", b"o" * 16, success=True, credits=64)
    stream = peer.relay.open(result, User())
    assert stream is not None
    assert peer.relay.streams == {stream.id: stream}
    assert peer.received() == [(BINARY, encode_control(result))]
    assert not stream.granter.held


def test_the_largest_message_and_one_byte_more() -> None:
    peer = Peer()
    user = User()
    stream = peer.relay.open(Control("connect", b"a" * 16, credits=64), user)
    assert stream is not None
    user.stream = stream
    message = b"\x01" + b"a" * 16 + bytes(32768)
    assert len(message) == MAX_AGENT_MESSAGE_BYTES == 32785
    peer.send(BINARY, message)
    assert user.data == bytes(32768)
    with pytest.raises(RemoteProtocolError) as caught:
        peer.send(BINARY, message + b"!")
    peer.received()
    peer.relay.fail(caught.value)
    [(opcode, payload)] = peer.received()
    assert (opcode, decode_close(payload)) == (CLOSE, (1009, ""))


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_limit_is_for_the_sum_of_fragments(opcode: int) -> None:
    peer = Peer()
    peer.send(opcode, b"\x02" + bytes(20_000), fin=False)
    with pytest.raises(RemoteProtocolError) as caught:
        peer.send(CONTINUATION, bytes(20_000))
    assert caught.value.close_code == 1009


def test_fragments_make_one_message() -> None:
    peer = Peer()
    user = User(takes=False)
    peer.relay.open(Control("connect", b"a" * 16), user)
    peer.send(BINARY, b"\x01" + b"a" * 16 + b"one ", fin=False)
    peer.send(CONTINUATION, b"two")
    assert user.frames == [b"one two"]


# Ending --------------------------------------------------------------------------------------


def test_an_unmasked_frame_is_a_violation() -> None:
    peer = Peer()
    with pytest.raises(RemoteProtocolError) as caught:
        peer.send_bytes(encode_frame(TEXT, b"x"))
    peer.relay.fail(caught.value)
    [(_, payload)] = peer.received()
    assert decode_close(payload)[0] == 1002


@pytest.mark.parametrize("code", [1000, 4001])
def test_the_agents_close_is_echoed_without_reason(code: int) -> None:
    peer = Peer()
    both = peer.frame(CLOSE, encode_close(code, "bye")) + peer.frame(TEXT, b"never read")
    assert peer.send_bytes(both) == [Closed(code, "bye")]
    assert peer.received() == [(CLOSE, encode_close(code))]
    assert peer.relay.state is SessionState.CLOSED
    assert not peer.relay.send(Lane.CONTROL, b"x")
    assert not peer.relay.send_data(bytes(16), b"x")
    assert peer.relay.next_deadline() < math.inf
    assert peer.relay.tick(1e9) == []
    assert peer.relay.next_deadline() == math.inf
    peer.relay.lost()


def test_our_close_comes_first() -> None:
    peer = Peer()
    peer.relay.close(1001, "going")
    peer.relay.close(1000)
    assert peer.received() == [(CLOSE, encode_close(1001, "going"))]
    crossing = peer.frame(TEXT, b"late") + peer.frame(PING) + peer.frame(CLOSE, encode_close(1001))
    assert peer.send_bytes(crossing + peer.frame(CLOSE)) == [Closed(1001, "")]
    assert peer.received() == []
    assert peer.relay.tick(1e9) == []
    assert peer.relay.state is SessionState.CLOSED


def test_our_close_leaves_nothing_in_the_lanes() -> None:
    peer = Peer(lanes=4)
    assert not peer.relay.pending
    peer.relay.open(Control("connect", b"a" * 16), User())
    assert peer.relay.pending
    peer.relay.close()
    assert [opcode for opcode, _ in peer.received()] == [CLOSE]
    assert not peer.relay.pending


def test_the_end_of_the_session_ends_the_streams() -> None:
    pair = Pair.established()
    users = [pair.open()[0] for _ in range(3)]
    pair.agent.close(1001)
    pair.pump()
    pair.relay.lost()
    assert [user.reason for user in users] == ["session_ended"] * 3
    pair.agent.lost()
    assert {local.cause for local in pair.locals.values()} == {Cause.SESSION}


def test_messages_are_counted() -> None:
    peer = Peer()
    assert peer.relay.messages_in == 2
    peer.send(BINARY, b"\x01" + bytes(16))
    peer.send(BINARY, encode_grant(bytes(16), 1))
    peer.send(PING)
    assert peer.relay.messages_in == 4


# Together with an agent ----------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.binary(max_size=200)), max_size=30),
    st.sampled_from([None, 1, 5]),
    st.sampled_from([None, 256]),
)
def test_data_arrives_in_order_both_ways(
    steps: list[tuple[bool, int, bytes]], split: int | None, lanes: int | None
) -> None:
    pair = Pair.established(split=split, lanes=lanes)
    ends = [pair.open() for _ in range(4)]
    sent: dict[tuple[bool, int], bytes] = {}
    for forward, number, payload in steps:
        user, local = ends[number]
        sent[forward, number] = sent.get((forward, number), b"") + payload
        if forward:
            user.stream.send(payload)
        else:
            assert local.stream.send(memoryview(payload)) == len(payload)
    pair.pump()
    for number, (user, local) in enumerate(ends):
        assert local.data == sent.get((True, number), b"")
        assert user.data == sent.get((False, number), b"")


class Life(RuleBasedStateMachine):
    """Streams open, talk, pause and end in any order; both sides agree about credits."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair.established()
        self.ends: list[Any] = []

    @rule()
    def opens(self) -> None:
        if len(self.ends) < 4:
            self.ends.append(self.pair.open())

    @rule(which=st.integers(0, 3), size=st.integers(0, 100_000))
    def user_sends(self, which: int, size: int) -> None:
        for user, _ in self.ends[which : which + 1]:
            if user.stream.sendable:
                user.stream.send(bytes(min(size, 32768)))

    @rule(which=st.integers(0, 3), size=st.integers(0, 100_000))
    def local_sends(self, which: int, size: int) -> None:
        for _, local in self.ends[which : which + 1]:
            if local.stream.sendable:
                local.stream.send(memoryview(bytes(size)))

    @rule(which=st.integers(0, 3), on=st.booleans())
    def agent_pauses(self, which: int, on: bool) -> None:
        for _, local in self.ends[which : which + 1]:
            if on:
                local.stream.pause()
            else:
                local.stream.resume()

    @rule(which=st.integers(0, 3), by_user=st.booleans())
    def ends_stream(self, which: int, by_user: bool) -> None:
        if which < len(self.ends):
            user, local = self.ends.pop(which)
            if by_user:
                user.stream.end()
            else:
                local.stream.abort(Reason.NORMAL)
            self.pair.pump()
            assert not user.stream.open

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.pair.advance(seconds)

    @invariant()
    def both_sides_agree(self) -> None:
        self.pair.pump()
        assert self.pair.relay_events == []
        assert self.pair.agent_events == []
        assert set(self.pair.relay.streams) == {user.stream.id for user, _ in self.ends}
        for user, local in self.ends:
            assert user.stream.paused == local.stream.paused
            assert local.stream.window.available + local.stream.window.unacknowledged == 64
            assert 0 <= user.stream.window.available <= user.stream.window.capacity


TestLife = Life.TestCase
