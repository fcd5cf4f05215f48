from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nexusg.relay.authorizer.limits import Limiter, Limits, Rate
from nexusg.relay.authorizer.refusal import Refusal
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable


def granted(take: Callable[[], None], times: int = 1000) -> int:
    """How many of ``times`` are granted."""
    for count in range(times):
        try:
            take()
        except Refusal:
            return count
    return times


def test_bursts_and_rates() -> None:
    clock = FakeClock()
    limiter = Limiter(Limits(), clock)
    one, other = (lambda who=who: limiter.device("device_write", who) for who in "ab")
    assert granted(one) == 10
    assert granted(one) == 0
    assert granted(other) == 10
    clock.advance(3.5)
    assert granted(one) == 3
    clock.advance(3600)
    assert granted(one) == 10


def test_reading_is_counted_apart() -> None:
    limiter = Limiter(Limits(), FakeClock())
    assert granted(lambda: limiter.device("device_write", "a")) == 10
    assert granted(lambda: limiter.device("device_read", "a")) == 20


@pytest.mark.parametrize(("kind", "each", "total"), [("enrollment", 5, 20), ("nonce", 100, 400)])
def test_of_one_address_and_of_all(kind: str, each: int, total: int) -> None:
    limiter = Limiter(Limits(), FakeClock())
    counts = [granted(lambda who=who: limiter.public(kind, who)) for who in "abcde"]  # type: ignore[misc]
    assert counts == [each] * 4 + [0]
    assert sum(counts) == total


@pytest.mark.parametrize(("rate", "wait_s"), [(10, 1), (0.4, 3), (0.001, 60)])
def test_when_to_come_again(rate: float, wait_s: int) -> None:
    limiter = Limiter(Limits(device_read=Rate(rate, 1)), FakeClock())
    limiter.device("device_read", "a")
    with pytest.raises(Refusal) as caught:
        limiter.device("device_read", "a")
    assert (caught.value.status, caught.value.text) == (429, "rate limit exceeded")
    assert caught.value.retry_after_s == wait_s


def test_without_limits() -> None:
    limiter = Limiter(None, FakeClock())
    assert granted(lambda: limiter.public("enrollment", "a")) == 1000
