"""The events of devices keep the rules of all events (see test_lifecycle)."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from nexusg.agent import device_events, lifecycle
from nexusg.agent.device_events import DeviceEvent, EnrolmentFailed
from nexusg.agent.devices import _EVENTS
from nexusg.agent.lifecycle import LifecycleEvent
from nexusg.attest.tpm import notices


EVENTS = [
    kind
    for _, kind in inspect.getmembers(device_events, inspect.isclass)
    if issubclass(kind, DeviceEvent) and kind is not DeviceEvent
]

TYPES = ("str", "int", "float", "bool", "float | None", "tuple[str, ...]")


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event(kind: type[LifecycleEvent]) -> None:
    assert kind.name().count(".") == 1
    assert kind.level in ("debug", "info", "warning", "error")
    assert kind.__doc__
    for field in dataclasses.fields(kind):
        assert field.type in TYPES, field.name
        assert not any(word in field.name for word in ("token", "secret", "nonce"))


def test_names_differ() -> None:
    others = {
        kind.name()
        for _, kind in inspect.getmembers(lifecycle, inspect.isclass)
        if issubclass(kind, LifecycleEvent)
    }
    names = {kind.name() for kind in EVENTS}
    assert len(names) == len(EVENTS) == 8
    assert not names & others


def test_the_name_is_that_of_the_class() -> None:
    assert EnrolmentFailed.name() == "enrolment.failed"


def test_every_notice_has_its_event() -> None:
    """With the same fields, and the backend and the time besides."""
    assert set(_EVENTS) == set(typing.get_args(notices.Notice))
    for notice, event in _EVENTS.items():
        fields = {field.name for field in dataclasses.fields(event)}
        assert fields == {"at", "backend"} | {field.name for field in dataclasses.fields(notice)}
