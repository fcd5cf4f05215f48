"""The graceful stop: what may finish, how long, and what is cut (PROTOCOL.md section 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.agent import stopping
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Config, Shutdown
from nexusg.protocol.messages import format_id
from tests.conftest import MS
from tests.support.pair import User
from tests.support.rig import Rig


if TYPE_CHECKING:
    from collections.abc import Iterator

AMPLE_S = 5.0


class FakeSession:
    """A session that keeps what it is told."""

    def __init__(self, established: bool = True) -> None:
        self.established = established
        self.said: list[str] = []
        self.gate = Event()
        self.gate.set()

    def drain(self) -> None:
        """As in a real one."""
        self.said.append("drain")

    def close(self, reason: str) -> None:
        """As in a real one. Blocks while the gate is closed."""
        self.gate.wait()
        self.said.append(f"close: {reason}")
        self.established = False


class FakeSlot:
    """A slot with or without a session."""

    def __init__(self, session: FakeSession | None) -> None:
        self.session = session
        self.stopped = False

    def stop(self) -> None:
        """As in a real one."""
        self.stopped = True


class Wish(Event):
    """The wish to cut the wait short, which also counts how often the stop has looked around."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def wait(self, timeout: float | None = None) -> Any:
        """As in an Event. Blocks."""
        self.looks += 1
        return super().wait(timeout)


class Stop:
    """A stop that is under way, on the rig's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, idle_s: float = 5.0) -> None:
        monkeypatch.setattr(stopping, "STEP_S", 0.5 * MS)
        self.rig = Rig()
        self.rig.context.config = Config(shutdown=Shutdown(idle_s=idle_s))
        self.session = FakeSession()
        self.slots = [FakeSlot(self.session)]
        self.cut_short = Wish()
        self.tasks = Tasks("sessions", lambda *failure: pytest.fail(str(failure)))
        self.greenlet: Any = None

    def begin(self, grace_s: float = 30.0) -> None:
        """Stop. Blocks for a moment."""
        self.greenlet = Greenlet.spawn(self._drain, grace_s)
        self._look()

    def advance(self, seconds: float) -> None:
        """Let time pass, and the stop look again. Blocks."""
        self.rig.advance(seconds)
        self._look()

    def cut(self) -> int:
        """How many streams it has cut. Blocks until it has ended."""
        return cast("int", self.greenlet.get(timeout=AMPLE_S))

    def _look(self) -> None:
        """Let it look around once more, unless it has ended. Blocks."""
        looks = self.cut_short.looks
        with gevent.Timeout(AMPLE_S, AssertionError("it does not look")):
            while self.cut_short.looks < looks + 2 and not self.greenlet.ready():
                gevent.sleep(0.2 * MS)

    def _drain(self, grace_s: float) -> int:
        slots = cast("Any", self.slots)
        return stopping.drain(self.rig.context, slots, self.tasks, grace_s, self.cut_short)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """A stop that has not begun."""
    stop = Stop(monkeypatch)
    yield stop
    stop.rig.stop()


def test_with_nothing_to_wait_for(stop: Stop) -> None:
    """Every slot is stopped; an established session is drained and then closed."""
    idle, connecting = FakeSlot(None), FakeSlot(FakeSession(established=False))
    stop.slots += [idle, connecting]
    stop.begin()
    assert stop.cut() == 0
    assert all(slot.stopped for slot in stop.slots)
    assert stop.session.said == ["drain", "close: stopping"]
    assert connecting.session is not None
    assert connecting.session.said == []


def test_a_stream_may_finish(stop: Stop) -> None:
    """It is neither cut nor hurried, and then there is nothing more to wait for."""
    user, _, local = stop.rig.open(b"")
    stop.begin()
    stop.advance(3)
    assert stop.session.said == ["drain"]
    local.send(b"the answer")
    local.close()
    stop.rig.run()
    assert stop.cut() == 0
    assert (user.data, user.reason) == (b"the answer", "normal")
    assert stop.session.said == ["drain", "close: stopping"]


def test_the_grace_is_kept_to(stop: Stop) -> None:
    """Not later than the grace, and not sooner."""
    user, _, local = stop.rig.open(b"", user=User(takes=True))
    stop.begin(10)
    for _ in range(3):
        local.send(b"busy")
        stop.advance(3)
    assert user.reason is None
    local.send(b"busy")
    stop.advance(1)
    assert stop.cut() == 1
    closed = stop.rig.closed()
    assert (closed.reason, closed.ended_by) == ("shutdown", "agent")
    assert closed.error == "the agent is stopping"


def test_without_grace(stop: Stop) -> None:
    _, pump, _ = stop.rig.open(b"")
    stop.begin(0)
    assert stop.cut() == 1
    assert pump.done


def test_a_second_wish_ends_the_wait(stop: Stop) -> None:
    _, pump, _ = stop.rig.open(b"")
    stop.begin()
    assert not stop.greenlet.ready()
    stop.cut_short.set()
    assert stop.cut() == 1
    assert pump.done


def test_an_idle_stream_does_not_hold_the_stop(stop: Stop) -> None:
    """Section 15: the reference waits for the user's keep-alive to end. It is not a cut one."""
    _, idle, _ = stop.rig.open(b"")
    user, busy, local = stop.rig.open(b"")
    stop.begin()
    for _ in range(3):
        local.send(b"busy")
        stop.advance(2)
    assert idle.done
    assert not busy.done
    assert stop.rig.closed().error == ""
    stop.advance(4)
    assert not busy.done, "it was busy until a moment ago"
    stop.advance(2)
    assert stop.cut() == 0
    stop.rig.run()
    assert user.reason == "shutdown"


def test_a_stream_at_work_may_look_idle(stop: Stop) -> None:
    """An application of this process is still busy with its request; then it counts from there."""
    _, pump, _ = stop.rig.open(b"")
    stop.rig.context.at_work.add(format_id(pump.stream.id))
    stop.begin()
    stop.advance(12)
    assert not pump.done
    stop.rig.context.at_work.clear()
    stop.advance(4)
    assert not pump.done
    stop.advance(2)
    assert pump.done
    assert stop.cut() == 0


def test_a_stream_that_was_idle_before_counts_from_then_on(stop: Stop) -> None:
    _, pump, _ = stop.rig.open(b"")
    stop.rig.advance(60)
    stop.begin()
    assert pump.done
    assert stop.cut() == 0


def test_what_is_buffered_is_work(stop: Stop) -> None:
    """A service that is slow to take an upload is not idle."""
    user, pump, local = stop.rig.open(b"", limit_bytes=8)
    user.stream.send(b"0123456789")
    stop.rig.run()
    stop.begin()
    stop.advance(20)
    assert not pump.done
    assert local.recv(100) + local.recv(100) == b"0123456789"
    stop.rig.run()
    stop.advance(6)
    assert pump.done
    assert stop.cut() == 0


def test_a_stream_that_is_being_dialled_is_waited_for(stop: Stop) -> None:
    stop.rig.connector.gate.clear()
    _, pump, _ = stop.rig.open(b"x")
    stop.begin()
    stop.advance(20)
    assert not pump.done
    stop.advance(20)
    assert stop.cut() == 1
    stop.rig.connector.gate.set()


def test_a_session_that_does_not_close_in_time(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are closed all the same."""
    monkeypatch.setattr(stopping, "CLOSE_S", 5 * MS)
    stuck = FakeSession()
    stuck.gate.clear()
    stop.slots.insert(0, FakeSlot(stuck))
    stop.begin()
    assert stop.cut() == 0
    assert stop.session.said == ["drain", "close: stopping"]
    assert stuck.said == ["drain"]
    stuck.gate.set()
    assert stop.tasks.join(AMPLE_S)
