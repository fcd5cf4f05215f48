from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nexusg.agent import lifecycle
from nexusg.agent.lifecycle import (
    LifecycleEvent,
    MessageIgnored,
    ReauthFailed,
    SessionConnected,
    SessionFailed,
    SessionLost,
    SessionRejected,
    TokenStderr,
)
from nexusg.observe.repeats import IDENTITY, INTERVAL_S, MAX_REMEMBERED, Repeats
from tests.support.clock import FakeClock


HERE: dict[str, Any] = {"backend": "web", "relay": "wss://one.test/connect"}
FAILED = SessionFailed(**HERE, code="refused", error="refused", attempts=1, retry_in_s=1.0)
REJECTED = SessionRejected(**HERE, stage="attest", reason="no", attempts=1, retry_in_s=5.0)
CONNECTED = SessionConnected(**HERE, session="s1", took_s=0.1, tls="")
IGNORED = MessageIgnored(**HERE, session="s1", what="unknown event")
REAUTH = ReauthFailed(**HERE, session="s1", error="no token", attempts=1, final=False)
STDERR = TokenStderr(backend="web", line="deprecated")

REPEATING = [FAILED, REJECTED, IGNORED, REAUTH, STDERR]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def repeats(clock: FakeClock) -> Repeats:
    return Repeats(clock)


@pytest.mark.parametrize("event", REPEATING, ids=lambda event: event.name())
def test_a_repeated_failure_is_a_line_a_minute(
    event: LifecycleEvent, repeats: Repeats, clock: FakeClock
) -> None:
    assert repeats.check(event) == 0
    for _ in range(5):
        clock.advance(INTERVAL_S / 6)
        assert repeats.check(event) is None
    clock.advance(INTERVAL_S / 6)
    assert repeats.check(event) == 5
    assert repeats.check(event) is None
    clock.advance(INTERVAL_S)
    assert repeats.check(event) == 1
    clock.advance(INTERVAL_S)
    assert repeats.check(event) == 0


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (FAILED, {"attempts": 2, "retry_in_s": 4.0, "at": 9.0}),
        (REJECTED, {"attempts": 2, "retry_in_s": None}),
        (IGNORED, {"session": "s2"}),
        (REAUTH, {"session": "s2", "attempts": 3}),
    ],
)
def test_what_varies_from_try_to_try_makes_no_difference(
    event: Any, changes: dict[str, Any], repeats: Repeats
) -> None:
    assert repeats.check(event) == 0
    assert repeats.check(dataclasses.replace(event, **changes)) is None


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (event, {name: not getattr(event, name) if name == "final" else "other"})
        for event in REPEATING
        for name in IDENTITY[type(event)]
    ],
)
def test_another_failure_is_news(event: Any, changes: dict[str, Any], repeats: Repeats) -> None:
    assert repeats.check(event) == 0
    assert repeats.check(dataclasses.replace(event, **changes)) == 0


def test_other_events_are_never_left_out(repeats: Repeats) -> None:
    lost = SessionLost(
        **HERE, session="s1", code="eof", error="", duration_s=1, streams=0, retry_in_s=0
    )
    assert [repeats.check(event) for event in (CONNECTED, CONNECTED, lost, lost)] == [0] * 4


def test_after_a_success_the_next_failure_is_news(repeats: Repeats) -> None:
    elsewhere = dataclasses.replace(FAILED, relay="wss://two.test/connect")
    for event in (FAILED, REJECTED, IGNORED, elsewhere):
        assert repeats.check(event) == 0
    repeats.check(CONNECTED)
    assert [repeats.check(event) for event in (FAILED, REJECTED)] == [0, 0]
    assert [repeats.check(event) for event in (IGNORED, elsewhere)] == [None, None]


def test_memory_is_bounded(repeats: Repeats) -> None:
    for number in range(MAX_REMEMBERED + 1):
        assert repeats.check(dataclasses.replace(STDERR, line=str(number))) == 0
    assert repeats.check(dataclasses.replace(STDERR, line="1")) is None
    assert repeats.check(dataclasses.replace(STDERR, line="0")) == 0, "the oldest is forgotten"
    assert len(repeats._memory) == MAX_REMEMBERED


def test_identities_name_fields() -> None:
    for kind, names in IDENTITY.items():
        assert kind.__module__ == lifecycle.__name__
        assert set(names) < {field.name for field in dataclasses.fields(kind)}
