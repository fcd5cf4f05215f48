"""Reports of an agent that the test plays, and of a real one that cannot reach its relay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet
from gevent.queue import Queue

from nexusg.agent.agent import Agent
from nexusg.agent.lifecycle import (
    NetworkChanged,
    SessionClosed,
    SessionConnected,
    SessionFailed,
    SessionLost,
    SessionRejected,
)
from nexusg.cli.reports import Report, Reports
from nexusg.config.loader import load
from tests.support.relayed import AMPLE_S


if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER_S = 1000.0


class FakeAgent:
    """An agent whose figures are set."""

    def __init__(self) -> None:
        self.states = ["new", "disconnected"]
        self.streams = (0, 0)

    def stats(self) -> Any:
        active, pending = self.streams
        sessions = tuple(SimpleNamespace(state=state) for state in self.states)
        return SimpleNamespace(sessions=sessions, streams_active=active, streams_pending=pending)


class Following:
    """Reports that are being made, and what has been told."""

    def __init__(self, agent: Any, every_s: float = NEVER_S) -> None:
        self.events: list[Any] = []
        self.told: Any = Queue()
        self.reports = Reports(self.events.append, self.told.put, every_s)
        self._running = Greenlet.spawn(self.reports.run, agent)

    def next(self) -> Report:
        report = self.told.get(timeout=AMPLE_S)
        assert isinstance(report, Report)
        return report

    def end(self) -> None:
        self._running.kill()


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
def following(agent: FakeAgent) -> Iterator[Following]:
    following = Following(agent)
    yield following
    following.end()


def where(number: int = 1) -> dict[str, Any]:
    return {"backend": "web", "relay": f"wss://relay{number}.example.com/connect"}


def connected(number: int = 1) -> SessionConnected:
    return SessionConnected(**where(number), session="s1", took_s=0.1, tls="TLSv1.3")


def failed(error: str, number: int = 1) -> SessionFailed:
    return SessionFailed(**where(number), code="dial", error=error, attempts=1, retry_in_s=1.0)


def test_the_first_comes_at_once(following: Following) -> None:
    assert following.next() == Report(0, 2, 0)


def test_sessions_and_streams_are_counted(agent: FakeAgent, following: Following) -> None:
    following.next()
    agent.states, agent.streams = ["open", "draining", "attested"], (12, 2)
    following.reports(connected())
    assert following.next() == Report(2, 3, 14)


def test_every_event_goes_on_and_few_are_news(following: Following) -> None:
    following.next()
    event = NetworkChanged(detail="eth0")
    following.reports(event)
    assert following.events == [event]
    assert not following.reports._news.is_set()


def test_without_events_it_looks_now_and_then(agent: FakeAgent) -> None:
    following = Following(agent, every_s=0.001)
    try:
        assert following.next() == following.next() == Report(0, 2, 0)
    finally:
        following.end()


def test_a_problem_lasts_until_its_session_is_there(following: Following) -> None:
    def after(*events: Any) -> str:
        for event in events:
            following.reports(event)
        return following.next().problem

    following.next()
    lost = SessionLost(
        **where(2), session="s", code="x", error="no pong", duration_s=1, streams=0, retry_in_s=1
    )
    rejected = SessionRejected(
        **where(1), stage="attest", reason="expired", attempts=1, retry_in_s=None
    )
    assert after(failed("refused")) == "refused"
    assert after(lost) == "no pong"
    assert after(rejected) == "expired"
    assert after(connected(1)) == "no pong"
    assert after(SessionClosed(**where(2), session="s", duration_s=1)) == ""


def test_stopping_is_news(following: Following) -> None:
    following.next()
    following.reports.stopping()
    assert following.next().stopping


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (Report(2, 3, 14), "2 of 3 sessions, 14 streams"),
        (Report(1, 1, 1), "1 of 1 sessions, 1 stream"),
        (Report(0, 1, 0, problem="refused"), "0 of 1 sessions, 0 streams: refused"),
        (
            Report(1, 1, 0, problem="of a relay that is not used any more"),
            "1 of 1 sessions, 0 streams",
        ),
        (Report(1, 1, 1, stopping=True, problem="refused"), "stopping, 1 stream left"),
    ],
)
def test_as_text(report: Report, text: str) -> None:
    assert str(report) == text


def test_a_real_agent_without_a_relay(good: str) -> None:
    told: Any = Queue()
    reports = Reports(lambda _: None, told.put, NEVER_S)
    with Agent(load(good).config, on_event=reports) as agent:
        running = Greenlet.spawn(reports.run, agent)
        try:
            while not (report := told.get(timeout=AMPLE_S)).problem:
                assert str(report) == "0 of 2 sessions, 0 streams"
        finally:
            running.kill()
    assert "hidden" not in str(report), "an address may hold a key"
