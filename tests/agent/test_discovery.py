"""Relays come and go, as the authorizer says; a fake device answers what a test has set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.agent import discovery as module
from nexusg.agent.budget import Budget
from nexusg.agent.context import Context
from nexusg.agent.discovery import ENROLMENT_S, REFRESH_S, Discovery, require_relays
from nexusg.agent.tasks import Tasks
from nexusg.config.model import Backend, Config
from nexusg.errors import AuthorizerError, ConfigError, TokenError
from tests.conftest import MS
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Iterator

A, B, C = (f"wss://{name}.test/connect" for name in "abc")
DOWN = AuthorizerError("refused", "authorizer_unreachable")


class FakeSlot:
    """Notes whether it was stopped."""

    def __init__(self, relay: str) -> None:
        self.relay = relay
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class FakeDevice:
    """Gives the answers, or raises the errors, that a test has set; the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked = 0
        self.retry_after_s: float | None = None

    def endpoints(self, timeout_s: float) -> Any:
        assert timeout_s == ENROLMENT_S
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    enroll = endpoints


class FakeWake:
    """An event that only a test sets; it notes for how long it was to be waited for."""

    def __init__(self, waits: list[float]) -> None:
        self._event = Event()
        self._waits = waits
        self.set, self.clear = self._event.set, self._event.clear

    def wait(self, delay_s: float) -> None:
        self._waits.append(delay_s)
        self._event.wait()


class Bench:
    """A discovery whose waits a test ends."""

    def __init__(self, **backend: Any) -> None:
        self.clock = FakeClock()
        self.events: list[Any] = []
        self.device: Any = FakeDevice()
        self.slots: list[Any] = []
        self.opened: list[Any] = []
        self.waits: list[float] = []
        tasks = Tasks("streams", lambda *_: None)
        self.context = Context(
            config=Config(),
            budget=Budget(1),
            tasks=tasks,
            emit=self.events.append,
            task_failed=lambda *_: None,
            clock=self.clock,
            rng=lambda: 0.5,
        )
        self.discovery = Discovery(
            self.context, Backend("web", **backend), self.device, self.slots, self._open
        )
        self.wake: Any = FakeWake(self.waits)
        self.discovery._wake = self.wake
        self.task: Any = None

    def run(self, *answers: Any) -> None:
        """Let it ask once for each of ``answers``. Blocks."""
        self.device.answers = list(answers)
        for _ in answers:
            if self.task is None:
                self.task = Greenlet.spawn(self.discovery.run)
            else:
                self.wake.set()
            gevent.sleep(0.5 * MS)

    def relays(self) -> list[str]:
        return [slot.relay for slot in self.slots]

    def names(self) -> list[str]:
        return [event.name() for event in self.events]

    def _open(self, relay: str) -> Any:
        self.opened.append(FakeSlot(relay))
        return self.opened[-1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    if bench.task is not None:
        bench.task.kill()


def test_relays_are_served(bench: Bench) -> None:
    bench.run((A, B))
    assert bench.relays() == [A, B]
    (event,) = bench.events
    assert (event.name(), event.backend, event.relays) == ("relays.discovered", "web", (A, B))
    assert bench.waits == [REFRESH_S * 1.5]


def test_relays_change(bench: Bench) -> None:
    bench.run((A, B), (B, A), (B, C))
    assert bench.relays() == [B, C]
    assert len(bench.opened) == 3
    assert [slot.relay for slot in bench.opened if slot.stopped] == [A]
    assert {slot.relay for slot in bench.discovery.retired} == {A}
    assert bench.names() == ["relays.discovered"] * 2


@pytest.mark.parametrize("answer", [(), DOWN])
def test_relays_stay_when_none_are_named(bench: Bench, answer: Any) -> None:
    bench.run((A,), answer)
    assert bench.relays() == [A]
    assert bench.names() == ["relays.discovered"]


class TestNone:
    def test_is_told_and_asked_again(self, bench: Bench) -> None:
        bench.run(*[()] * 6, (A,))
        assert bench.names() == ["discovery.failed"] * 6 + ["relays.discovered"]
        assert bench.waits[:-1] == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
        event = bench.events[0]
        assert (event.code, event.retry_in_s) == ("no_relays", 5.0)
        assert event.error == "the authorizer names no relays yet"

    def test_is_asked_again_when_the_authorizer_says(self, bench: Bench) -> None:
        bench.device.retry_after_s = 7.0
        bench.run((), ())
        assert bench.waits == [7.0, 7.0]


class TestFailure:
    def test_is_told_and_tried_again(self, bench: Bench) -> None:
        bench.run(DOWN, DOWN, (A,))
        assert bench.names() == ["discovery.failed"] * 2 + ["relays.discovered"]
        event = bench.events[0]
        assert (event.code, event.error) == ("authorizer_unreachable", "refused")
        assert event.retry_in_s == bench.waits[0]
        assert bench.waits[1] > bench.waits[0]

    def test_that_the_network_may_cure(self, bench: Bench) -> None:
        bench.run(DOWN)
        bench.device.answers = [(A,)]
        bench.discovery.network_changed()
        gevent.sleep(0.5 * MS)
        assert bench.relays() == [A]
        asked = bench.device.asked
        bench.discovery.network_changed()
        gevent.sleep(0.5 * MS)
        assert bench.device.asked == asked

    def test_that_the_network_does_not_cure(self, bench: Bench) -> None:
        bench.run(AuthorizerError("suspended", "authorizer_refused", 403))
        bench.discovery.network_changed()
        gevent.sleep(0.5 * MS)
        assert bench.device.asked == 1
        assert bench.waits[0] >= 900.0


def test_with_relays_it_only_enrols() -> None:
    """And leaves it to the sessions to say what is wrong."""
    bench = Bench(nexus_addresses=(A,))
    bench.run(TokenError("not enrolled"))
    bench.run(None)
    bench.task.get(timeout=5)
    assert bench.device.asked == 2
    assert bench.events == []
    assert bench.opened == []


def test_own_tokens_need_relays() -> None:
    require_relays(Config(backends=(Backend("web", nexus_addresses=(A,)),)))
    with pytest.raises(ConfigError, match="a token provider of one's own: 'api', 'mail'"):
        require_relays(Config(backends=(Backend("api"), Backend("mail"))))


def test_enrolment_outlasts_a_slow_tpm() -> None:
    assert module.ENROLMENT_S > 60
