"""Relay streams, driven against an agent session in memory (tests/support/pair.py)."""

from __future__ import annotations

import pytest

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import BATCH, WINDOW
from nexusg.protocol.lanes import Lane
from nexusg.protocol.messages import Control, Event, Reason, encode_control, encode_grant
from nexusg.protocol.stream import Cause
from tests.support.pair import Pair, User


def to_relay(pair: Pair, message: bytes) -> None:
    """Have the agent's wire send ``message`` whatever its session thinks."""
    pair.agent.wire.send_binary(message)
    pair.pump()


def fill_control_lane(pair: Pair) -> None:
    """Use up the room there is for grants."""
    while pair.relay.room(Lane.CONTROL):
        pair.relay.send(Lane.CONTROL, encode_control(Control(Event.PONG_CLIENT, bytes(16))))


def test_forward_is_unlimited_until_the_first_grant_and_counted_after_it() -> None:
    pair = Pair.established(local_takes=False)
    user, local = pair.open(None)
    assert user.stream.window.unlimited
    user.stream.send(b"first")
    pair.pump()  # it settles the stream: the agent grants
    assert not user.stream.window.unlimited
    for _ in range(WINDOW):
        assert user.stream.sendable
        assert user.stream.send(b"x")
    assert not user.stream.sendable
    with pytest.raises(LocalProtocolError, match="needs a credit"):
        user.stream.send(b"x")
    pair.pump()
    assert local.data == b"first" + b"x" * WINDOW
    local.stream.consumed(WINDOW)
    pair.pump()
    assert user.credit_calls >= 2
    assert user.stream.sendable
    assert user.stream.bytes_out == WINDOW + 5


def test_a_first_grant_below_the_window_makes_it_the_capacity() -> None:
    pair = Pair.established()
    user, _ = pair.open(None)
    to_relay(pair, encode_grant(user.stream.id, 3))
    assert user.stream.window.available == 3
    to_relay(pair, encode_grant(user.stream.id, 1000))
    assert user.stream.window.available == WINDOW


def test_a_prelude_of_64_kib_is_one_message() -> None:
    pair = Pair.established()
    prelude = bytes(range(256)) * 256
    _, local = pair.open(prelude)
    assert local.frames == [prelude]


def test_reverse_credits_come_in_batches_as_the_user_takes() -> None:
    pair = Pair.established()
    user, local = pair.open(user=User(takes=False))
    assert local.stream.window.available == WINDOW
    local.stream.send(memoryview(bytes(WINDOW * 32768)))
    pair.pump()
    assert len(user.frames) == WINDOW
    assert user.stream.bytes_in == WINDOW * 32768
    assert not local.stream.sendable
    user.stream.consumed(BATCH - 1)
    pair.pump()
    assert local.stream.window.available == 0
    user.stream.consumed()
    pair.pump()
    assert local.stream.window.available == BATCH


def test_an_empty_message_costs_a_credit_and_is_acknowledged() -> None:
    pair = Pair.established()
    user, local = pair.open()
    for _ in range(BATCH):
        local.stream.window.take()
        pair.agent.wire.send_data(local.stream.id, b"")
    pair.pump()
    assert user.frames == [b""] * BATCH
    assert local.stream.window.unacknowledged == 0


def test_a_relay_of_old_grants_nothing() -> None:
    pair = Pair.established()
    user, local = pair.open(credits=0)
    assert local.stream.window.unlimited
    assert user.stream.granter.held
    local.stream.send(memoryview(b"x"))
    pair.pump()
    user.stream.consumed(20)
    pair.pump()
    assert local.stream.window.acknowledged == 0


def test_the_user_goes() -> None:
    pair = Pair.established()
    user, local = pair.open(b"last words")
    assert user.stream.end()
    pair.pump()
    assert local.cause is Cause.USER
    assert local.data == b"last words"
    assert not user.stream.open
    assert not user.stream.sendable
    assert user.stream.end(), "a second time changes nothing"
    with pytest.raises(LocalProtocolError, match="has ended"):
        user.stream.send(b"x")
    user.stream.consumed(20)
    assert not pair.collect()


def test_data_for_a_stream_that_the_relay_has_forgotten_is_dropped() -> None:
    pair = Pair.established()
    user, local = pair.open()
    user.stream.forget()
    local.stream.send(memoryview(b"late"))
    pair.pump()
    assert (user.frames, local.cause) == ([], None)


def test_the_agent_ends_the_stream() -> None:
    pair = Pair.established()
    user, local = pair.open()
    local.stream.send(memoryview(b"reply"))
    local.stream.abort(Reason.LOCAL_ERROR)
    pair.pump()
    assert user.data == b"reply"
    assert user.reason == "local_error"
    assert not user.stream.open
    assert pair.relay.streams == {}


def test_a_pause_is_about_reading_and_any_resume_ends_it() -> None:
    pair = Pair.established(local_takes=False)
    user, local = pair.open()
    local.stream.dialled()
    local.stream.pause()
    pair.pump()
    assert user.stream.paused
    assert user.stream.sendable, "what has been read still goes out"
    local.stream.resume()
    pair.pump()
    assert not user.stream.paused
    local.stream.pause()
    pair.pump()
    to_relay(pair, encode_grant(local.stream.id, 8))
    assert not user.stream.paused, "a grant cancels a pause"


def test_a_grant_can_be_lost() -> None:
    pair = Pair.established()
    user, local = pair.open(None)
    user.stream.deaf_to_grants = 1
    user.stream.send(b"1")
    pair.pump()
    assert user.stream.window.unlimited, "the first grant was lost"
    for _ in range(WINDOW):
        user.stream.send(b"x")
    pair.pump()
    assert not user.stream.window.unlimited
    assert user.stream.window.capacity == WINDOW
    assert len(local.frames) == WINDOW + 1


def test_the_session_ends() -> None:
    pair = Pair.established()
    user, _ = pair.open()
    pair.relay.lost()
    assert user.reason == Reason.SESSION_ENDED.value
    assert not user.stream.open


def test_a_grant_stays_due_while_its_lane_is_full() -> None:
    pair = Pair.established(lanes=2)
    user, local = pair.open(user=User(takes=False))
    local.stream.send(memoryview(bytes(16 * 32768)))
    pair.pump()
    fill_control_lane(pair)
    user.stream.consumed(BATCH)
    assert user.stream.granter.given == WINDOW
    user.stream.consumed(BATCH)
    pair.pump()
    assert user.stream.granter.given == WINDOW + 2 * BATCH
    assert local.stream.window.acknowledged == 2 * BATCH


def test_a_stream_that_ended_is_owed_nothing() -> None:
    pair = Pair.established(lanes=2)
    user, _ = pair.open(user=User(takes=False))
    fill_control_lane(pair)
    user.stream.consumed(BATCH)
    user.stream.end()
    pair.pump()
    assert user.stream.granter.given == WINDOW


def test_what_a_full_data_lane_loses() -> None:
    pair = Pair.established(lanes=2)
    user, local = pair.open()
    assert user.stream.send(b"1")
    assert user.stream.send(b"2")
    assert not user.stream.send(b"3")
    assert pair.relay.open(pair.connect(), User()) is None
    assert not user.stream.end(), "a lost disconnect"
    pair.pump()
    assert local.data == b"12"
    assert local.cause is None, "a zombie at the agent"
