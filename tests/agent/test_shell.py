"""What all shells of streams share. The two kinds of them are tested in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest

from nexusg.agent.shell import StreamShell
from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from tests.support.rig import Rig


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.agent.session import Session


class Target:
    """A local service that can be closed, or fails even in that."""

    name = "service"
    closes = 0

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def close(self) -> None:
        self.closes += 1
        if self.error is not None:
            raise self.error


class Shell(StreamShell):
    """A shell that waits for credits until a test makes it fail, or ends it."""

    released = wakes = 0
    failure: BaseException | None = None
    user_left = False

    def _run(self) -> None:
        self._target = Target()
        self._report_connected()
        self.stream.dialled()
        while self.failure is None:
            self._wait(None)
            self.wakes += 1
        raise self.failure

    def _user_left(self) -> None:
        self.user_left = True
        self.finish(Reason.NORMAL, "user", "")

    def _release(self) -> None:
        self.released += 1

    def on_data(self, payload: memoryview | bytes) -> None:
        self.stream.consumed()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.stop()


def opened(rig: Rig, **connect: Any) -> Shell:
    """A shell whose stream is open."""
    shells = []

    def make(stream: Any) -> Any:
        shells.append(Shell(cast("Session", rig), stream))
        return shells[-1]

    rig.pair.make_local = make
    rig.pair.open(b"first", **connect)
    rig.run()
    return shells[0]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_both_events(rig: Rig, transport: str) -> None:
    shell = opened(rig, transport=transport)
    rig.advance(2)
    shell.finish(Reason.SHUTDOWN, "agent", "why")
    shell.finish(Reason.NORMAL, "agent", "only the first counts")
    (connected,) = rig.named("stream.connected")
    closed = rig.closed()
    for event in (connected, closed):
        assert (event.backend, event.relay, event.session) == ("web", "wss://relay.test", "s1")
        assert event.stream == "00000000-0000-0000-0000-000000000001"
        assert (event.hostname, event.port, event.is_tls) == ("app.example.com", 443, True)
        assert (event.client, event.transport) == ("192.0.2.7:50000", transport)
        assert event.target == shell.target_name == "service"
    assert (closed.reason, closed.ended_by, closed.error) == ("shutdown", "agent", "why")
    assert (closed.bytes_in, closed.bytes_out, closed.duration_s) == (5, 0, 2)
    assert (closed.dropped, closed.datagrams_in) == (None, None)
    assert rig.context.counters.closed == {"shutdown": 1}
    assert shell.losses() == {}


def test_the_end_lets_go_of_everything(rig: Rig) -> None:
    shell = opened(rig)
    shell.finish(Reason.SHUTDOWN, "agent", "")
    assert (shell.done, shell.released) == (True, 1)
    assert cast("Target", shell._target).closes == 1
    assert rig.connector.released == [shell.stream]
    assert shell not in rig.context.pumps
    rig.run()
    assert not rig.context.tasks


@pytest.mark.parametrize(
    ("cause", "reason", "ended_by"),
    [
        (Cause.USER, "normal", "user"),
        (Cause.TIMEOUT, "timeout", "agent"),
        (Cause.REPLACED, "unknown", "user"),
        (Cause.SESSION, "session_ended", "session"),
    ],
)
def test_ends_from_outside(rig: Rig, cause: Cause, reason: str, ended_by: str) -> None:
    shell = opened(rig)
    shell.on_end(cause)
    assert (rig.closed().reason, rig.closed().ended_by) == (reason, ended_by)
    assert shell.user_left is (cause is Cause.USER)


def test_credits_wake_it_up(rig: Rig) -> None:
    shell = opened(rig)
    before = shell.wakes
    shell.on_credit()
    shell.on_credit()
    gevent.sleep(0)
    assert shell.wakes == before + 1
    shell.finish(Reason.SHUTDOWN, "agent", "")
    gevent.sleep(0)
    shell.on_credit()


def test_a_bug_ends_the_stream_and_is_reported(rig: Rig) -> None:
    shell = opened(rig)
    shell.failure = ZeroDivisionError("a bug")
    shell.on_credit()
    gevent.sleep(0)
    assert shell.done
    assert (rig.closed().reason, rig.closed().error) == ("local_error", "internal error")
    assert rig.failures == [shell.failure]
    rig.failures.clear()


def test_a_target_that_cannot_be_closed_is_reported(rig: Rig) -> None:
    shell = opened(rig)
    shell._target = Target(ZeroDivisionError("a bug"))
    shell.finish(Reason.SHUTDOWN, "agent", "")
    assert rig.closed().reason == "shutdown"
    assert rig.failures == [shell._target.error]
    rig.failures.clear()


def test_a_dial_that_failed(rig: Rig) -> None:
    shell = opened(rig)
    shell._dial_failed(OSError("nobody there"))
    assert (rig.closed().reason, rig.closed().error) == ("dial_failed", "nobody there")
    assert rig.context.counters.dial_failures == 1
    assert rig.connector.released == [shell.stream]
