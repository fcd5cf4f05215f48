"""One stream: dial, early data, both directions, and every way it can end (PROTOCOL.md 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from nexusg.agent import streams as module
from nexusg.config.model import Limits
from nexusg.errors import NoRoute, TargetError
from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from nexusg.targets.sockets import SocketTarget
from tests.conftest import MS
from tests.support.pair import User
from tests.support.rig import Rig


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.agent.streams import StreamPump


KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig with the default limits."""
    rig = Rig()
    yield rig
    rig.stop()


def small_rig() -> Rig:
    """A rig whose stream budget a test can fill: 70,000 bytes, and at most 140,000."""
    return Rig(Limits(stream_buffer_bytes=70_000, stream_buffer_max_bytes=140_000))


# Opening ---------------------------------------------------------------------------------------


def test_data_reaches_the_local_service_and_comes_back(rig: Rig) -> None:
    """The plain life of a stream, with both events and their figures."""
    user, _, local = rig.open(b"GET /")
    assert local.recv(100) == b"GET /"
    local.send(b"hello")
    rig.run()
    assert user.data == b"hello"
    (connected,) = rig.named("stream.connected")
    assert connected.hostname == "app.example.com"
    assert connected.target == "memory"
    assert connected.client == "192.0.2.7:50000"
    local.close()
    rig.run()
    assert user.reason == "normal"
    closed = rig.closed()
    assert (closed.reason, closed.ended_by, closed.error) == ("normal", "target", "")
    assert (closed.bytes_in, closed.bytes_out) == (5, 5)


def test_early_data_is_kept_while_dialling(rig: Rig) -> None:
    """Section 6.2: what arrives during the dial is delivered first, in order."""
    rig.connector.gate.clear()
    user, pump, local = rig.open(b"one ")
    assert user.stream.send(b"two ")
    rig.run()
    assert pump.buffered_bytes == 8
    rig.connector.gate.set()
    rig.run()
    assert user.stream.send(b"three")
    rig.run()
    assert local.recv(100) == b"one two three"
    assert pump.buffered_bytes == 0


@pytest.mark.parametrize(
    "error", [TargetError("refused", "refused"), NoRoute("no mapping for port 443")]
)
def test_a_failed_dial_is_said_to_the_relay(rig: Rig, error: Exception) -> None:
    """Section 6.2: disconnect with reason dial_failed, and the reason in words for the operator."""
    user, _, _ = rig.open(b"x", answer=error)
    assert user.reason == "dial_failed"
    closed = rig.closed()
    assert (closed.reason, closed.ended_by, closed.error) == ("dial_failed", "agent", str(error))
    assert rig.context.counters.dial_failures == 1
    assert not rig.named("stream.connected")


def test_the_end_while_dialling_cancels_the_dial(rig: Rig) -> None:
    """Section 6.2: the user left, nothing is buffered: nobody needs the local service."""
    rig.connector.gate.clear()
    user, pump, _ = rig.open(b"")
    user.stream.end()
    rig.run()
    assert pump.done
    assert rig.closed().ended_by == "user"


def test_the_end_while_dialling_keeps_what_was_sent(rig: Rig) -> None:
    """Section 6.6: what the relay accepted reaches the local service, then the end of file."""
    rig.connector.gate.clear()
    user, _, local = rig.open(b"last words")
    user.stream.end()
    rig.run()
    rig.connector.gate.set()
    rig.run()
    assert local.recv(100) == b"last words"
    assert local.recv(100) == b""
    local.close()
    gevent.sleep(50 * MS)
    rig.run()
    assert rig.closed().reason == "normal"


def test_a_target_that_comes_too_late_is_closed(rig: Rig) -> None:
    """The session went while the dial was about to succeed."""
    rig.connector.gate.clear()
    _, pump, local = rig.open(None)
    rig.connector.gate.set()
    main, pump._main = pump._main, None  # type: ignore[assignment]  # so that it is not killed
    pump.finish(Reason.SHUTDOWN, "agent", "")
    main.join(1)
    assert local.recv(10) == b""
    pump._main = main


# Towards the local service ---------------------------------------------------------------------


def test_a_slow_local_service_is_written_to_later(rig: Rig) -> None:
    """What the service does not take at once waits in the backlog, and credits wait with it."""
    user, pump, local = rig.open(b"", limit_bytes=10)
    for _ in range(64):
        assert user.stream.send(b"0123456789")
    rig.run()
    assert pump.buffered_bytes == 630
    assert not user.stream.window.available
    received = b""
    while len(received) < 640:
        received += local.recv(1000)
        rig.run()
    assert received == b"0123456789" * 64
    assert pump.buffered_bytes == 0
    assert user.stream.window.available >= 64 - 7


def test_a_stream_over_its_budget_is_paused_and_resumed() -> None:
    """Section 5.3: pause_stream and no grants above the budget; both undone when there is room."""
    rig = small_rig()
    user, pump, local = rig.open(b"", limit_bytes=1000)
    for _ in range(3):
        assert user.stream.send(bytes(32 * KIB))
    rig.run()
    assert pump.stream.paused
    assert user.stream.paused
    (paused,) = rig.named("stream.paused")
    assert paused.buffered_bytes > 70_000
    assert rig.context.counters.pauses == 1
    received = 0
    while received < 3 * 32 * KIB:
        received += len(local.recv(64 * KIB))
        rig.run()
    assert not pump.stream.paused
    assert not user.stream.paused
    assert len(rig.named("stream.resumed")) == 1
    rig.stop()


def test_a_stream_over_its_limit_is_ended() -> None:
    """Section 5.5: only beyond a hard limit in bytes, with reason buffer_full."""
    rig = small_rig()
    user, pump, _ = rig.open(b"", limit_bytes=1000)
    for _ in range(5):
        user.stream.send(bytes(32 * KIB))
    rig.run()
    assert pump.done
    assert user.reason == "buffer_full"
    assert "behind" in rig.closed().error
    rig.stop()


def test_an_agent_over_its_budget_pauses_whoever_adds() -> None:
    """The budget of the agent counts over all streams."""
    rig = Rig(Limits(agent_buffer_bytes=70_000))
    first, _, _ = rig.open(b"", limit_bytes=1000)
    second, pump, _ = rig.open(b"", limit_bytes=1000)
    for _ in range(3):
        assert first.stream.send(bytes(32 * KIB))
    rig.run()
    assert second.stream.send(bytes(2000))
    rig.run()
    assert pump.stream.paused
    rig.stop()


def test_a_service_that_stops_reading_may_still_answer(rig: Rig) -> None:
    """A server that answers early and closes: the upload is dropped, the answer is not."""
    user, pump, local = rig.open(b"", limit_bytes=16)
    local.send(b"413 too much")
    local.close()
    assert user.stream.send(bytes(100))
    rig.run()
    assert user.data == b"413 too much"
    assert pump.done
    assert rig.closed().bytes_out == 12


def test_a_break_in_the_backlog(rig: Rig) -> None:
    """The service goes while the backlog is being written: budget and stream are released."""
    user, pump, local = rig.open(b"", limit_bytes=16)
    assert user.stream.send(bytes(100))
    rig.run()
    assert pump.buffered_bytes == 84
    local.close()
    rig.run()
    assert rig.context.budget.used_bytes == 0
    assert pump.done


# Towards the relay -----------------------------------------------------------------------------


def test_without_credit_the_service_is_not_read(rig: Rig) -> None:
    """Rule 2 of ARCHITECTURE.md: acquire a credit, then read."""
    user = User(takes=False)
    _, pump, local = rig.open(b"", user=user, credits=2)
    for part in (b"a", b"b", b"c", b"d"):
        local.send(part)
        rig.run()
    assert user.frames == [b"a", b"b"]
    user.stream.consumed(8)
    rig.run()
    assert user.frames == [b"a", b"b", b"cd"], "small writes are merged while credit is short"
    assert not pump.done


def test_a_full_link_holds_the_service(rig: Rig) -> None:
    """Back-pressure of the WebSocket reaches the local service."""
    user, _, local = rig.open(b"")
    rig.link.full = True
    local.send(b"held back")
    rig.run()
    assert user.data == b""
    rig.link.full = False
    rig.link.room.set()
    rig.run()
    assert user.data == b"held back"


def test_whose_turn_it_is_need_not_find_room(rig: Rig) -> None:
    """Another stream may have filled the link once more in the same moment: on a slow uplink one
    that downloads would do so for ever."""
    user, _, local = rig.open(b"")
    rig.link.full = True
    local.send(b"one")
    rig.run()
    assert not user.data
    rig.link.room.set()
    rig.run()
    assert user.data == b"one"
    local.send(b"two")
    rig.run()
    assert user.data == b"one", "one turn is for one batch"
    rig.link.room.set()
    rig.run()
    assert user.data == b"onetwo"


def test_no_turn_without_credits(rig: Rig) -> None:
    """What is needed may have gone while the stream waited for its turn."""
    user, pump, local = rig.open(b"")
    rig.link.full = True
    local.send(b"held back")
    rig.run()
    pump.stream.window.available = 0
    rig.link.room.set()
    rig.run()
    assert not user.data


@given(sizes=st.lists(st.integers(1, 100 * KIB), max_size=6))
def test_any_answer_arrives_whole(sizes: list[int]) -> None:
    """Whatever the sizes of its writes, the answer is exact and in frames of at most 32 KiB."""
    rig = Rig()
    user, _, local = rig.open(b"", limit_bytes=1 * MIB)
    expected = b""
    for index, size in enumerate(sizes):
        expected += bytes([index]) * size
        local.send(bytes([index]) * size)
    local.close()
    rig.run()
    rig.advance(1)
    assert user.data == expected
    assert max(map(len, user.frames), default=0) <= 32 * KIB
    assert user.reason == "normal"
    rig.stop()


def test_the_barrier_waits_for_the_users_kernel(rig: Rig) -> None:
    """Section 6.4: no disconnect before the relay has acknowledged the last frame."""
    user = User(takes=False)
    _, pump, local = rig.open(b"", user=user)
    local.send(bytes(40 * KIB))
    local.close()
    rig.run()
    assert len(user.data) == 40 * KIB
    assert user.reason is None
    assert not pump.done
    user.stream.consumed(len(user.frames))
    rig.run()
    assert user.reason == "normal"


def test_the_user_may_leave_during_the_barrier(rig: Rig) -> None:
    """Then nothing is waited for any more."""
    user = User(takes=False)
    _, pump, local = rig.open(b"", user=user)
    local.send(bytes(40 * KIB))
    local.close()
    rig.run()
    user.stream.end()
    rig.run()
    gevent.sleep(30 * MS)
    rig.run()
    assert pump.done
    assert rig.closed().ended_by == "user"


def test_the_user_may_leave_together_with_the_last_credits(rig: Rig) -> None:
    """The barrier is woken, and finds that there is nothing left to wait for."""
    user = User(takes=False)
    _, pump, local = rig.open(b"", user=user)
    local.send(bytes(400 * KIB))
    local.close()
    rig.run()
    user.stream.consumed(8)
    user.stream.end()
    rig.run()
    gevent.sleep(30 * MS)
    assert pump.done
    assert rig.closed().ended_by == "user"


def test_a_half_closed_service_still_gets_the_backlog(rig: Rig) -> None:
    """It has said all it will, and the stream ends, but it may still read what was sent to it."""
    user, pump, local = rig.open(b"", limit_bytes=8)
    assert user.stream.send(b"0123456789abcdef")
    rig.run()
    local.shutdown(1)
    rig.run()
    assert user.reason == "normal"
    assert not pump.done
    assert local.recv(100) == b"01234567"
    rig.run()
    assert local.recv(100) == b"89abcdef"
    rig.run()
    assert local.recv(100) == b""
    assert pump.done


def test_a_reset_is_a_local_error(rig: Rig) -> None:
    """Section 4.3: the reason tells the truth."""

    class Reset:
        name = "reset"

        def try_send(self, data: bytes) -> int:
            return len(data)

        def try_read(self, limit: int) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

        def unsent_bytes(self) -> int:
            return 0

        def shutdown_write(self) -> None:
            pass

        def close(self) -> None:
            pass

    user, _, _ = rig.open(b"", answer=Reset())  # type: ignore[arg-type]
    assert user.reason == "local_error"
    assert rig.closed().error == "Connection reset by peer"


# After the user has gone -----------------------------------------------------------------------


def test_a_buffered_upload_survives_the_users_end(rig: Rig) -> None:
    """Case 21: everything accepted reaches the slow service, then the end of file."""
    user, pump, local = rig.open(b"", limit_bytes=100)
    data = bytes(range(250)) * 10
    for start in range(0, 2500, 500):
        assert user.stream.send(data[start : start + 500])
    rig.run()
    user.stream.end()
    rig.run()
    received = b""
    while chunk := local.recv(1000):
        received += chunk
    assert received == data
    local.close()
    gevent.sleep(30 * MS)
    rig.run()
    assert pump.done
    assert rig.closed().bytes_in == 2500


def test_a_service_that_takes_nothing_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 6.6: delivery is bounded by progress."""
    monkeypatch.setattr("nexusg.agent.streams.DELIVERY_TIMEOUT_S", 20 * MS)
    user, pump, _ = rig.open(b"", limit_bytes=8)
    assert user.stream.send(bytes(100))
    rig.run()
    user.stream.end()
    rig.run()
    gevent.sleep(60 * MS)
    assert pump.done
    assert rig.closed().error == "92 bytes could not be delivered to the local service"


def test_the_rest_of_an_answer_is_read_away(rig: Rig) -> None:
    """Closing with unread input would reset the connection and lose the end of the upload."""
    user, pump, local = rig.open(b"upload", credits=1, user=User(takes=False))
    local.send(b"first")
    rig.run()
    local.send(b"nobody reads this")
    user.stream.end()
    rig.run()
    assert local.recv(100) == b"upload"
    assert local.recv(100) == b""
    local.close()
    gevent.sleep(50 * MS)
    rig.run()
    assert pump.done
    assert user.data == b"first"


def test_an_endless_answer_is_cut(rig: Rig) -> None:
    """The local service keeps talking to nobody: it is not listened to for long."""
    user, pump, local = rig.open(b"", credits=1, user=User(takes=False))
    local.send(b"x")
    rig.run()
    user.stream.end()
    rig.run()

    def talk() -> str:
        try:
            while True:
                local.send(bytes(64 * KIB))
        except OSError as error:
            return type(error).__name__

    assert gevent.Greenlet.spawn(talk).get(timeout=2) == "BrokenPipeError"
    rig.run()
    assert pump.done


# Ends from outside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "reason", "ended_by"),
    [
        (Cause.TIMEOUT, "timeout", "agent"),
        (Cause.REPLACED, "unknown", "user"),
        (Cause.SESSION, "session_ended", "session"),
    ],
)
def test_ends_from_outside(rig: Rig, cause: Cause, reason: str, ended_by: str) -> None:
    """Each cause has its reason, the local service is closed at once, and nothing is left over."""
    _, pump, local = rig.open(b"x")
    pump.on_end(cause)
    rig.run()
    assert pump.done
    closed = rig.closed()
    assert (closed.reason, closed.ended_by) == (reason, ended_by)
    local.recv(10)
    assert local.recv(10) == b""


def test_the_end_is_said_once(rig: Rig) -> None:
    """finish() is idempotent, and data that comes after it is dropped."""
    _, pump, _ = rig.open(b"x")
    pump.finish(Reason.SHUTDOWN, "agent", "")
    pump.finish(Reason.TIMEOUT, "agent", "again")
    pump.on_data(b"late")
    rig.run()
    assert rig.closed().reason == "shutdown"
    assert rig.context.counters.closed == {"shutdown": 1}


# What may not happen, and must not matter ------------------------------------------------------


class Odd:
    """A target whose methods a test may replace; it takes everything, and never says anything."""

    name = "odd"

    def __init__(self, **methods: Any) -> None:
        self.taken: list[bytes] = []
        self.closed = Event()
        self.__dict__.update(methods)

    def try_send(self, data: memoryview | bytes) -> int:
        self.taken.append(bytes(data))
        return len(data)

    def send(self, data: memoryview | bytes) -> int:
        return self.try_send(data)

    def try_read(self, limit: int) -> bytes | None:
        return b"" if self.closed.is_set() else None

    def wait_readable(self) -> None:
        self.closed.wait()

    def unsent_bytes(self) -> int:
        return 0

    def shutdown_write(self) -> None:
        self.closed.set()

    def close(self) -> None:
        self.closed.set()


def fail(*_: object) -> Any:
    """What no target may do."""
    raise ValueError("file descriptor cannot be a negative integer")


def take_nothing(_: object) -> int:
    """What `Target.try_send` returns when the service is busy."""
    return 0


def failed(rig: Rig) -> list[type]:
    """The kinds of errors that were reported as bugs, and forget them."""
    kinds = [type(failure) for failure in rig.failures]
    rig.failures.clear()
    return kinds


def test_a_target_that_raises_anything_never_reaches_the_reader(rig: Rig) -> None:
    """One bad stream must not end the session: `on_data` is called by the session's reader."""
    user, _, _ = rig.open(b"", answer=Odd(try_send=fail))
    other, _, local = rig.open(b"fine")
    assert user.stream.send(b"more")
    rig.run()
    assert failed(rig) == [ValueError]
    assert user.reason is None, "what the service says may still be of use"
    assert local.recv(100) == b"fine"
    assert other.reason is None


def test_a_target_that_cannot_be_closed(rig: Rig) -> None:
    """`on_end` is called by the session's reader as well."""
    user, pump, _ = rig.open(b"x", answer=Odd(close=fail))
    pump.on_end(Cause.SESSION)
    assert pump.done
    assert pump not in rig.context.pumps
    assert rig.closed().reason == "session_ended"
    assert failed(rig) == [ValueError]
    assert user.reason is None


@pytest.mark.parametrize("method", ["try_read", "wait_readable", "send", "shutdown_write"])
def test_a_target_that_raises_anything_ends_its_stream(rig: Rig, method: str) -> None:
    """A greenlet that dies must not leave a user behind who waits for ever."""
    busy = {"try_send": take_nothing} if method == "send" else {}
    user, pump, _ = rig.open(b"x", answer=Odd(**{method: fail}, **busy))
    if method == "shutdown_write":
        user.stream.end()
    rig.run()
    assert pump.done
    assert failed(rig) == [ValueError]
    closed = rig.closed()
    assert (closed.reason, closed.ended_by) == ("local_error", "agent")
    assert closed.error == "internal error"
    assert user.reason == ("local_error" if method != "shutdown_write" else None)


def test_a_connector_that_raises_anything_ends_the_stream(rig: Rig) -> None:
    user, pump, _ = rig.open(b"x", answer=ZeroDivisionError("a bug"))
    assert pump.done
    assert user.reason == "local_error"
    assert failed(rig) == [ZeroDivisionError]


def test_a_target_that_takes_more_than_there_is(rig: Rig) -> None:
    """The budget must not become negative."""
    _, pump, _ = rig.open(b"x", answer=Odd(try_send=take_nothing, send=lambda data: 1000))
    rig.run()
    assert pump.buffered_bytes == rig.context.budget.used_bytes == 0


def test_a_write_under_way_is_not_cut_by_the_users_end(rig: Rig) -> None:
    """Whoever ends a write in its midst cannot know what to write again."""
    gate, took = Event(), []

    def send(data: memoryview | bytes) -> int:
        took.append(bytes(data))
        gate.wait()
        return len(data)

    user, pump, _ = rig.open(b"", answer=Odd(try_send=take_nothing, send=send))
    user.stream.send(b"once")
    rig.run()
    user.stream.end()
    rig.run()
    assert not pump.done
    gate.set()
    rig.run()
    gevent.sleep(30 * MS)
    assert pump.done
    assert took == [b"once"]
    assert rig.closed().error == ""


def test_a_slow_service_gets_everything_as_long_as_it_takes_something(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 6.6: it is progress that counts, not the time it takes in all."""
    monkeypatch.setattr("nexusg.agent.streams.DELIVERY_TIMEOUT_S", 20 * MS)
    user, pump, local = rig.open(b"", limit_bytes=10)
    user.stream.send(bytes(100))
    rig.run()
    user.stream.end()
    rig.run()
    received = 0
    for _ in range(10):
        gevent.sleep(6 * MS)
        received += len(local.recv(10))
    assert received == 100
    assert local.recv(1) == b""
    local.close()
    gevent.sleep(30 * MS)
    assert pump.done
    assert rig.closed().error == ""


def test_a_service_that_breaks_while_it_is_given_the_rest(rig: Rig) -> None:
    """After the user's end there is nobody to tell, but the operator."""
    user, pump, local = rig.open(b"", limit_bytes=8)
    user.stream.send(bytes(100))
    rig.run()
    user.stream.end()
    rig.run()
    local.close()
    rig.run()
    assert pump.done
    closed = rig.closed()
    assert (closed.reason, closed.ended_by, closed.error) == ("normal", "user", "Broken pipe")


def test_a_service_that_was_broken_before_the_user_left(rig: Rig) -> None:
    def reset(_: object) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    user, pump, _ = rig.open(b"x", answer=Odd(try_send=reset))
    user.stream.end()
    rig.run()
    assert pump.done
    assert rig.closed().error == "Connection reset by peer"


def test_an_answer_that_ends_in_a_reset(rig: Rig) -> None:
    """The user has gone; the service answers its end of file with a reset."""

    def reset(_: object) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    target = Odd()
    user, pump, _ = rig.open(b"x", answer=target)
    target.__dict__["try_read"] = reset
    user.stream.end()
    rig.run()
    assert pump.done
    assert rig.closed().error == "Connection reset by peer"


def test_a_service_that_never_takes_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host does not acknowledge what it was sent: it is not waited for without end."""
    monkeypatch.setattr("nexusg.agent.streams.DELIVERY_TIMEOUT_S", 0.0)
    target = Odd(unsent_bytes=lambda: 1, shutdown_write=lambda: None)
    user, pump, _ = rig.open(b"x", answer=target)
    user.stream.end()
    rig.run()
    rig.pair.clock.advance(1)
    gevent.sleep(30 * MS)
    assert pump.done


def test_the_session_may_end_during_the_delivery(rig: Rig) -> None:
    """What is left over belongs to nobody then, and both greenlets end."""
    user, pump, _ = rig.open(b"", limit_bytes=8)
    user.stream.send(bytes(100))
    rig.run()
    user.stream.end()
    rig.run()
    pump.finish(Reason.SHUTDOWN, "agent", "the agent is stopping")
    rig.run()
    assert len(rig.context.tasks) == 0


def test_a_read_that_is_ended_by_the_close_changes_nothing(rig: Rig) -> None:
    """The stream was ended while its greenlet waited for the service, and the close woke it."""
    target = Odd()

    def wait_readable() -> None:
        target.closed.wait()
        raise OSError(9, "the connection to the target was closed")

    target.__dict__["wait_readable"] = wait_readable
    _, pump, _ = rig.open(b"x", answer=target)
    pump.on_end(Cause.SESSION)
    rig.run()
    assert rig.closed().reason == "session_ended"
    assert len(rig.context.tasks) == 0


def test_a_late_write_changes_nothing(rig: Rig) -> None:
    """The stream was ended while its greenlet was in the target's send()."""
    gate = Event()

    def send(data: memoryview | bytes) -> int:
        try:
            gate.wait()
        except gevent.GreenletExit:  # it will not be stopped
            pass
        return len(data)

    user, pump, _ = rig.open(b"", answer=Odd(try_send=take_nothing, send=send))
    user.stream.send(b"0123456789")
    rig.run()
    pump.finish(Reason.SHUTDOWN, "agent", "")
    rig.run()
    assert rig.context.budget.used_bytes == 0
    assert rig.closed().reason == "shutdown"


STEPS = ["data", "grant", "read", "write", "local end", "user end", "dial", "session end", "time"]


# Rest ------------------------------------------------------------------------------------------


def open_on_a_socket(rig: Rig, first: bytes = b"") -> tuple[User, StreamPump, Any]:
    """A stream to a real socket, and the service's end of it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    rig.sockets.append(theirs)
    target = SocketTarget(ours, "service:80", rig.context.buffer)
    user, pump, _ = rig.open(first, answer=target)
    return user, pump, theirs


def at_rest(rig: Rig) -> tuple[User, StreamPump, Any]:
    """One that does without a greenlet."""
    user, pump, service = open_on_a_socket(rig, b"GET /")
    assert service.recv(100) == b"GET /"
    assert len(rig.context.tasks) == 1
    pump.rest()
    rig.run()
    assert len(rig.context.tasks) == 0
    return user, pump, service


def test_an_idle_stream_does_without_a_greenlet(rig: Rig) -> None:
    user, pump, service = at_rest(rig)
    pump.rest()
    service.send(b"hello")
    rig.run()
    assert user.data == b"hello"
    assert len(rig.context.tasks) == 1
    user.stream.send(b"more")
    rig.run()
    assert service.recv(100) == b"more"
    pump.rest()
    rig.run()
    assert len(rig.context.tasks) == 0
    service.close()
    rig.run()
    assert (user.data, user.reason) == (b"hello", "normal")
    assert rig.closed().reason == "normal"


def test_a_user_may_go_on_while_the_stream_rests(rig: Rig) -> None:
    user, _, service = at_rest(rig)
    user.stream.send(b"question")
    rig.run()
    assert service.recv(100) == b"question"
    assert len(rig.context.tasks) == 0
    user.stream.send(bytes(200_000))  # more than the service takes at once
    rig.run()
    taken = 0
    while taken < 200_000:
        taken += len(service.recv(200_000))
        rig.run()
    assert len(rig.context.tasks) == 0
    service.send(b"answer")
    rig.run()
    assert user.data == b"answer"


def test_a_user_may_leave_while_the_stream_rests(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_STEP_S", 0)
    user, _, service = at_rest(rig)
    user.stream.end()
    rig.run()
    assert service.recv(1) == b""
    service.send(b"nobody reads this")
    service.close()
    rig.run()
    assert rig.closed().ended_by == "user"


@pytest.mark.parametrize("cause", [Cause.SESSION, Cause.TIMEOUT])
def test_a_stream_may_be_ended_while_it_rests(rig: Rig, cause: Cause) -> None:
    _, pump, service = at_rest(rig)
    service.shutdown(socket.SHUT_WR)  # which the hub has not seen yet
    pump.on_end(cause)
    rig.run()
    assert service.recv(1) == b""
    assert rig.closed().bytes_out == 0


def test_data_that_comes_just_then_is_carried(rig: Rig) -> None:
    user, pump, service = open_on_a_socket(rig)
    pump.rest()
    service.send(b"hello")
    rig.run()
    assert user.data == b"hello"
    assert len(rig.context.tasks) == 1


def test_other_targets_keep_their_greenlet(rig: Rig) -> None:
    """Nothing but a plain socket can be left to the hub."""
    user, pump, local = rig.open(b"")
    pump.rest()
    rig.run()
    assert len(rig.context.tasks) == 1
    local.send(b"hello")
    rig.run()
    assert user.data == b"hello"


@given(steps=st.lists(st.sampled_from(["say", "ask", "rest", "run", "turn"]), max_size=20))
def test_whenever_it_rests_nothing_is_lost(steps: list[str]) -> None:
    rig = Rig()
    user, pump, service = open_on_a_socket(rig)
    said = asked = b""
    for number, step in enumerate(steps):
        if step == "say":
            said += bytes([number])
            service.send(bytes([number]))
        elif step == "ask":
            asked += bytes([number])
            user.stream.send(bytes([number]))
        elif step == "rest":
            pump.rest()
        elif step == "turn":
            gevent.sleep(0)
        else:
            rig.run()
    rig.run()
    assert user.data == said
    assert (service.recv(100) if asked else b"") == asked
    service.close()
    rig.run()
    assert rig.closed().reason == "normal"
    rig.stop()


@given(steps=st.lists(st.sampled_from(STEPS), max_size=25), dialled=st.booleans())
def test_whatever_happens_a_stream_ends_once_and_leaves_nothing(
    steps: list[str], dialled: bool
) -> None:
    """Any order of events: one stream.closed, no memory counted, no greenlet left (rig.stop)."""
    rig = small_rig()
    if not dialled:
        rig.connector.gate.clear()
    user, pump, local = rig.open(b"first", limit_bytes=20_000, user=User(takes=False))
    for step in steps:
        if step == "data" and user.stream.open:
            user.stream.send(bytes(30_000))
        elif step == "grant" and user.stream.open and user.frames:
            user.stream.consumed(len(user.frames))
            user.frames.clear()
        elif step == "read":
            while local.try_read(65536):
                pass
        elif step == "write":
            try:
                local.try_send(bytes(20_000))
            except OSError:
                pass
        elif step == "local end":
            local.shutdown(1)
        elif step == "user end":
            user.stream.end()
        elif step == "dial":
            rig.connector.gate.set()
        elif step == "session end":
            pump.on_end(Cause.SESSION)
        elif step == "time":
            rig.advance(1)
        rig.run()
    assert len(rig.named("stream.closed")) == int(pump.done)
    assert pump.buffered_bytes == rig.context.budget.used_bytes
    rig.stop()
    assert len(rig.named("stream.closed")) == 1
