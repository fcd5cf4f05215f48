"""A session slot: what is reported when a session ends, and when the next one begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import gevent
import pytest
from gevent.event import Event

from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.supervisor import Supervisor
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Backend, Config, Reconnect
from nexusg.errors import (
    DialFailed,
    NexusgError,
    Rejected,
    SessionLost,
    TokenError,
    UpgradeRefused,
)
from nexusg.protocol.states import SessionState
from tests.conftest import MS
from tests.support.clock import FakeClock
from tests.support.peer import StubProvider
from tests.support.running import hurry


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.agent.lifecycle import LifecycleEvent

AMPLE_S = 5.0
RELAY = "wss://relay.test"


class FakeSession:
    """A session that a test tells how to end."""

    def __init__(self, name: str, clock: FakeClock) -> None:
        self.name = name
        self.opened = self.established = False
        self.accepted_at: float | None = None
        self.streams_lost = 0
        self.probes = 0
        self.core = SimpleNamespace(
            state=SessionState.IDENTIFIED,
            streams={},
            wire=SimpleNamespace(pending_bytes=0),
        )
        self._clock = clock
        self._end = Event()
        self._error: BaseException | None = None

    def names(self) -> dict[str, str]:
        """As in a real one."""
        return {"backend": "web", "relay": RELAY, "session": self.name}

    def probe(self) -> None:
        """Count."""
        self.probes += 1

    def accept(self) -> None:
        """The relay has accepted it."""
        self.opened = self.established = True
        self.accepted_at = self._clock()
        self.core.state = SessionState.OPEN

    def end(self, error: BaseException | None = None) -> None:
        """Let `run` end."""
        self._error = error
        self._end.set()

    def run(self) -> None:
        """Until the test ends it. Blocks."""
        self._end.wait()
        if self._error is not None:
            raise self._error


class Slot:
    """A supervisor on its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, give_up_after: int = 0) -> None:
        self.clock = FakeClock()
        self.events: list[LifecycleEvent] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.sessions: list[FakeSession] = []
        self.provider = StubProvider()
        self.refused = 0
        self.tasks = Tasks("sessions", self._failed)
        self.context = Context(
            config=Config(reconnect=Reconnect(give_up_after_rejections=give_up_after)),
            budget=Budget(1),
            tasks=Tasks("streams", self._failed),
            emit=self.events.append,
            task_failed=self._failed,
            clock=self.clock,
            rng=lambda: 0.5,
        )
        self.supervisor = Supervisor(
            self.context,
            Backend("web", hostnames=("a.b",)),
            self.provider,
            cast("Any", None),
            RELAY,
            iter(["s1", "s2", "s3", "s4", "s5"]),
            self._refused,
        )
        monkeypatch.setattr("nexusg.agent.supervisor.Session", self._make_session)

    def start(self) -> FakeSession:
        """Run it; the first session. Blocks."""
        self.supervisor.task = self.tasks.spawn("session", self.supervisor.run)
        return self.session(1)

    def session(self, number: int) -> FakeSession:
        """The session of that number. Blocks."""
        self.until(lambda: len(self.sessions) >= number)
        return self.sessions[number - 1]

    def until(self, condition: Callable[[], object]) -> None:
        """Let it run until ``condition()`` holds. Blocks."""
        with gevent.Timeout(AMPLE_S, AssertionError("never came true")):
            while not condition():
                gevent.sleep(0.5 * MS)

    def last(self, name: str) -> Any:
        """The newest event of that name."""
        return [event for event in self.events if event.name() == name][-1]

    def _make_session(self, *arguments: Any) -> FakeSession:
        self.sessions.append(FakeSession(arguments[-1], self.clock))
        return self.sessions[-1]

    def _refused(self) -> None:
        self.refused += 1

    def _failed(self, task: str, error: BaseException) -> None:
        self.failures.append((task, error))


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    """A slot in a hurry."""
    hurry(monkeypatch)
    slot = Slot(monkeypatch)
    yield slot
    assert slot.tasks.kill(AMPLE_S)
    assert not slot.failures


@pytest.fixture
def patient(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> Slot:
    """A slot that waits for a minute after each failure."""
    for name in ("BACKOFF_FIRST_S", "REJECTED_FIRST_S"):
        monkeypatch.setattr(f"nexusg.agent.reconnect.{name}", 120.0)
    monkeypatch.setattr("nexusg.agent.reconnect.BACKOFF_MAX_S", 120.0)
    return slot


# Ends ------------------------------------------------------------------------------------------


def test_a_session_that_is_lost(slot: Slot) -> None:
    """Then comes the next."""
    session = slot.start()
    session.accept()
    session.streams_lost = 3
    slot.clock.advance(12.3456)
    session.end(SessionLost("silence", "silent"))
    assert slot.session(2).name == "s2"
    lost = slot.last("session.lost")
    assert (lost.backend, lost.relay, lost.session) == ("web", RELAY, "s1")
    assert (lost.code, lost.error, lost.streams) == ("silent", "silence", 3)
    assert lost.duration_s == 12.346
    assert lost.retry_in_s == pytest.approx(5 * MS)
    assert slot.context.counters.failures == 1
    assert [event.name() for event in slot.events] == [
        "session.connecting",
        "session.lost",
        "session.connecting",
    ]


@pytest.mark.parametrize(
    ("error", "code", "counter"),
    [
        (DialFailed("nobody there", "refused"), "refused", "failures"),
        (SessionLost("no challenge", "silent"), "silent", "failures"),
        (UpgradeRefused(503, "busy"), "http_status", "failures"),
        (TokenError("no token"), "token", "token_failures"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_session_that_does_not_come_about(
    slot: Slot, error: NexusgError, code: str, counter: str
) -> None:
    slot.start().end(error)
    slot.session(2).end(error)
    slot.session(3)
    failed = slot.last("session.failed")
    assert (failed.code, failed.error, failed.attempts) == (code, str(error), 2)
    assert getattr(slot.context.counters, counter) == 2
    assert slot.context.counters.rate_limited == 0


def test_too_many_requests_are_counted(patient: Slot) -> None:
    """Section 8.3: and the relay's wish is heeded."""
    patient.start().end(UpgradeRefused(429, "slow down", 600.0))
    patient.until(lambda: patient.context.counters.rate_limited)
    assert patient.last("session.failed").retry_in_s >= 600
    assert patient.context.counters.failures == 1


def test_a_rejection(slot: Slot) -> None:
    """Section 8.3: the kept token is dropped, the reason told; by default it is never the last."""
    for number in (1, 2, 3):
        session = slot.session(number) if number > 1 else slot.start()
        session.end(Rejected("attest", "token is expired", 1008))
    slot.session(4)
    rejected = slot.last("session.rejected")
    assert (rejected.stage, rejected.reason, rejected.attempts) == ("attest", "token is expired", 3)
    assert rejected.retry_in_s == pytest.approx(40 * MS, rel=0.5)
    assert slot.provider.invalidated == 3
    assert slot.context.counters.rejections == 3
    assert slot.refused == 0


def test_a_provider_that_fails_to_forget(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the program's own, and its failure must not end the slot. Its words are not quoted."""

    def invalidate() -> None:
        raise OSError("cannot delete eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0")

    monkeypatch.setattr(slot.provider, "invalidate", invalidate)
    slot.start().end(Rejected("attest"))
    slot.session(2)
    ((task, failure),) = slot.failures
    assert (task, str(failure)) == (
        "token provider",
        "the provider's invalidate() failed: OSError",
    )
    slot.failures.clear()


def test_rejected_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting giveUpAfterRejections; what lies between does not count, nor interrupt."""
    hurry(monkeypatch)
    slot = Slot(monkeypatch, give_up_after=2)
    slot.start().end(Rejected("attest", "no"))
    slot.session(2).end(DialFailed("nobody there", "refused"))
    slot.session(3).end(Rejected("attest", "no"))
    assert slot.tasks.join(AMPLE_S)
    assert slot.refused == 1
    rejected = slot.last("session.rejected")
    assert (rejected.attempts, rejected.retry_in_s) == (2, None)
    assert len(slot.sessions) == 3


def test_a_session_that_the_agent_closes(slot: Slot) -> None:
    session = slot.start()
    session.accept()
    slot.clock.advance(5)
    slot.supervisor.stop()
    session.end()
    assert slot.tasks.join(AMPLE_S)
    closed = slot.last("session.closed")
    assert (closed.session, closed.duration_s) == ("s1", 5)


def test_a_bug_is_not_hidden(slot: Slot) -> None:
    """The agent decides what it means that a slot is gone."""
    slot.start().end(ZeroDivisionError("a bug"))
    assert slot.tasks.join(AMPLE_S)
    ((task, failure),) = slot.failures
    assert (task, type(failure)) == ("session", ZeroDivisionError)
    assert slot.supervisor.session is None
    slot.failures.clear()


# Stopping --------------------------------------------------------------------------------------


def test_stopped_before_it_began(slot: Slot) -> None:
    slot.supervisor.stop()
    slot.supervisor.run()
    assert not slot.events


def test_stopped_while_it_connects(slot: Slot) -> None:
    """Nothing is lost with a session that was never accepted."""
    slot.start()
    slot.supervisor.stop()
    assert slot.tasks.join(AMPLE_S)
    assert len(slot.sessions) == 1


def test_stopped_while_it_waits(patient: Slot) -> None:
    patient.start().end(SessionLost("gone"))
    patient.until(lambda: patient.context.counters.failures)
    patient.supervisor.stop()
    assert patient.tasks.join(AMPLE_S)
    assert len(patient.sessions) == 1


def test_stopped_while_it_is_connected(slot: Slot) -> None:
    """The session may serve its streams to their end, but is the last one."""
    session = slot.start()
    session.accept()
    slot.supervisor.stop()
    gevent.sleep(0)
    assert len(slot.tasks) == 1
    session.end(SessionLost("gone"))
    assert slot.tasks.join(AMPLE_S)
    assert len(slot.sessions) == 1


# Network changes -------------------------------------------------------------------------------


def test_a_change_ends_the_wait(patient: Slot) -> None:
    """Section 17, case 48."""
    patient.start().end(DialFailed("no route", "unreachable"))
    patient.until(lambda: patient.context.counters.failures)
    patient.supervisor.network_changed()
    assert patient.session(2).name == "s2"


def test_a_change_does_not_end_a_wait_after_a_rejection(patient: Slot) -> None:
    """The network is not what is wrong."""
    patient.start().end(Rejected("attest", "no"))
    patient.until(lambda: patient.context.counters.rejections)
    patient.supervisor.network_changed()
    gevent.sleep(2 * MS)
    assert len(patient.sessions) == 1


def test_a_change_during_an_attempt_does_not_shorten_the_next_wait(patient: Slot) -> None:
    """Section 8.2: a stale event must not cancel a back-off."""
    session = patient.start()
    patient.supervisor.network_changed()
    session.end(DialFailed("nobody there", "refused"))
    patient.until(lambda: patient.context.counters.failures)
    gevent.sleep(2 * MS)
    assert len(patient.sessions) == 1


def test_a_change_while_connected_is_a_reason_to_ask(slot: Slot) -> None:
    session = slot.start()
    session.accept()
    slot.supervisor.network_changed()
    assert session.probes == 1


# Figures ---------------------------------------------------------------------------------------


def test_figures(slot: Slot) -> None:
    stats = slot.supervisor.stats()
    assert (stats.backend, stats.relay) == ("web", RELAY)
    assert (stats.session, stats.state, stats.uptime_s) == ("", "disconnected", 0)
    session = slot.start()
    assert slot.supervisor.stats().state == "disconnected", "it is dialling"
    session.opened = True
    stats = slot.supervisor.stats()
    assert (stats.session, stats.state, stats.uptime_s) == ("s1", "identified", 0)
    session.accept()
    session.core.streams = {b"id": None}
    session.core.wire.pending_bytes = 17
    slot.clock.advance(9)
    stats = slot.supervisor.stats()
    assert (stats.state, stats.uptime_s) == ("open", 9)
    assert (stats.streams, stats.unsent_bytes) == (1, 17)
