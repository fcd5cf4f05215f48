"""The delays of PROTOCOL.md section 8.3, row by row."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.agent.reconnect import (
    BACKOFF_MAX_S,
    BARRED_S,
    FLOOR_S,
    HEALTHY_S,
    HERD_S,
    REJECTED_MAX_S,
    WAKE_MAX_S,
    ReconnectPolicy,
)
from nexusg.errors import (
    AuthorizerError,
    DialFailed,
    NexusgError,
    Rejected,
    RemoteProtocolError,
    Retry,
    SessionLost,
    TokenError,
    TokenTimeout,
    UpgradeRefused,
)
from tests.support.clock import FakeClock


if TYPE_CHECKING:
    from collections.abc import Callable

DOWN = DialFailed("connection refused", "refused")
REJECTED = Rejected("attest", "session nonce mismatch")
LOST = SessionLost("the relay closed the connection", "eof")

#: Jitter at its extremes, and in between.
RNGS = [lambda: 0.0, lambda: 0.5, lambda: 1 - 2**-53]

jitter = pytest.mark.parametrize("rng", RNGS, ids=["least", "middle", "most"])


def most(policy: ReconnectPolicy, error: NexusgError, count: int) -> list[float]:
    return [round(policy.delay_s(error), 3) for _ in range(count)]


@pytest.mark.parametrize(
    "error",
    [DOWN, UpgradeRefused(503, "unavailable"), UpgradeRefused(404, "x"), SessionLost("x"),
     RemoteProtocolError("a mask"), UpgradeRefused(503, "x", retry_after_s=3600.0)],
)  # fmt: skip
def test_failures_back_off_to_a_minute(error: Exception) -> None:
    policy = ReconnectPolicy(RNGS[2])
    delays = [round(policy.delay_s(error)) for _ in range(8)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_full_jitter_has_a_floor() -> None:
    assert most(ReconnectPolicy(lambda: 0.0), DOWN, 3) == [FLOOR_S] * 3
    assert most(ReconnectPolicy(lambda: 0.5), DOWN, 3) == [0.75, 1.25, 2.25]


def test_a_rate_limit_is_a_minute_or_more() -> None:
    error = UpgradeRefused(429, "too many")
    assert most(ReconnectPolicy(RNGS[0]), error, 2) == [60.0, 60.0]
    assert most(ReconnectPolicy(RNGS[2]), error, 1) == [75.0]


def test_a_device_that_is_barred_takes_its_time() -> None:
    """And neither is that a missing token, nor does the network cure it."""
    barred = AuthorizerError("suspended", "authorizer_refused", 403)
    assert most(ReconnectPolicy(RNGS[0]), barred, 2) == [BARRED_S] * 2
    policy = ReconnectPolicy(RNGS[2])
    assert most(policy, barred, 1) == pytest.approx([1.25 * BARRED_S])
    assert not policy.wake()
    assert policy.delay_s(TokenError("x")) == pytest.approx(2.5)


def test_retry_after_is_heeded() -> None:
    error = UpgradeRefused(429, "too many", retry_after_s=600.0)
    assert most(ReconnectPolicy(RNGS[0]), error, 1) == [600.0]
    assert most(ReconnectPolicy(RNGS[2]), error, 1) == [750.0]


def test_retry_after_nothing_is_no_invitation() -> None:
    error = UpgradeRefused(429, "too many", retry_after_s=0.0)
    assert most(ReconnectPolicy(RNGS[0]), error, 4) == [1.0, 2.0, 4.0, 8.0]


@jitter
@pytest.mark.parametrize(
    ("error", "first"),
    [(REJECTED, 5), (UpgradeRefused(401, "x"), 5), (TokenError("x"), 2), (TokenTimeout("x"), 2)],
)
def test_rejections_and_missing_tokens_grow(
    rng: Callable[[], float], error: NexusgError, first: int
) -> None:
    delays = most(ReconnectPolicy(rng), error, 100)
    assert first <= delays[0] <= 1.25 * first
    assert delays == sorted(delays)
    assert all(after > before for before, after in pairwise(delays[:6]))
    assert delays[-1] == REJECTED_MAX_S


@given(st.randoms(use_true_random=False))
def test_jitter_never_makes_a_later_delay_shorter(randoms: random.Random) -> None:
    delays = most(ReconnectPolicy(randoms.random), REJECTED, 12)
    assert delays == sorted(delays)


@jitter
def test_the_conformance_window(rng: Callable[[], float]) -> None:
    """Two or three attempts in 17 s when each is rejected; two to ten when each fails."""
    rejected = [0.0, *accumulate(most(ReconnectPolicy(rng), REJECTED, 5))]
    assert 2 <= sum(at < 17 for at in rejected) <= 3
    if rng is not RNGS[0]:  # chance like that does not happen; see the next test
        failed = [0.0, *accumulate(most(ReconnectPolicy(rng), DOWN, 12))]
        assert 2 <= sum(at < 17 for at in failed) <= 10


def test_ten_attempts_in_the_window_are_plenty() -> None:
    """What chance makes of full jitter."""
    for seed in range(500):
        policy = ReconnectPolicy(random.Random(seed).random)
        failed = [0.0, *accumulate(most(policy, DOWN, 12))]
        assert 2 <= sum(at < 17 for at in failed) <= 10


@jitter
def test_a_good_session_is_replaced_within_a_second(rng: Callable[[], float]) -> None:
    policy = ReconnectPolicy(rng)
    most(policy, DOWN, 10)
    delay = policy.delay_s(LOST, HEALTHY_S)
    assert 0 <= delay <= HERD_S
    assert delay == HERD_S * rng()
    assert policy.delay_s(DOWN) <= 1.0, "then exponential, from the beginning"


def test_short_sessions_back_off() -> None:
    """The first is replaced within a second, and no short one resets the counter."""
    policy = ReconnectPolicy(RNGS[2])
    delays = [round(policy.delay_s(LOST, 1.0)) for _ in range(3)]
    delays += [round(policy.delay_s(DOWN)), round(policy.delay_s(LOST, HEALTHY_S - 1))]
    assert delays == [1, 2, 4, 8, 16]


def test_a_session_that_ends_otherwise_counts_as_what_it_was() -> None:
    policy = ReconnectPolicy(RNGS[0])
    assert policy.delay_s(Rejected("reauth", "revoked"), 600.0) == 5.0
    assert policy.delay_s(TokenError("no key"), 600.0) == 2.0


def test_rejections_in_a_row() -> None:
    policy = ReconnectPolicy(RNGS[0])
    most(policy, REJECTED, 2)
    most(policy, DOWN, 1)
    assert policy.rejections == 2, "a failure to connect proves nothing"
    assert most(policy, REJECTED, 1) == [20.0]
    assert policy.rejections == 3
    policy.delay_s(LOST, 0.0)
    assert policy.rejections == 0, "an accepted session does"
    assert most(policy, REJECTED, 1) == [5.0]
    assert policy.rejections == 1


def test_missing_tokens_in_a_row() -> None:
    policy = ReconnectPolicy(RNGS[0])
    assert most(policy, TokenError("x"), 3) == [2.0, 4.0, 8.0]
    most(policy, DOWN, 1)
    assert most(policy, TokenError("x"), 1) == [2.0], "dialling needs a token"


def test_counters_do_not_mix() -> None:
    policy = ReconnectPolicy(RNGS[2])
    most(policy, REJECTED, 5)
    most(policy, TokenError("x"), 5)
    assert most(policy, DOWN, 1) == [1.0]


def test_attempts_in_a_row() -> None:
    policy = ReconnectPolicy(RNGS[0])
    assert policy.attempts == 0
    for error in (DOWN, REJECTED, TokenError("x")):
        policy.delay_s(error)
    assert policy.attempts == 3
    policy.delay_s(LOST, 5.0)
    assert policy.attempts == 1


def test_it_can_go_on_for_years() -> None:
    policy = ReconnectPolicy(RNGS[2])
    for error in (DOWN, REJECTED, TokenError("x")):
        for _ in range(2000):
            delay = policy.delay_s(error)
        assert round(delay) == (BACKOFF_MAX_S if error is DOWN else REJECTED_MAX_S)


# Network changes -------------------------------------------------------------------------------


def waiting_policy(error: NexusgError = DOWN) -> tuple[ReconnectPolicy, FakeClock]:
    clock = FakeClock()
    policy = ReconnectPolicy(RNGS[2], clock)
    most(policy, error, 6)
    return policy, clock


@pytest.mark.parametrize("error", [DOWN, LOST, TokenError("x")])
def test_a_change_ends_the_wait_and_makes_the_next_short(error: NexusgError) -> None:
    policy, _ = waiting_policy(error)
    assert policy.wake()
    assert policy.delay_s(error) <= 2.5


@pytest.mark.parametrize("error", [REJECTED, UpgradeRefused(429, "x"), UpgradeRefused(403, "x")])
def test_a_change_does_not_cure_a_rejection(error: NexusgError) -> None:
    policy, _ = waiting_policy(error)
    before = policy.rejections
    assert not policy.wake()
    assert policy.rejections == before


def test_changes_are_heeded_ever_more_rarely() -> None:
    policy, clock = waiting_policy()
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        assert policy.wake()
        clock.advance(pause - 0.01)
        assert not policy.wake()
        clock.advance(0.01)
    assert policy.wake()


def test_after_a_good_session_changes_are_heeded_at_once() -> None:
    policy, clock = waiting_policy()
    for _ in range(8):
        policy.wake()
        clock.advance(WAKE_MAX_S)
    policy.delay_s(LOST, HEALTHY_S)
    assert policy.wake()
    clock.advance(1.0)
    assert policy.wake()


def test_a_storm_does_not_defeat_the_backoff() -> None:
    """Case 48: a change each 100 ms for an hour, while every attempt fails at once."""
    clock = FakeClock()
    policy = ReconnectPolicy(random.Random(1).random, clock)
    attempts = 0
    while clock.now < 1000.0 + 3600.0:
        attempts += 1
        over = clock.now + policy.delay_s(DOWN)
        while clock.now < over:
            clock.advance(min(0.1, over - clock.now + 1e-9))
            if policy.wake():
                break
    assert attempts < 60 * 10


ERRORS = [DOWN, REJECTED, LOST, TokenError("x"), UpgradeRefused(429, "x"), ValueError("a bug")]
steps = st.tuples(st.sampled_from(ERRORS), st.none() | st.floats(0, 1e6), st.booleans())


@given(st.lists(steps, max_size=50), st.randoms(use_true_random=False))
def test_delays_have_their_bounds(
    history: list[tuple[Exception, float | None, bool]], randoms: random.Random
) -> None:
    policy = ReconnectPolicy(randoms.random, FakeClock())
    for error, accepted_s, change in history:
        delay = policy.delay_s(error, accepted_s)
        retry = getattr(error, "retry", Retry.BACKOFF)
        least, bound = {
            Retry.BACKOFF: (FLOOR_S, 60.0),
            Retry.LOST: (0.0, 60.0),
            Retry.REJECTED: (5.0, 300.0),
            Retry.TOKEN: (2.0, 300.0),
            Retry.RATE_LIMITED: (60.0, 75.0),
        }[retry]
        assert least <= delay <= bound
        assert policy.attempts >= 1
        if change:
            policy.wake()
