"""The events of a session are plain data: frozen, equal by value, without a token in them."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from nexusg.protocol import events


KINDS = [
    value
    for value in vars(events).values()
    if isinstance(value, type) and value.__module__ == events.__name__
]


def test_the_union_names_every_event() -> None:
    assert set(typing.get_args(events.Event)) == set(KINDS)
    assert len(KINDS) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_values(kind: type) -> None:
    fields = [field.name for field in dataclasses.fields(kind)]
    one, other = (kind(*range(len(fields))) for _ in range(2))
    assert one == other
    assert not hasattr(one, "__dict__")
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, None)
