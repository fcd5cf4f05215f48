"""Events reach the subscriber in order, whatever the subscriber does, and nobody waits for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent.event import Event

from nexusg.agent import dispatch
from nexusg.agent.dispatch import Dispatcher
from nexusg.agent.lifecycle import NetworkChanged
from nexusg.agent.tasks import Tasks


if TYPE_CHECKING:
    from collections.abc import Iterator

AMPLE_S = 5.0


class Seen:
    """A subscriber. Its gate may be closed, and it may raise."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.gate = Event()
        self.gate.set()
        self.raises: BaseException | None = None

    def __call__(self, event: Any) -> None:
        self.gate.wait()
        self.events.append(event)
        if self.raises is not None:
            raise self.raises

    @property
    def details(self) -> list[str]:
        """What the events say."""
        return [getattr(event, "detail", event.name()) for event in self.events]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    failures: list[object] = []
    tasks = Tasks("test", lambda *failure: failures.append(failure))
    yield tasks
    assert tasks.kill(AMPLE_S)
    assert not failures


@pytest.fixture
def dispatcher(seen: Seen, tasks: Tasks) -> Dispatcher:
    dispatcher = Dispatcher(seen, tasks)
    dispatcher.start()
    return dispatcher


def emit(dispatcher: Dispatcher, *details: str) -> None:
    """Emit events that say so."""
    for detail in details:
        dispatcher.emit(NetworkChanged(detail=detail))


def test_events_come_in_order(dispatcher: Dispatcher, seen: Seen) -> None:
    emit(dispatcher, "one", "two")
    assert seen.events == [], "not in the greenlet of whoever emits"
    gevent.sleep(0)
    emit(dispatcher, "three")
    assert dispatcher.stop(AMPLE_S)
    assert seen.details == ["one", "two", "three"]


def test_what_is_emitted_before_the_start_is_not_lost(seen: Seen, tasks: Tasks) -> None:
    dispatcher = Dispatcher(seen, tasks)
    emit(dispatcher, "early")
    dispatcher.start()
    assert dispatcher.stop(AMPLE_S)
    assert seen.details == ["early"]


def test_without_a_subscriber_nothing_is_kept(tasks: Tasks) -> None:
    dispatcher = Dispatcher(None, tasks)
    dispatcher.start()
    emit(dispatcher, "unheard")
    assert len(tasks) == 0
    assert dispatcher.stop(0)
    assert dispatcher.dropped == 0


@pytest.mark.parametrize("error", [ValueError("broken"), gevent.Timeout(1)], ids=repr)
def test_a_subscriber_that_raises(
    dispatcher: Dispatcher, seen: Seen, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It is logged, and the next event comes all the same; also after a leaked Timeout."""
    seen.raises = error
    emit(dispatcher, "one", "two")
    with caplog.at_level(logging.ERROR, "nexusg"):
        assert dispatcher.stop(AMPLE_S)
    assert seen.details == ["one", "two"]
    assert caplog.messages == ["the event handler failed on network.changed"] * 2
    assert caplog.records[0].exc_info is not None


def test_a_slow_subscriber_loses_events_and_is_told(
    dispatcher: Dispatcher, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded: memory is, too."""
    monkeypatch.setattr(dispatch, "QUEUE_EVENTS", 3)
    seen.gate.clear()
    emit(dispatcher, "under way")
    gevent.sleep(0)
    emit(dispatcher, *"abcdef")
    assert dispatcher.dropped == 3
    seen.gate.set()
    while len(seen.events) < 5:
        gevent.sleep(0)
    emit(dispatcher, "after")
    assert dispatcher.stop(AMPLE_S)
    assert seen.details == ["under way", "a", "b", "c", "events.dropped", "after"]
    assert seen.events[4].count == 3


def test_a_subscriber_that_hangs_is_not_waited_for(
    dispatcher: Dispatcher, seen: Seen, tasks: Tasks
) -> None:
    seen.gate.clear()
    emit(dispatcher, "one")
    gevent.sleep(0)
    assert not dispatcher.stop(0)
    assert len(tasks) == 1


def test_a_subscriber_may_emit(tasks: Tasks) -> None:
    """It may do what leads to events."""
    heard = []

    def subscriber(event: Any) -> None:
        heard.append(event.detail)
        if len(heard) < 3:
            emit(dispatcher, f"{event.detail}+")

    dispatcher = Dispatcher(subscriber, tasks)
    dispatcher.start()
    emit(dispatcher, "a")
    assert dispatcher.stop(AMPLE_S)
    assert heard == ["a", "a+", "a++"]


def test_it_ends_when_it_is_stopped(dispatcher: Dispatcher, tasks: Tasks) -> None:
    gevent.sleep(0)
    assert dispatcher.stop(AMPLE_S)
    assert dispatcher.stop(AMPLE_S)
    assert len(tasks) == 0
