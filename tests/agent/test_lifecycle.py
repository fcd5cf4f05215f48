"""The events: their names, and what they must not hold."""

from __future__ import annotations

import dataclasses
import inspect
import time

import pytest

from nexusg.agent import lifecycle
from nexusg.agent.lifecycle import LifecycleEvent, SessionConnected, StreamClosed


ABSTRACT = {"LifecycleEvent", "BackendEvent", "SessionEvent", "StreamEvent"}
EVENTS = [
    kind
    for _, kind in inspect.getmembers(lifecycle, inspect.isclass)
    if issubclass(kind, LifecycleEvent) and kind.__name__ not in ABSTRACT
]


def test_there_are_events() -> None:
    assert len(EVENTS) >= 19


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event(kind: type[LifecycleEvent]) -> None:
    """A dotted name, a level that logs know, plain values, and no place for a token."""
    assert kind.name().count(".") == 1
    assert kind.name().replace(".", "") == kind.__name__.lower()
    assert kind.level in ("debug", "info", "warning", "error")
    assert kind.__doc__
    for field in dataclasses.fields(kind):
        assert field.type in (
            "str",
            "int",
            "float",
            "bool",
            "float | None",
            "int | None",
            "tuple[str, ...]",
        ), field.name
        assert "token" not in field.name
        assert "secret" not in field.name


def test_names_differ() -> None:
    assert len({kind.name() for kind in EVENTS}) == len(EVENTS)


def test_the_name_is_that_of_the_class() -> None:
    assert SessionConnected.name() == "session.connected"
    assert StreamClosed.name() == "stream.closed"


def test_an_event_knows_when_it_happened() -> None:
    event = SessionConnected(backend="web", relay="wss://r", session="s1", took_s=1.0, tls="")
    assert event.at == pytest.approx(time.time(), abs=60)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.session = "s2"  # type: ignore[misc]
