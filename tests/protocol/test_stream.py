"""One stream at the agent: its start, its credits both ways, its ends (sections 4 to 6)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import LocalProtocolError
from nexusg.protocol.credit import (
    BATCH,
    GRANT_TIMEOUT_S,
    UDP_BATCH,
    UDP_WINDOW,
    WINDOW,
    CappedWindow,
)
from nexusg.protocol.governor import LANE_BUDGET
from nexusg.protocol.messages import MAX_PAYLOAD_BYTES, Control, Event, Reason
from nexusg.protocol.session import SETTLE_S, TRICKLE_S
from nexusg.protocol.states import StreamState
from nexusg.protocol.stream import RELAY_PAUSE_S, Cause, Stream
from tests.support.script import (
    A,
    B,
    Close,
    Data,
    Script,
    connect,
    control,
    disconnect,
    grant,
)


if TYPE_CHECKING:
    from tests.support.script import Listener

S = StreamState
PAUSE = control(Event.PAUSE_STREAM, reason="buffer_full")
RESUME = grant(credits=0)


def opened(**fields: object) -> tuple[Script, Stream]:
    """A session with one settled stream whose target is connected."""
    script = Script().open()
    script >> connect(**fields) >> Data(A, b"prelude")
    stream = script.stream()
    stream.dialled()
    script.skip()
    return script, stream


def flushing(sent: int = 10, size: int = MAX_PAYLOAD_BYTES) -> tuple[Script, Stream]:
    """The same, after a response of ``sent`` messages and the end of the local service."""
    script, stream = opened()
    for _ in range(sent):
        stream.send(memoryview(bytes(size)))
    stream.end_of_file(script.now)
    script.skip()
    return script, stream


def listener(script: Script) -> Listener:
    return script.listeners[A]


# The start (section 5.4) -------------------------------------------------------------------------


def test_what_the_connect_says() -> None:
    script = Script().open()
    script >> connect(client_ip="[2001:db8::1]:5", is_tls=True, credits=70, hostname="tcp:443")
    stream = script.stream()
    assert (stream.id, stream.conn_port, stream.client_ip) == (A, 443, "[2001:db8::1]:5")
    assert (stream.hostname, stream.is_tls, stream.is_udp) == ("tcp:443", True, False)
    assert (stream.state, stream.window.available) == (S.OPENING, 70)


@pytest.mark.parametrize("transport", ["", "tcp", "quic", "UDP"])
def test_other_transports_mean_tcp(transport: str) -> None:
    script = Script().open() >> connect(transport=transport)
    assert not script.stream().is_udp


def test_settled_by_the_first_data() -> None:
    script = Script().open() >> connect()
    script.nothing()
    script >> Data(A, b"GET /") << grant(credits=WINDOW)
    assert script.stream().settled
    assert listener(script).data == [b"GET /"]
    assert listener(script).wakes == 1
    script.nothing()


def test_settled_after_a_moment() -> None:
    script = Script().open() >> connect()
    script.wait(SETTLE_S - 0.001).nothing()
    script.wait(0.002) << grant(credits=WINDOW)
    script.nothing()
    assert listener(script).wakes == 1


def test_empty_data_settles_too() -> None:
    script = Script().open() >> connect() >> Data(A) << grant(credits=WINDOW)
    assert listener(script).data == [b""]


def test_nothing_can_be_sent_before() -> None:
    script = Script().open() >> connect()
    stream = script.stream()
    stream.dialled()
    assert not stream.sendable
    assert not stream.pingable
    script.wait(SETTLE_S)
    assert stream.sendable
    assert stream.pingable


def test_a_deferred_disconnect_takes_the_place_of_the_grant() -> None:
    """Case 18: the dial has failed before the relay knew the stream."""
    for settle in (lambda s: s >> Data(A, b"lost"), lambda s: s.wait(SETTLE_S)):
        script = Script().open() >> connect()
        script.stream().abort(Reason.DIAL_FAILED)
        script.nothing()
        settle(script)
        script << disconnect(reason=Reason.DIAL_FAILED)
        assert listener(script).data == [], "nobody is left to take it"
        script.wait(1).nothing()
        script >> Data(A, b"late")
        script.nothing()


def test_a_disconnect_received_before_it_is_settled() -> None:
    script = Script().open() >> connect() >> disconnect()
    stream = script.stream()
    assert listener(script).causes == [Cause.USER]
    assert stream.state is S.DELIVERING
    stream.dialled()
    stream.delivered()
    script.wait(1).nothing()


def test_a_disconnect_received_cancels_the_deferred_one() -> None:
    script = Script().open() >> connect()
    script.stream().abort(Reason.DIAL_FAILED)
    script >> disconnect()
    script.wait(1).nothing()
    assert listener(script).causes == [], "its shell ended it"


def test_a_banner_and_its_end_wait_for_the_relay() -> None:
    """A service that speaks first and closes at once."""
    script = Script().open() >> connect()
    stream = script.stream()
    stream.dialled()
    assert not stream.sendable
    script.wait(SETTLE_S) << grant()
    assert stream.send(memoryview(b"220 ready")) == 9
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is None
    script << Data(A, b"220 ready") << disconnect(reason=Reason.NORMAL)
    script.nothing()


def test_an_end_before_it_is_settled() -> None:
    script = Script().open() >> connect()
    stream = script.stream()
    stream.dialled()
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is None
    script.nothing()
    script.wait(SETTLE_S) << disconnect(reason=Reason.NORMAL)
    script.nothing()


def test_a_stream_without_a_shell() -> None:
    """A refused one: its placeholder takes everything in silence."""
    script = Script().open()
    stream = Stream(script.session, connect(), WINDOW, script.now)
    stream.settle()
    script << grant()
    stream.listener.on_data(b"x")
    stream.ended(Cause.SESSION)
    stream.settle()
    script.nothing()
    assert stream.state is S.CLOSED


# Sending -----------------------------------------------------------------------------------------


def test_data_is_cut_into_the_largest_messages() -> None:
    script, stream = opened()
    payload = bytes(range(256)) * 300
    assert stream.send(memoryview(payload)) == len(payload)
    sizes = [len(message.payload) for message in script.hear() if isinstance(message, Data)]
    assert sizes == [MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, len(payload) - 2 * MAX_PAYLOAD_BYTES]
    assert b"".join(m.payload for m in script.hear() if isinstance(m, Data)) == payload
    assert (stream.bytes_out, stream.window.sent) == (len(payload), 3)


def test_no_data_is_no_message() -> None:
    script, stream = opened()
    assert stream.send(memoryview(b"")) == 0
    script.nothing()


def test_only_what_the_credits_allow() -> None:
    """Case 26: 64 credits are 64 messages, of which the last may be small."""
    script, stream = opened()
    for _ in range(WINDOW - 1):
        assert stream.sendable
        stream.send(memoryview(b"x"))
    assert stream.send(memoryview(bytes(MAX_PAYLOAD_BYTES + 5))) == MAX_PAYLOAD_BYTES
    assert not stream.sendable
    assert stream.send(memoryview(b"x")) == 0
    assert len(script.hear()) == WINDOW
    assert stream.bytes_out == WINDOW - 1 + MAX_PAYLOAD_BYTES


def test_a_grant_wakes_the_sender() -> None:
    """Case 27."""
    script, stream = opened(credits=1)
    stream.send(memoryview(b"x"))
    wakes = listener(script).wakes
    script >> grant(credits=2)
    assert listener(script).wakes == wakes + 1
    assert stream.send(memoryview(bytes(3 * MAX_PAYLOAD_BYTES))) == 2 * MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("credits", [0, -1, -(2**63)])
def test_grants_of_nothing(credits: int) -> None:
    script, stream = opened(credits=2)
    script >> grant(credits=credits)
    assert stream.window.available == 2


def test_huge_grants() -> None:
    script, stream = opened()
    for _ in range(3):
        script >> grant(credits=2**63 - 1)
    assert stream.window.available == 1 << 20


def test_early_grants_count() -> None:
    script = Script().open() >> connect() >> grant(credits=16)
    assert script.stream().window.available == WINDOW + 16
    script.nothing()


def test_without_credits_in_the_connect_it_is_unlimited() -> None:
    """Case 28."""
    script, stream = opened(credits=0)
    payload = memoryview(bytes(100 * MAX_PAYLOAD_BYTES))
    assert stream.send(payload) == len(payload)
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is None
    *data, end = script.hear()
    assert len(data) == 100
    assert end == disconnect(reason=Reason.NORMAL)


def test_a_relay_of_v036_may_pause_us() -> None:
    """Section 4.3: until its resume_stream, or for half a minute."""
    script, stream = opened()
    script >> control(Event.PAUSE_STREAM)
    assert not stream.sendable
    assert stream.send(memoryview(b"already read")) == 12, "what is read is not kept back"
    script >> grant(credits=0)
    assert stream.sendable
    wakes = listener(script).wakes
    script >> control(Event.PAUSE_STREAM)
    script.wait(RELAY_PAUSE_S - 1)
    assert not stream.sendable
    script.wait(6)
    assert stream.sendable
    assert listener(script).wakes == wakes + 1


@pytest.mark.parametrize("state", [s for s in StreamState if s is not S.OPEN])
def test_data_is_for_open_streams(state: StreamState) -> None:
    script, stream = opened()
    stream.state = state
    assert not stream.sendable
    with pytest.raises(LocalProtocolError, match=state.value):
        stream.send(memoryview(b"x"))
    assert stream.window.sent == 0
    script.nothing()


def test_data_after_our_close_frame_is_dropped() -> None:
    """The shell may have been reading when somebody else closed the session."""
    script, stream = opened()
    script.session.close()
    assert stream.send(memoryview(b"dropped")) == 7
    script << Close()
    script.nothing()


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 3 * MAX_PAYLOAD_BYTES)),
            st.tuples(st.just("grant"), st.integers(-1, 9)),
        ),
        max_size=12,
    ),
    credits=st.integers(1, 12),
)
def test_w2_each_message_on_the_wire_has_cost_a_credit(
    steps: list[tuple[str, int]], credits: int
) -> None:
    script, stream = opened(credits=credits)
    allowed, taken = credits, 0
    for what, number in steps:
        if what == "grant":
            script >> grant(credits=number)
            allowed += max(number, 0)
        else:
            taken += stream.send(memoryview(bytes(number)))
        frames = [message for message in script.hear() if isinstance(message, Data)]
        assert len(frames) == stream.window.sent == allowed - stream.window.available
        assert sum(len(frame.payload) for frame in frames) == taken == stream.bytes_out
        assert all(0 < len(frame.payload) <= MAX_PAYLOAD_BYTES for frame in frames)


# Forward credits (section 5.2) -------------------------------------------------------------------


SECOND = WINDOW - WINDOW // 16  # what the second grant waits for


def test_a_batch_for_each_batch_taken() -> None:
    """Case 22; the second grant waits until it can be nearly a window."""
    script, stream = opened()
    stream.consumed()  # the prelude, which has cost no credit
    fill(script, SECOND)
    stream.consumed(SECOND - 1)
    script.nothing()
    stream.consumed()
    script << grant(credits=SECOND)
    fill(script, 28)
    stream.consumed(7)
    script.nothing()
    stream.consumed()
    script << grant(credits=BATCH)
    stream.consumed(20)
    script << grant(credits=20)
    script.nothing()


def fill(script: Script, messages: int) -> None:
    """The relay sends so many more."""
    for _ in range(messages):
        script >> Data(A, b"x")


@pytest.mark.parametrize("window", [WINDOW, 96, 200])
@pytest.mark.parametrize("lost", [0, 1])
def test_the_window_recovers_from_a_lost_first_grant(window: int, lost: int) -> None:
    """Case 23, with the relay's own rule."""
    script = Script(forward_window=window).open() >> connect() >> Data(A, b"prelude")
    script.stream().consumed()
    relay, seen = CappedWindow(), 0
    for _ in range(4 * window):
        for message in script.hear()[seen:]:
            seen += 1
            if seen > lost:
                relay.grant(message.credits)  # type: ignore[union-attr]
        assert relay.ready
        relay.take()
        script >> Data(A, b"x")
        script.stream().consumed()
    full = min(window, LANE_BUDGET) - lost * min(window // 16, BATCH)
    assert full <= relay.capacity <= window
    assert relay.available >= full - BATCH


def test_what_came_before_the_first_grant_brings_no_credits() -> None:
    """The relay has not counted it, and its window would be larger for good."""
    script = Script().open() >> connect()
    stream = script.stream()
    stream.pause()
    fill(script, 100)
    stream.consumed(70)
    script << PAUSE
    stream.resume()
    script << grant(credits=WINDOW)
    stream.consumed(30)
    fill(script, SECOND)
    stream.consumed(SECOND - 1)
    script.nothing()
    stream.consumed()
    script << grant(credits=SECOND)


def test_more_than_was_granted_brings_no_credits() -> None:
    """The relay was still without limits: the grant was under way, or lost."""
    script, stream = opened()
    stream.consumed()
    fill(script, 2 * WINDOW)
    stream.consumed(SECOND)
    script.nothing()
    stream.consumed(WINDOW - SECOND + BATCH)
    script << grant(credits=BATCH)
    stream.consumed(WINDOW - BATCH)
    script << grant(credits=WINDOW - BATCH)
    assert stream.granter.given == 2 * WINDOW


def test_consumption_before_it_is_settled_is_not_lost() -> None:
    script = Script().open() >> connect()
    script.stream().consumed(9)
    script.nothing()
    script.wait(SETTLE_S) << grant(credits=WINDOW)
    fill(script, SECOND)
    script.stream().consumed(SECOND - 10)
    script.nothing()
    script.stream().consumed()
    script << grant(credits=SECOND)


def test_udp_credits_are_many_and_come_back_on_receipt() -> None:
    """Case 35, section 5.7: a relay that waits for them would block the whole port."""
    script = Script().open() >> connect(transport="udp")
    script >> Data(A, b"datagram") << grant(credits=UDP_WINDOW)
    stream, window = script.stream(), CappedWindow()
    window.grant(UDP_WINDOW)
    for number in range(10 * UDP_WINDOW):
        window.take()
        script >> Data(A)
        stream.consumed()
        for said in script.hear():
            assert isinstance(said, Control)
            window.grant(said.credits)
        script.skip()
        assert window.available >= UDP_WINDOW // 2
        assert window.available > UDP_WINDOW - 2 * UDP_BATCH or number < UDP_WINDOW
    assert not stream.starved


def test_one_datagram_is_one_message() -> None:
    """Section 5.7: none is cut or joined, not even an empty one."""
    script, stream = opened(transport="udp")
    for size in (0, 1, MAX_PAYLOAD_BYTES):
        stream.send_datagram(memoryview(bytes(size)))
        script << Data(A, bytes(size))
    assert (stream.bytes_out, stream.window.sent) == (MAX_PAYLOAD_BYTES + 1, 3)
    with pytest.raises(LocalProtocolError, match="a datagram of 32769 bytes is too large"):
        stream.send_datagram(bytes(MAX_PAYLOAD_BYTES + 1))
    script.nothing()


def test_a_datagram_costs_a_credit() -> None:
    _, stream = opened(transport="udp", credits=1)
    stream.send_datagram(b"one")
    assert not stream.sendable
    with pytest.raises(LocalProtocolError, match="needs a credit"):
        stream.send_datagram(b"two")


def test_no_datagram_goes_out_at_the_end() -> None:
    script, stream = opened(transport="udp")
    script.session.close()
    script.skip()
    stream.send_datagram(b"dropped like any message")
    assert stream.bytes_out == 0
    script.nothing()
    stream.abort(Reason.NORMAL)
    with pytest.raises(LocalProtocolError, match="stream that is closed"):
        stream.send_datagram(b"x")


def test_udp_needs_no_barrier() -> None:
    script, stream = opened(transport="udp")
    for _ in range(20):
        stream.send(memoryview(bytes(2048)))
    stream.end_of_file(script.now)
    assert stream.flush(script.now) is None
    assert script.hear()[20:] == [disconnect(reason=Reason.NORMAL)]


# Pause and resume (section 5.3) ------------------------------------------------------------------


def test_a_pause_withholds_grants() -> None:
    """A grant would cancel the pause."""
    script, stream = opened()
    stream.pause()
    script << PAUSE
    stream.pause()
    stream.consumed()
    fill(script, SECOND + 3)
    stream.consumed(SECOND + 3)
    stream.trickle()
    script.nothing()
    stream.resume()
    script << grant(credits=SECOND + 3)
    stream.resume()
    script.nothing()


def test_a_resume_with_nothing_to_grant() -> None:
    script, stream = opened()
    stream.pause()
    stream.consumed(3)
    script << PAUSE
    stream.resume()
    script << RESUME
    stream.resume()
    script.nothing()


def test_a_pause_before_it_is_settled() -> None:
    """The flood must not begin; the first grant comes with the resume (G3)."""
    script = Script().open() >> connect()
    stream = script.stream()
    stream.pause()
    script.nothing()
    script.wait(SETTLE_S) << PAUSE
    script.nothing()
    stream.resume()
    script << grant(credits=WINDOW)
    script.nothing()


def test_a_pause_that_is_over_before_it_is_settled() -> None:
    script = Script().open() >> connect()
    script.stream().pause()
    script.stream().resume()
    script.nothing()
    script.wait(SETTLE_S) << grant(credits=WINDOW)
    script.nothing()


@pytest.mark.parametrize("end", ["disconnect", "abort"])
def test_a_pause_of_a_stream_that_is_over(end: str) -> None:
    script, stream = opened()
    if end == "disconnect":
        script >> disconnect()
    else:
        stream.abort(Reason.SHUTDOWN)
    script.skip()
    stream.pause()
    stream.consumed(100)
    stream.resume()
    stream.trickle()
    script.nothing()


# The trickle (section 5.2) -----------------------------------------------------------------------


def test_a_starved_stream_gets_one_credit_now_and_then() -> None:
    """The relay would give up an upload to a service that stalls for half a minute."""
    script, stream = opened()
    fill(script, SECOND - 1)
    assert not stream.starved
    script.wait(2 * TRICKLE_S).skip()
    script >> Data(A, b"x")
    assert stream.starved, "if the first grant was lost, by our books four are left in the end"
    grants: list[float] = []
    for _ in range(600):
        script.wait(0.1)
        if grant(credits=1) in script.hear():
            grants.append(script.now)
            assert not stream.starved
            script >> Data(A, b"one more")
        script.skip()
    pauses = [later - earlier for earlier, later in itertools.pairwise(grants)]
    assert len(grants) >= 4
    assert all(9 < pause < 16 for pause in pauses), pauses
    counted = stream.frames_in - 1  # but the prelude
    assert stream.granter.given == counted + WINDOW - SECOND, "a credit for each message, no more"


def test_no_trickle_while_paused() -> None:
    script, stream = opened()
    for _ in range(WINDOW):
        script >> Data(A, b"x")
    assert stream.starved
    stream.pause()
    script << PAUSE
    script.wait(3)
    for _ in range(9):
        script.wait(4)
        assert not [m for m in script.hear() if m == grant(credits=1)]


@pytest.mark.parametrize("before", ["settled", "after"])
def test_no_trickle_at_the_ends(before: str) -> None:
    script = Script().open() >> connect()
    stream = script.stream()
    if before == "after":
        script >> Data(A) >> disconnect()
        script.skip()
    assert not stream.starved
    stream.trickle()
    script.nothing()


# The local service has finished (section 6.4) ----------------------------------------------------


@pytest.mark.parametrize("size", [1, 8 * 1024])
def test_a_short_reply_needs_no_barrier(size: int) -> None:
    script, stream = opened()
    stream.send(memoryview(bytes(size)))
    stream.end_of_file(script.now, Reason.LOCAL_ERROR)
    assert stream.flush(script.now) is None
    script << Data(A, bytes(size)) << disconnect(reason=Reason.LOCAL_ERROR)
    assert stream.state is S.CLOSED


def test_the_barrier_pads_waits_and_ends() -> None:
    """Case 30."""
    script, stream = flushing(sent=10)
    deadline = stream.flush(script.now)
    assert deadline == script.now + GRANT_TIMEOUT_S
    for _ in range(6):
        script << Data(A, b"")
    script.nothing()
    assert (stream.state, stream.pingable) == (S.FLUSHING, False)
    script >> grant(credits=8)
    assert stream.flush(script.now) == script.now + GRANT_TIMEOUT_S
    script >> grant(credits=8)
    assert stream.flush(script.now) is None
    script << disconnect(reason=Reason.NORMAL)
    assert A not in script.session.streams


def test_forward_data_flows_during_the_barrier() -> None:
    script, stream = flushing()
    stream.flush(script.now)
    script.skip()
    stream.consumed()
    fill(script, SECOND - 1)
    script >> Data(A, b"more")
    assert listener(script).data[-1] == b"more"
    stream.consumed(SECOND)
    script << grant(credits=SECOND)


def test_the_barrier_gives_up() -> None:
    """A relay that never acknowledges cannot keep the stream."""
    script, stream = flushing()
    deadline = stream.flush(script.now)
    assert deadline is not None
    script.skip()
    script.wait(deadline - script.now)
    script.skip()
    assert stream.flush(deadline) is None
    script << disconnect(reason=Reason.NORMAL)


def test_a_disconnect_abandons_the_barrier() -> None:
    """Case 31: no more pads, no disconnect, though a late grant may come."""
    script, stream = flushing()
    stream.flush(script.now)
    script.skip()
    script >> disconnect() >> grant(credits=8)
    assert listener(script).causes == [Cause.USER]
    with pytest.raises(LocalProtocolError, match="delivering"):
        stream.flush(script.now)
    stream.delivered()
    script.nothing()


def test_a_closing_session_ends_the_barrier() -> None:
    script, stream = flushing(sent=3)
    script.session.close()
    assert stream.flush(script.now) is None
    assert stream.state is S.CLOSED
    script << Close()
    script.nothing()


def test_flush_is_for_flushing_streams() -> None:
    script, stream = opened()
    with pytest.raises(LocalProtocolError):
        stream.flush(script.now)


# Ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.OPENING, S.OPEN, S.FLUSHING])
def test_abort(state: StreamState) -> None:
    script, stream = opened()
    stream.state = state
    stream.abort(Reason.TIMEOUT)
    stream.abort(Reason.NORMAL)
    script << disconnect(reason=Reason.TIMEOUT)
    script.nothing()
    assert stream.state is S.CLOSED
    assert script.session.streams == {}
    script >> Data(A, b"late") >> grant() >> disconnect()
    script.nothing()


def test_an_abort_while_delivering_says_nothing() -> None:
    """The relay has forgotten the stream."""
    script, stream = opened()
    script >> disconnect()
    stream.abort(Reason.LOCAL_ERROR)
    assert stream.state is S.CLOSED
    script.nothing()


def test_the_user_goes() -> None:
    """Case 21: what is buffered is still delivered, and nothing is said any more."""
    script, stream = opened()
    script >> Data(A, b"last") >> disconnect()
    assert listener(script).data == [b"prelude", b"last"]
    assert listener(script).causes == [Cause.USER]
    assert not stream.sendable
    stream.consumed(50)
    stream.delivered()
    assert stream.state is S.CLOSED
    script.wait(1).nothing()


def test_a_dial_that_returns_after_the_user_has_gone() -> None:
    script = Script().open() >> connect() >> Data(A, b"request") >> disconnect()
    stream = script.stream()
    stream.dialled()
    assert stream.state is S.DELIVERING
    stream.delivered()
    script << grant()
    script.nothing()


def test_an_old_shell_does_not_end_the_new_stream() -> None:
    """The ID is used again while the old stream still delivers."""
    script, old = opened()
    script >> disconnect() >> connect() >> Data(A, b"new")
    new = script.stream()
    assert new is not old
    script << grant()
    old.delivered()
    assert script.session.streams == {A: new}
    script >> Data(A, b"more")
    assert listener(script).data == [b"new", b"more"]
    script.nothing()


def test_activity_counts_messages_both_ways() -> None:
    script, stream = opened()
    seen = {stream.activity}
    script >> Data(A, b"")
    seen.add(stream.activity)
    stream.send(memoryview(b"x"))
    seen.add(stream.activity)
    assert len(seen) == 3
    assert (stream.bytes_in, stream.frames_in) == (7, 2)


def test_streams_do_not_mix() -> None:
    script, first = opened()
    script >> connect(B) >> Data(B, b"second")
    script.skip()
    script.stream(B).dialled()
    script.stream(B).send(memoryview(b"two"))
    first.send(memoryview(b"one"))
    script << Data(B, b"two") << Data(A, b"one")
    script >> disconnect(B) >> Data(A, b"still")
    assert listener(script).data == [b"prelude", b"still"]
    assert script.listeners[B].causes == [Cause.USER]
