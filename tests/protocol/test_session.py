"""The agent's side of a session, played against a scripted relay (PROTOCOL.md sections 1 to 7)."""

from __future__ import annotations

import math
import random
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import LocalProtocolError, RemoteProtocolError
from nexusg.protocol.credit import UDP_WINDOW
from nexusg.protocol.events import (
    Accepted,
    ChallengeReceived,
    Closed,
    HandshakeStalled,
    Ignored,
    ReauthRequested,
    RelaySilent,
)
from nexusg.protocol.liveness import HealthPolicy
from nexusg.protocol.messages import Control, Event, Reason
from nexusg.protocol.session import SETTLE_S
from nexusg.protocol.states import SessionState, StreamState
from nexusg.protocol.stream import Cause
from nexusg.protocol.tombstones import TOMBSTONE_S
from nexusg.protocol.wire import ANSWER_LIMIT_BYTES
from nexusg.protocol.wsframes import BINARY, CONTINUATION, encode_frame
from tests.support.script import (
    NONCE,
    A,
    B,
    Binary,
    C,
    Close,
    Data,
    Message,
    Ping,
    Pong,
    Script,
    Text,
    challenge,
    connect,
    control,
    disconnect,
    encode,
    grant,
    reauth,
)


UNKNOWN = disconnect(reason=Reason.UNKNOWN)
HEALTH_PING = control(Event.PING_CLIENT)
HEALTH_PONG = control(Event.PONG_CLIENT)


def frames(*messages: Message) -> bytes:
    return b"".join(encode_frame(*encode(message)) for message in messages)


def alive(script: Script) -> None:
    """The session works."""
    script.skip()
    script >> connect(C) >> Data(C, b"alive") << grant(C)
    assert script.listeners[C].data == [b"alive"]
    assert script.session.established


def silence(script: Script) -> Script:
    """Drop the session's own pings from what was heard."""
    said = script.hear()
    said[:] = [message for message in said if message != Ping()]
    return script


# Handshake ---------------------------------------------------------------------------------------


def test_the_handshake() -> None:
    """Cases 1, 2 and 6: connected only after the pong."""
    script = Script()
    session = script.session
    assert (session.state, session.stage) == (SessionState.NEW, "")
    session.send_handshake_token("token-0", script.now)
    script << Text("token-0")
    script >> challenge() << ChallengeReceived(NONCE)
    script.wait(9).nothing()
    session.send_attest_token("token-1", script.now)
    script << Text("token-1") << Ping(b"accepted?")
    assert (session.stage, session.accepted, session.established) == ("attest", False, False)
    script.wait(9).nothing()
    script >> Pong(b"accepted?") << Accepted()
    assert (session.accepted, session.established) == (True, True)
    script.nothing()


@pytest.mark.parametrize(
    "first",
    [connect(), Data(B, b"x"), Binary(b"\x07"), grant(), Binary(b"")],
    ids=["connect", "data", "unknown", "grant", "empty"],
)
def test_the_first_binary_message_proves_acceptance(first: Message) -> None:
    """Case 6; and it is handled as well."""
    script = Script()
    script.session.send_handshake_token("0", script.now)
    script >> challenge()
    script.session.send_attest_token("1", script.now)
    script.skip()
    script >> first << Accepted()
    assert script.session.accepted
    assert (A in script.session.streams) is (first == connect())


@pytest.mark.parametrize("message", [Data(A, b"x"), Binary(b"\x02{}"), Binary(b""), connect()])
@pytest.mark.parametrize("attest", [False, True], ids=["identified", "challenged"])
def test_binary_messages_before_acceptance(message: Message, attest: bool) -> None:
    """Case 3."""
    script = Script()
    script.session.send_handshake_token("0", script.now)
    if attest:
        script >> challenge()
    script.skip()
    with pytest.raises(RemoteProtocolError, match="binary message while"):
        script >> message
    assert script.session.streams == {}
    script.session.close(1002, "bad")
    script << Close(1002, "bad")
    script.nothing()


def test_a_bad_challenge_gets_no_token() -> None:
    script = Script()
    script.session.send_handshake_token("0", script.now)
    script.skip()
    with pytest.raises(RemoteProtocolError):
        script >> Text("hello")
    script.nothing()


def test_a_rejection_has_the_relays_reason() -> None:
    """Case 4."""
    script = Script()
    script.session.send_handshake_token("0", script.now)
    script >> challenge()
    script.session.send_attest_token("1", script.now)
    script.skip()
    script >> Close(1008, "session nonce mismatch") << Closed(1008, "session nonce mismatch")
    script << Close(1008)
    assert (script.session.stage, script.session.accepted) == ("attest", False)
    assert script.session.state is SessionState.CLOSED


def test_a_relay_that_hangs_up_without_a_word() -> None:
    """Case 5."""
    script = Script()
    script.session.send_handshake_token("0", script.now)
    script.session.lost()
    assert (script.session.stage, script.session.accepted) == ("handshake", False)


@pytest.mark.parametrize(
    ("attest", "stalled"),
    [(False, HandshakeStalled("challenge", 15.0)), (True, HandshakeStalled("acceptance", 15.0))],
)
def test_a_stalled_handshake_is_reported_once(attest: bool, stalled: HandshakeStalled) -> None:
    script = Script()
    script.session.send_handshake_token("0", script.now)
    if attest:
        script >> challenge()
        script.session.send_attest_token("1", script.now)
    script.skip()
    script.wait(14.9).nothing()
    script.wait(0.2) << stalled
    script.wait(60).nothing()


def test_silence_in_the_handshake_is_no_silent_relay() -> None:
    script = Script()
    script.wait(60).nothing()
    script.open()
    script.wait(4).nothing()


# Re-attestation ----------------------------------------------------------------------------------


def test_reauth_beside_the_traffic() -> None:
    """Cases 11 and 13: data goes on, only the newest challenge is answered."""
    script = Script().open() >> connect() >> Data(A, b"one")
    script.skip()
    script >> reauth("n1") << ReauthRequested("n1")
    script >> Data(A, b"two") >> reauth("n2") << ReauthRequested("n2")
    assert script.listeners[A].data == [b"one", b"two"]
    assert script.session.send_reauth_token("n1", "token") is False
    script.nothing()
    assert script.session.send_reauth_token("n2", "token") is True
    script << Text("token")
    assert script.session.send_reauth_token("n2", "token") is False
    script.nothing()


def test_a_late_reauth_token_stays_here() -> None:
    """Case 14."""
    script = Script().open() >> reauth("n1")
    script.skip()
    script.session.lost()
    assert script.session.send_reauth_token("n1", "token") is False
    script.nothing()


def test_unexpected_text_is_ignored() -> None:
    script = Script().open()
    for text in ("hello", "", "[]", '{"type":"news","nonce":"abc"}'):
        script >> Text(text)
        assert isinstance(script.events()[0], Ignored)
    alive(script)


# Garbage (case 25) -------------------------------------------------------------------------------

ID = "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x07hello",
        b"\x01short",
        b"\x01",
        b"\x02",
        b"\x02{not json",
        b"\x02[]",
        b"\x02null",
        b"\x02\xff\xfe",
        b"\x02" + b"[" * 5000,
        b"\x02{}",
        b'\x02{"event":"party","client_id":"%b"}' % ID.encode(),
        b'\x02{"event":"","client_id":"%b"}' % ID.encode(),
        b'\x02{"event":"connect","client_id":"nonsense"}',
        b'\x02{"event":"connect","client_id":"%b","conn_port":"443"}' % ID.encode(),
    ],
)
def test_garbage_is_counted_and_ignored(message: bytes) -> None:
    script = Script().open()
    script >> Binary(message)
    [event] = script.events()
    assert isinstance(event, Ignored)
    assert "hello" not in event.what
    script.nothing()
    assert script.session.streams == {}
    alive(script)


@pytest.mark.parametrize("event", [e for e in Event if e is not Event.CONNECT])
def test_control_for_an_unknown_stream_is_ignored(event: Event) -> None:
    script = Script().open() >> control(event, B, credits=8)
    script.nothing()
    alive(script)


@pytest.mark.parametrize(
    "event", [Event.PING_CLIENT, Event.OUTBOUND_CONNECT, Event.OUTBOUND_RESULT, Event.PONG_CLIENT]
)
def test_control_that_does_not_concern_a_stream(event: Event) -> None:
    script = Script().open() >> connect() >> Data(A)
    script.skip()
    script >> control(event)
    script.nothing()
    assert script.stream().state is StreamState.OPENING


# Unknown and late IDs (section 4.5) --------------------------------------------------------------


def test_data_for_an_unknown_id_is_answered_once() -> None:
    """Case 24."""
    script = Script().open()
    for _ in range(100):
        script >> Data(A, b"stray")
    script << UNKNOWN
    assert [type(event) for event in script.events()] == [Ignored]
    script.nothing()
    assert script.session.streams == {}
    script >> Data(B, b"stray") << disconnect(B, Reason.UNKNOWN)


@pytest.mark.parametrize("end", ["abort", "disconnect"])
def test_late_data_for_a_recent_stream_is_dropped(end: str) -> None:
    script = Script().open() >> connect() >> Data(A, b"x")
    if end == "abort":
        script.stream().abort(Reason.NORMAL)
    else:
        script >> disconnect()
    script.skip()
    for _ in range(10):
        script >> Data(A, b"late") >> grant() >> HEALTH_PONG >> disconnect()
    script.nothing()
    assert script.listeners[A].data == [b"x"]


def test_the_memory_of_ended_streams_fades() -> None:
    """If our disconnect was lost, the user is still there after a minute, and is told then."""
    script = Script().open() >> connect() >> Data(A)
    script.stream().abort(Reason.NORMAL)
    script.skip()
    script.wait(TOMBSTONE_S - 1) >> Data(A, b"late")
    silence(script).events()
    script.nothing()
    script.wait(2) >> Data(A, b"late") << UNKNOWN


def test_unknown_ids_cost_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there an answer to each when nothing of the output can be written."""
    monkeypatch.setattr("nexusg.protocol.tombstones.MAX_TOMBSTONES", 1000)
    monkeypatch.setattr("nexusg.protocol.wire.ANSWER_LIMIT_BYTES", 50_000)
    script = Script().open()
    script.raw(frames(*(Data(number.to_bytes(16, "big")) for number in range(1100))))
    assert 50_000 < script.session.wire.pending_bytes < 50_200
    assert len(script.session._tombstones) == 1000
    assert len(script.hear()) < 1000
    script >> Data(bytes([1]) * 16)
    assert script.hear()[-1] == disconnect(bytes([1]) * 16, Reason.UNKNOWN)


def test_an_id_may_be_used_again() -> None:
    script = Script().open() >> connect() >> Data(A) >> disconnect()
    script.skip()
    script >> connect() >> Data(A, b"again") << grant()
    assert script.listeners[A].data == [b"again"]


# Connects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [False, True])
def test_a_connect_for_an_id_in_use(settled: bool) -> None:
    """Section 6.2: the old one is closed quietly."""
    script = Script().open() >> connect()
    if settled:
        script >> Data(A, b"one") << grant()
    old = script.listeners[A]
    script >> connect()
    assert old.causes == [Cause.REPLACED]
    assert old.stream.state is StreamState.CLOSED
    script.nothing()
    script >> Data(A, b"two") << grant()
    assert script.listeners[A].data == [b"two"]
    old.stream.abort(Reason.LOCAL_ERROR)
    old.stream.consumed(100)
    script.nothing()
    assert script.session.streams == {A: script.stream()}


def test_a_connect_for_an_id_whose_disconnect_is_held_back() -> None:
    """The disconnect would end the new stream; and it waits its full time."""
    script = Script().open() >> connect() >> connect(B)
    script.stream().abort(Reason.DIAL_FAILED)
    script.wait(SETTLE_S / 2) >> connect()
    script.wait(SETTLE_S / 2) << grant(B)
    script.nothing()
    script.wait(SETTLE_S / 2) << grant()
    script.nothing()


def test_a_shell_may_refuse_at_once() -> None:
    script = Script()
    opened = script.open_stream

    def refuse(stream: Any) -> Any:
        stream.abort(Reason.DIAL_FAILED)
        return opened(stream)

    script.session._open_stream = refuse
    script.open() >> connect()
    assert script.session.streams == {}
    script.nothing()
    script.wait(SETTLE_S) << disconnect(reason=Reason.DIAL_FAILED)
    script.nothing()


# Large and odd messages --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 32_768, 65_536, (1 << 20) - 17])
def test_large_messages(size: int) -> None:
    """Case 16, and section 1.2."""
    script = Script().open() >> connect() >> Data(A, bytes(size))
    assert script.listeners[A].data == [bytes(size)]
    assert script.stream().bytes_in == size
    script.skip()
    alive(script)


def test_a_message_too_large() -> None:
    script = Script(max_message_bytes=70_000).open()
    with pytest.raises(RemoteProtocolError) as caught:
        script.raw(struct.pack(">BBQ", 0x82, 127, 70_001))
    assert caught.value.close_code == 1009
    script.session.close(caught.value.close_code)
    script << Close(1009)
    script >> Data(A, b"nothing is read any more")
    script.nothing()


def test_a_fragmented_data_message() -> None:
    script = Script().open() >> connect()
    message = encode(Data(A, b"one two"))[1]
    script.raw(encode_frame(BINARY, message[:9], fin=False) + frames(Ping(b"!")))
    script.raw(encode_frame(CONTINUATION, message[9:]))
    assert script.listeners[A].data == [b"one two"]
    script << Pong(b"!") << grant()


@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split(cuts: list[int]) -> None:
    messages = (
        connect(),
        Data(A, b"prelude"),
        connect(B, transport="udp"),
        Ping(b"?"),
        Data(B, b"datagram"),
        grant(credits=8),
        reauth("n1"),
        disconnect(),
        Close(1001, "bye"),
    )
    data = frames(*messages)
    script = Script().open()
    at = 0
    for end in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        script.raw(data[at:end])
        at = end
    script << grant() << Pong(b"?") << grant(B, UDP_WINDOW) << Close(1001)
    script << ReauthRequested("n1") << Closed(1001, "bye")
    script.nothing()
    assert script.listeners[A].data == [b"prelude"]
    assert script.listeners[B].data == [b"datagram"]


def test_connections_out() -> None:
    """What becomes of them is in test_outbound.py."""
    script = Script().open()
    script.session.connect_outbound(A, "example.test:80", script.open_stream, script.now)
    script << control(Event.OUTBOUND_CONNECT, target_addr="example.test:80")
    script.session.next_deadline()
    script >> control(Event.OUTBOUND_RESULT, success=True, credits=64) << grant()
    assert script.session.sooner
    script >> control(Event.OUTBOUND_RESULT, B, success=True) << disconnect(B, Reason.UNKNOWN)


# Drain, close, loss ------------------------------------------------------------------------------


def test_drain() -> None:
    """Case 45: new streams are refused with shutdown, existing ones go on both ways."""
    script = Script().open() >> connect() >> Data(A, b"one")
    script.stream().dialled()
    script.skip()
    script.session.drain()
    script.session.drain()
    assert script.session.state is SessionState.DRAINING
    script >> connect(B)
    assert B not in script.listeners
    script.nothing()
    script >> Data(B, b"x") << disconnect(B, Reason.SHUTDOWN)
    script >> Data(B, b"late")
    script >> Data(A, b"two")
    assert script.listeners[A].data == [b"one", b"two"]
    script.stream().send(memoryview(b"reply"))
    script << Data(A, b"reply")
    script >> connect(C)
    script.wait(SETTLE_S) << disconnect(C, Reason.SHUTDOWN)
    script.nothing()
    script >> reauth("n1") << ReauthRequested("n1")
    assert script.session.send_reauth_token("n1", "token")


def test_drain_before_acceptance_changes_nothing() -> None:
    script = Script()
    script.session.drain()
    assert script.session.state is SessionState.NEW


def test_close_comes_behind_the_disconnects_held_back() -> None:
    script = Script().open() >> connect() >> connect(B)
    script.stream().abort(Reason.SHUTDOWN)
    script.stream(B).abort(Reason.DIAL_FAILED)
    script.nothing()
    script.session.close(1001, "bye")
    script << disconnect(reason=Reason.SHUTDOWN) << disconnect(B, Reason.DIAL_FAILED)
    script << Close(1001, "bye")
    script.session.close()
    script.nothing()


def test_nothing_follows_our_close_frame() -> None:
    script = Script().open() >> connect() >> Data(A)
    stream = script.stream()
    stream.dialled()
    script.session.close()
    script.skip()
    stream.consumed(100)
    stream.pause()
    stream.resume()
    stream.abort(Reason.NORMAL)
    script >> Data(A, b"x") >> Data(B, b"x") >> connect(B) >> Ping() >> reauth("n1") >> Binary(b"")
    script.session.probe(script.now)
    assert B not in script.listeners
    assert script.session.state is SessionState.CLOSING
    script.nothing()


def test_the_answer_to_our_close_frame() -> None:
    script = Script().open()
    script.session.close()
    script.skip()
    script >> Close(1000) << Closed(1000, "")
    assert script.session.state is SessionState.CLOSED
    script >> Close(1000) >> Data(A)
    script.nothing()


@pytest.mark.parametrize("last", [Data(A, b"x"), Close(1000), Text("x"), Binary(b"")])
def test_messages_after_the_relays_close_frame(last: Message) -> None:
    """In the same read and in the next."""
    script = Script().open() >> connect()
    script.raw(frames(Close(1001), last)) << Closed(1001, "")
    script << Close(1001)
    script >> last
    script.nothing()
    assert script.listeners[A].data == []


def test_a_broken_frame_after_the_close_frames_is_an_error_at_most() -> None:
    script = Script().open() >> Close(1001)
    with pytest.raises(RemoteProtocolError):
        script.raw(b"\xff\x00")
    script.raw(b"\xff\x00" * 100_000)


def test_a_bad_close_frame() -> None:
    script = Script().open()
    with pytest.raises(RemoteProtocolError, match="one byte"):
        script.raw(b"\x88\x01\x00")
    assert script.session.established
    script.session.close(1002)
    script << Close(1002)


def test_an_unanswered_close_frame_with_a_fault() -> None:
    script = Script().open()
    script.session.close()
    script.skip()
    with pytest.raises(RemoteProtocolError, match="one byte"):
        script.raw(b"\x88\x01\x00")
    assert script.session.state is SessionState.CLOSING
    script.session.lost()


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (StreamState.OPENING, [Cause.SESSION]),
        (StreamState.OPEN, [Cause.SESSION]),
        (StreamState.FLUSHING, [Cause.SESSION]),
        (StreamState.DELIVERING, [Cause.USER]),
        (StreamState.CLOSED, []),
    ],
)
@pytest.mark.parametrize("settled", [True, False])
def test_a_loss_with_a_stream_in_each_state(
    state: StreamState, cause: list[Cause], settled: bool
) -> None:
    """Cases 34 and 46: each listener is told once, nothing is left."""
    script = Script().open() >> connect()
    stream = script.stream()
    if settled:
        script >> Data(A)
    if state in (StreamState.OPEN, StreamState.FLUSHING):
        stream.dialled()
    if state is StreamState.FLUSHING:
        stream.end_of_file(script.now)
    elif state is StreamState.DELIVERING:
        script >> disconnect()
    elif state is StreamState.CLOSED:
        stream.abort(Reason.NORMAL)
    assert stream.state is state
    script.skip()
    session = script.session
    session.lost()
    session.lost()
    assert script.listeners[A].causes == cause
    assert session.streams == {}
    assert session.next_deadline() == math.inf
    if state is StreamState.DELIVERING:
        stream.delivered()
    assert stream.state is StreamState.CLOSED
    stream.abort(Reason.NORMAL)
    stream.consumed(64)
    stream.pause()
    stream.resume()
    stream.trickle()
    session.close()
    session.drain()
    session.probe(script.now)
    script.wait(100).nothing()


def test_a_listener_may_abort_its_stream_when_it_ends() -> None:
    script = Script().open() >> connect() >> connect(B)
    for listener in script.listeners.values():
        listener.on_end = (  # type: ignore[method-assign]
            lambda _, stream=listener.stream: stream.abort(Reason.LOCAL_ERROR)
        )
    script.session.lost()
    assert script.session.streams == {}


# Liveness ----------------------------------------------------------------------------------------


def test_pings_are_answered() -> None:
    """Cases 8 and 10."""
    script = Script()
    script >> Ping(b"even before the first token") << Pong(b"even before the first token")
    script.open()
    for payload in (b"", b"probe", bytes(range(125))):
        script >> Ping(payload) << Pong(payload)
    script.nothing()


def test_the_session_pings_after_five_seconds() -> None:
    script = Script().open()
    script.wait(4.9).nothing()
    script.wait(0.2) << Ping()
    script.wait(2) >> Pong()
    script.wait(4.9).nothing()
    script.wait(0.2) << Ping()


def test_an_answering_relay_is_alive_for_ever() -> None:
    script = Script().open()
    for _ in range(50):
        script.wait(6) << Ping()
        script >> Pong()
    script.nothing()


def test_a_silent_relay_is_given_up() -> None:
    """Case 9, and it is said once."""
    script = Script().open()
    script.wait(9.9) << Ping()
    script.nothing()
    script.wait(0.2) << RelaySilent(pytest.approx(10))
    script.wait(100).nothing()


def test_any_byte_counts_as_a_sign_of_life() -> None:
    """A large message on a slow link."""
    script = Script().open() >> connect()
    for byte in frames(Data(A, bytes(20))):
        script.wait(4).raw(bytes([byte]))
    silence(script) << grant()
    script.nothing()


def test_a_probe() -> None:
    """Case 48: after a network change silence is judged sooner."""
    script = Script().open()
    script.wait(1)
    script.session.probe(script.now)
    script << Ping()
    script.wait(2.9).nothing()
    script.wait(0.2) << RelaySilent(pytest.approx(4))


def test_a_probe_that_is_answered() -> None:
    script = Script().open()
    script.session.probe(script.now)
    script << Ping()
    script >> Pong()
    script.wait(4.9).nothing()


def test_a_probe_needs_an_open_session() -> None:
    script = Script()
    script.session.probe(script.now)
    script.nothing()


# Health of streams (section 7) -------------------------------------------------------------------


def answering(script: Script, seconds: float) -> list[Message]:
    """Let time pass with a relay that answers the session's own pings; what else it heard."""
    heard: list[Message] = []
    for _ in range(round(seconds / 0.5)):
        script.wait(0.5)
        said = script.hear()
        for message in said:
            if message == Ping():
                script >> Pong()
            elif message != grant(credits=1):
                heard.append(message)
        said.clear()
    return heard


def idle_stream(state: StreamState = StreamState.OPEN, **policy: Any) -> Script:
    script = Script(health=HealthPolicy(**policy)).open() >> connect() >> Data(A)
    stream = script.stream()
    if state is not StreamState.OPENING:
        stream.dialled()
    if state is StreamState.FLUSHING:
        stream.send(memoryview(bytes(50_000)))
        stream.end_of_file(script.now)
    script.skip()
    return script


def test_a_forgotten_stream_is_closed() -> None:
    """Case 38."""
    script = idle_stream()
    assert answering(script, 64) == []
    assert answering(script, 20) == [
        HEALTH_PING,
        HEALTH_PING,
        disconnect(reason=Reason.TIMEOUT),
    ]
    assert script.listeners[A].causes == [Cause.TIMEOUT]
    assert script.stream().state is StreamState.CLOSED
    assert script.session.streams == {}


def test_health_pongs_keep_an_idle_stream() -> None:
    script = idle_stream()
    assert answering(script, 71)
    for _ in range(3):
        script >> HEALTH_PONG
        assert answering(script, 59) == []
        assert answering(script, 7)
    assert script.listeners[A].causes == []


def test_traffic_keeps_a_stream_whose_pong_is_late() -> None:
    script = idle_stream()
    assert answering(script, 71)
    script >> Data(A, b"x")
    assert answering(script, 50) == []
    assert script.listeners[A].causes == []


@pytest.mark.parametrize("state", [StreamState.OPENING, StreamState.FLUSHING])
def test_streams_at_either_end_are_not_pinged(state: StreamState) -> None:
    script = idle_stream(state)
    assert answering(script, 200) == []


def test_health_checks_switched_off() -> None:
    script = idle_stream(enabled=False)
    assert answering(script, 200) == []


@pytest.mark.parametrize("end", [disconnect(), connect(), None], ids=["user", "again", "agent"])
def test_an_outstanding_question_is_forgotten_with_its_stream(end: Message | None) -> None:
    script = idle_stream()
    assert answering(script, 71) == [HEALTH_PING]
    old = script.stream()
    if end is None:
        old.abort(Reason.NORMAL)
    else:
        script >> end
    assert old not in script.session._health._asked
    answering(script, 20)
    assert old.outstanding_pings == 1


def test_starved_streams_are_given_a_credit_ahead() -> None:
    """Section 5.2: after 10 to 15 s, well before the relay gives up."""
    script = idle_stream() >> connect(B) >> Data(B)
    script.skip()
    for _ in range(63):
        script >> Data(A)
    heard = answering(script, 9)
    script.wait(7)
    assert heard == []
    assert grant(credits=1) in script.hear()
    assert grant(B, credits=1) not in script.hear()


def test_a_verdict_may_end_several_streams() -> None:
    script = idle_stream()
    script >> connect(B) >> Data(B)
    script.stream(B).dialled()
    script.skip()
    answering(script, 90)
    assert script.session.streams == {}
    assert [one.causes for one in script.listeners.values()] == [[Cause.TIMEOUT]] * 2


# Time (no spin, nothing overslept) ---------------------------------------------------------------


def test_a_session_that_is_ending_has_no_deadline() -> None:
    script = Script()
    script.session.send_handshake_token("0", script.now)
    script.session.close()
    assert script.session.next_deadline() == math.inf
    script.skip()
    script.tick().nothing()


def test_the_first_stream_after_a_long_time() -> None:
    """The sweep over no streams is overdue then, and is made up for by one tick."""
    script = Script().open()
    answering(script, 100)
    script >> connect()
    script.wait(1).skip()
    assert script.session.next_deadline() > script.now


def test_the_end_of_a_pause_may_end_the_stream() -> None:
    """A listener that ends its stream while the session goes through all of them."""
    script = Script().open()
    for client_id in (A, B, C):
        script >> connect(client_id) >> Data(client_id) >> control(Event.PAUSE_STREAM, client_id)
    for listener in script.listeners.values():
        listener.on_credit = (  # type: ignore[method-assign]
            lambda stream=listener.stream: stream.abort(Reason.NORMAL)
        )
    answering(script, 40)
    assert script.session.streams == {}


RELAY = st.sampled_from(
    [
        connect(),
        connect(B, credits=0),
        connect(C, transport="udp"),
        Data(A, b"x" * 300),
        Data(B, b""),
        Data(C, b"datagram"),
        Data(bytes(16), b"stray"),
        disconnect(),
        disconnect(B),
        grant(credits=8),
        grant(B, credits=0),
        grant(C, credits=1000),
        control(Event.PAUSE_STREAM),
        HEALTH_PONG,
        reauth("n1"),
        Text("what?"),
        Ping(b"?"),
        Pong(),
        Binary(b"\x02{}"),
        Binary(b"\x09"),
        control(Event.OUTBOUND_RESULT, B),
    ]
)
SHELL = st.tuples(
    st.sampled_from(
        ["dialled", "send", "consumed", "pause", "resume", "eof", "flush", "abort", "delivered"]
    )
    | st.sampled_from(["drain", "probe", "reauth"]),
    st.sampled_from([A, B, C]),
)
PAUSES = st.sampled_from([0.0, 0.005, 0.02, 0.3, 1.0, 4.9, 5.0, 9.0, 31.0, 61.0])
POLICIES = st.builds(
    HealthPolicy, st.booleans(), st.sampled_from([0.5, 7.0, 60.0]), st.sampled_from([0.3, 5.0])
)


def shell(script: Script, what: str, client_id: bytes) -> None:
    """One thing that a shell does; what its state does not allow is refused."""
    session = script.session
    if what in ("drain", "probe", "reauth"):
        if what == "probe":
            session.probe(script.now)
        elif what == "drain":
            session.drain()
        else:
            session.send_reauth_token("n1", "token")
        return
    if client_id not in script.listeners:
        return
    stream = script.stream(client_id)
    before = stream.state
    try:
        if what == "send":
            if stream.sendable and stream.is_udp:
                stream.send_datagram(bytes(9000))
            elif stream.sendable:
                stream.send(memoryview(bytes(9000)))
        elif what == "eof":
            stream.end_of_file(script.now)
        elif what == "flush":
            stream.flush(script.now)
        elif what == "abort":
            stream.abort(Reason.LOCAL_ERROR)
        else:
            getattr(stream, what)()
    except LocalProtocolError:
        assert stream.state is before, "a refusal changes nothing"


@given(
    policy=POLICIES,
    steps=st.lists(RELAY | SHELL | PAUSES, max_size=30),
    end=st.sampled_from(["lost", "close", "closed", "none"]),
)
def test_any_course_of_a_session(policy: HealthPolicy, steps: list[Any], end: str) -> None:
    """No course raises, spins, oversleeps, sends too early or too much, or says an end twice."""
    script = Script(health=policy).open()
    ended: dict[bytes, float] = {}
    for step in steps:
        if isinstance(step, float):
            script.wait(step)  # which checks for a spin
        elif isinstance(step, tuple):
            shell(script, *step)
        else:
            known = isinstance(step, Control) and step.client_id in script.session.streams
            script >> step
            if isinstance(step, Control) and step.event == Event.CONNECT:
                ended.pop(step.client_id, None)
            elif isinstance(step, Control) and step.event == Event.DISCONNECT and known:
                check_streams(script, ended)
                ended[step.client_id] = script.now
        check_streams(script, ended)
    if end == "lost":
        script.session.lost()
    elif end == "close":
        script.session.close()
    elif end == "closed":
        script >> Close(1001)
    script.wait(100)
    check_streams(script, ended)
    if end == "lost":
        assert script.session.streams == {}


def check_streams(script: Script, ended: dict[bytes, float]) -> None:
    session = script.session
    for stream in session.streams.values():
        assert stream.state in (StreamState.OPENING, StreamState.OPEN, StreamState.FLUSHING)
        assert stream.window.available >= 0
        overdue = script.now >= stream.opened_at + SETTLE_S
        assert stream.settled or not overdue or not session.established
    for message in script.hear():
        if isinstance(message, Data | Control):
            client_id = message.client_id
            remembered = script.now < ended.get(client_id, -math.inf) + TOMBSTONE_S
            assert message == disconnect(client_id, Reason.UNKNOWN) or client_id not in ended
            assert not remembered, "something follows the disconnect"
            if isinstance(message, Control) and message.event == Event.DISCONNECT:
                ended[client_id] = script.now
            elif client_id in script.listeners:
                assert script.stream(client_id).settled, "too early for the relay"
    script.hear().clear()


@given(seed=st.integers(0, 2**32))
def test_fuzz(seed: int) -> None:
    """Bytes of any kind end in a RemoteProtocolError or in nothing; memory stays bounded."""
    dice = random.Random(seed)
    script = Script(max_message_bytes=5000).open()
    data = b""
    for _ in range(dice.randrange(60)):
        kind = dice.randrange(5)
        if kind == 0:
            data += dice.randbytes(dice.randrange(40))
        elif kind == 1:
            payload = dice.choice([b"", b"\x01", b"\x02", b"\x02{", b"\x02{}"]) + dice.randbytes(9)
            data += encode_frame(
                dice.choice([0, 1, 2, 2, 2, 9, 10]), payload, fin=dice.random() > 0.1
            )
        elif kind == 2:
            data += frames(Data(dice.choice([A, B, uuid.UUID(int=dice.getrandbits(128)).bytes])))
        elif kind == 3:
            body = {
                "event": dice.choice(list(Event)).value,
                "credits": dice.choice([0, 8, 2**63 - 1]),
            }
            data += frames(Control(body["event"], dice.choice([A, B]), credits=body["credits"]))
        else:
            good = bytearray(frames(connect(), Data(A, b"x" * 50), grant(), Ping(), reauth("n")))
            good[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
            data += good
    at = 0
    try:
        while at < len(data):
            size = dice.randrange(1, 200)
            script.raw(data[at : at + size])
            script.wait(dice.random())
            at += size
    except RemoteProtocolError as error:
        script.session.close(error.close_code)
    assert len(script.session.streams) < 400
    assert script.session.wire.pending_bytes < 2 * ANSWER_LIMIT_BYTES
    script.wait(60)
    script.session.lost()
    assert all(len(one.causes) <= 1 for one in script.listeners.values())
