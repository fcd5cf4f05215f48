"""Connections that the relay makes for us, played against a scripted relay (PROTOCOL.md 11.3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import LocalProtocolError
from nexusg.protocol.events import Ignored
from nexusg.protocol.liveness import HealthPolicy
from nexusg.protocol.messages import NIL_ID, Control, Event, Reason
from nexusg.protocol.outbound import OutboundStream
from nexusg.protocol.relay_events import OutboundRequested
from nexusg.protocol.states import StreamState
from nexusg.protocol.stream import Cause
from nexusg.protocol.wire import ANSWER_LIMIT_BYTES
from tests.support.pair import Local, Pair, User
from tests.support.script import A, B, C, Data, Script, connect, control, disconnect, grant


TARGET = "example.test:443"
REQUEST = control(Event.OUTBOUND_CONNECT, target_addr=TARGET)
UNKNOWN = disconnect(reason=Reason.UNKNOWN)


def success(client_id: bytes = A, credits: int = 64) -> Control:
    return control(Event.OUTBOUND_RESULT, client_id, success=True, credits=credits)


def failure(client_id: bytes = A, reason: str = "dial failed") -> Control:
    return control(Event.OUTBOUND_RESULT, client_id, reason=reason)


def ask(script: Script, client_id: bytes = A) -> OutboundStream:
    """Ask for a connection."""
    script.session.connect_outbound(client_id, TARGET, script.open_stream, script.now)
    stream = script.stream(client_id)
    assert isinstance(stream, OutboundStream)
    return stream


def asked(**settings: Any) -> tuple[Script, OutboundStream]:
    """An open session whose one request is on its way."""
    script = Script(**settings).open()
    stream = ask(script)
    script << REQUEST
    return script.nothing(), stream


def connected(**settings: Any) -> tuple[Script, OutboundStream]:
    """A connection that was asked for, made by the relay, and is in use."""
    script, stream = asked(**settings)
    script >> success() << grant()
    stream.dialled()
    return script.nothing(), stream


# Success -----------------------------------------------------------------------------------------


def test_a_request_is_said_and_then_nothing_more() -> None:
    script, stream = asked()
    assert (stream.target_addr, stream.state) == (TARGET, StreamState.OPENING)
    assert (stream.settled, stream.sendable, stream.refusal) == (False, False, "")
    assert script.session.streams == {}
    script.wait(4).nothing()


def test_success_brings_credits_and_gets_the_first_grant() -> None:
    script, stream = asked()
    script >> success(credits=3) << grant()
    assert script.listeners[A].wakes == 1
    assert (stream.settled, stream.state) == (True, StreamState.OPENING)
    assert script.session.streams == {A: stream}
    stream.dialled()
    assert stream.sendable
    assert stream.send(memoryview(bytes(4 * 32768))) == 3 * 32768
    for _ in range(3):
        script << Data(A, bytes(32768))
    script.nothing()
    script >> grant(credits=8)
    assert stream.sendable


def test_success_without_credits_has_no_limit() -> None:
    script, stream = asked()
    script >> success(credits=0) << grant()
    stream.dialled()
    assert stream.window.unlimited
    assert stream.send(memoryview(bytes(100 * 32768))) == 100 * 32768


def test_the_window_is_that_of_other_streams() -> None:
    script, _ = asked(forward_window=200)
    script >> success() << grant(credits=200)


def test_its_first_grant_cannot_be_lost() -> None:
    """Section 5.4 is about streams that the relay announces; so the second grant is a batch."""
    script, _ = connected()
    script.skip()
    for _ in range(8):
        script >> Data(A, b"x")
    script.stream().consumed(7)
    script.nothing()
    script.stream().consumed()
    script << grant(credits=8)


def test_data_behind_the_success_is_handed_on_at_once() -> None:
    script, _ = asked()
    script >> success() >> Data(A, b"early") >> Data(A, b"bird")
    assert script.listeners[A].data == [b"early", b"bird"]


def test_it_ends_like_any_other_stream() -> None:
    script, stream = connected()
    stream.send(memoryview(b"bye"))
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is None
    script << Data(A, b"bye") << disconnect(reason=Reason.NORMAL)
    script >> Data(A, b"late")
    script.nothing()


def test_a_long_upload_ends_with_the_barrier() -> None:
    script, stream = connected()
    stream.send(memoryview(bytes(9 * 1024)))
    script << Data(A, bytes(9 * 1024))
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is not None
    for _ in range(7):
        script << Data(A)
    script.nothing()
    script >> grant(credits=8)
    assert stream.flush(script.now) is None
    script << disconnect(reason=Reason.NORMAL)


def test_a_silent_one_is_asked_for() -> None:
    script, _ = connected(health=HealthPolicy(True, 10, 5))
    script.wait(19)
    assert control(Event.PING_CLIENT) in script.hear()


def test_the_far_end_may_go_before_the_program_knows_that_it_came() -> None:
    script, stream = asked()
    script >> success() << grant()
    script >> disconnect()
    assert script.listeners[A].causes == [Cause.USER]
    stream.dialled()
    assert stream.state is StreamState.DELIVERING
    stream.delivered()
    script.nothing()


# Failure -----------------------------------------------------------------------------------------


def test_a_refusal_ends_it_without_a_disconnect() -> None:
    script, stream = asked()
    script >> failure(reason="port 25 is not allowed")
    assert script.listeners[A].causes == [Cause.REFUSED]
    assert (stream.state, stream.refusal) == (StreamState.CLOSED, "port 25 is not allowed")
    stream.abort(Reason.DIAL_FAILED)
    script >> failure()
    script.nothing()
    assert script.listeners[A].causes == [Cause.REFUSED]


def test_what_nobody_asked_for() -> None:
    script, _ = connected()
    script >> failure(B)
    script.nothing()
    script >> success(C) << disconnect(C, Reason.UNKNOWN)
    script >> Data(C, b"it has begun") >> disconnect(C)
    script.nothing()


def test_a_success_that_comes_too_late_is_disconnected() -> None:
    """Case 40."""
    script, stream = asked()
    stream.abort(Reason.TIMEOUT)
    script.nothing()
    script.wait(5).skip()
    script >> success() << UNKNOWN
    script >> Data(A, b"welcome")
    script.nothing()
    assert stream.state is StreamState.CLOSED
    assert script.listeners[A].wakes == 0


def test_a_failure_that_comes_too_late_is_ignored() -> None:
    script, stream = asked()
    stream.abort(Reason.TIMEOUT)
    script >> failure()
    script.nothing()
    assert script.listeners[A].causes == []


def test_answers_to_successes_are_bounded() -> None:
    script = Script().open()
    script.session.send_binary(bytes(ANSWER_LIMIT_BYTES))
    script >> success(C)
    assert len(script.hear()) == 1


@pytest.mark.parametrize("second", [success(credits=1000), failure()], ids=["success", "failure"])
def test_a_second_result_changes_nothing(second: Control) -> None:
    script, stream = connected()
    script >> second
    script.nothing()
    assert (stream.state, stream.window.available) == (StreamState.OPEN, 64)
    assert script.listeners[A].causes == []


def test_a_result_for_a_user_is_ignored() -> None:
    script = Script().open() >> connect() >> Data(A, b"hello") << grant()
    script >> success() >> failure()
    script.nothing()
    assert script.session.streams == {A: script.stream()}


def test_what_is_said_of_it_before_the_result_is_not_believed() -> None:
    script, stream = asked()
    script >> grant(credits=8) >> control(Event.PAUSE_STREAM) >> control(Event.PONG_CLIENT)
    script >> disconnect()
    script.nothing()
    script >> Data(A, b"too early") << Ignored("data for an unknown stream") << UNKNOWN
    assert script.listeners[A].data == []
    assert (stream.state, script.listeners[A].causes) == (StreamState.OPENING, [])
    script >> success(credits=5) << grant()
    assert (stream.window.available, stream.relay_pause_until) == (5, 0)


# The session -------------------------------------------------------------------------------------


def test_the_end_of_the_session_ends_requests_as_well() -> None:
    script, first = asked()
    second = ask(script, B)
    script >> success()
    script.session.lost()
    assert script.listeners[A].causes == script.listeners[B].causes == [Cause.SESSION]
    assert {first.state, second.state} == {StreamState.CLOSED}


def test_a_draining_session_takes_no_requests_and_keeps_its_own() -> None:
    script, stream = asked()
    script.session.drain()
    with pytest.raises(LocalProtocolError, match="asked for while the session is draining"):
        ask(script, B)
    assert B not in script.listeners
    script.nothing()
    script >> success() << grant()
    stream.dialled()
    assert stream.sendable


def test_nothing_is_asked_of_a_session_that_is_not_open() -> None:
    script = Script()
    with pytest.raises(LocalProtocolError, match="session is new"):
        ask(script)
    script.open().session.close()
    script.skip()
    with pytest.raises(LocalProtocolError, match="session is closing"):
        ask(script)
    script.nothing()


def test_ids_are_not_used_twice() -> None:
    script, _ = asked()
    script >> connect(B)
    for client_id in (NIL_ID, A, B):
        with pytest.raises(LocalProtocolError, match="an ID of its own"):
            ask(script, client_id)
    script.skip()
    script >> success() << grant()


def test_with_a_relay() -> None:
    """Both cores: the answer announces a stream just as a connect does."""
    pair = Pair.established()
    local: list[Local] = []

    def open_stream(stream: OutboundStream) -> Local:
        local.append(Local(stream, takes=False))
        return local[0]

    pair.agent.connect_outbound(A, TARGET, open_stream, pair.clock())
    pair.pump()
    assert pair.relay_events == [OutboundRequested(A, TARGET)]
    far = User()
    stream = pair.relay.open(success(), far)
    assert stream is not None
    far.stream = stream
    pair.pump()
    local[0].stream.dialled()
    local[0].stream.send(memoryview(b"ping"))
    far.stream.send(b"pong")
    pair.pump()
    assert (far.data, local[0].data) == (b"ping", b"pong")


ACTIONS = ("ask", "give up", "success", "failure", "data", "disconnect", "finish")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from([A, B])), max_size=30))
def test_no_connection_is_ever_orphaned(actions: list[tuple[str, bytes]]) -> None:
    """Whatever crosses, the agent knows, or has disowned, all that the relay has connected."""
    script = Script().open()
    alive: set[bytes] = set()  # at the relay
    for action, client_id in actions:
        listener = script.listeners.get(client_id)
        if action == "ask" and (listener is None or listener.stream.state is StreamState.CLOSED):
            if client_id not in alive:
                ask(script, client_id)
        elif action == "success":
            alive.add(client_id)
            script >> success(client_id)
        elif action == "failure":
            script >> failure(client_id)
        elif action == "data" and client_id in alive:
            script >> Data(client_id, b"x")
        elif action == "disconnect" and client_id in alive:
            alive.remove(client_id)
            script >> disconnect(client_id)
        elif action in ("give up", "finish") and listener is not None:
            listener.stream.abort(Reason.NORMAL)
        for said in script.hear():
            if isinstance(said, Control) and said.event == Event.DISCONNECT:
                alive.discard(said.client_id)
        script.skip()
        assert alive <= set(script.session.streams)
