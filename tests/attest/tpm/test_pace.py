"""The waits between attempts, on a clock that only they move."""

from __future__ import annotations

import time

import pytest

from nexusg.attest.tpm.pace import JITTER, LEAST_S, MARGIN_S, Pace, Timing, again
from nexusg.errors import AuthorizerError, TpmError
from tests.attest.tpm.doubles import FakeTime
from tests.support.clock import FakeClock


ERROR = AuthorizerError("HTTP 503", status=503)


def test_waits_grow_until_the_time_is_up() -> None:
    time_ = FakeTime()
    pace = Pace(time_.timing, 8.0)
    for _ in range(4):
        pace.back_off(ERROR)
    with pytest.raises(AuthorizerError) as failure:
        pace.back_off(ERROR)
    assert failure.value is ERROR
    assert time_.slept == [0.5, 1.0, 2.0, 4.0]
    assert pace.left_s() == pytest.approx(0.5)


def test_retry_after_is_obeyed() -> None:
    time_ = FakeTime()
    pace = Pace(time_.timing, 8.0)
    pace.back_off(AuthorizerError("HTTP 429", status=429, retry_after_s=3.0))
    assert time_.slept == [3.0]
    with pytest.raises(AuthorizerError):
        pace.back_off(AuthorizerError("HTTP 429", status=429, retry_after_s=60.0))
    assert time_.slept == [3.0]


@pytest.mark.parametrize(("left_s", "waits"), [(1.0 + LEAST_S, True), (0.9 + LEAST_S, False)])
def test_an_attempt_that_could_only_fail_is_not_waited_for(left_s: float, waits: bool) -> None:
    time_ = FakeTime()
    pace = Pace(time_.timing, left_s)
    if waits:
        pace.wait(1.0, ERROR)
    else:
        with pytest.raises(AuthorizerError):
            pace.wait(1.0, ERROR)
    assert bool(time_.slept) is waits


def test_steps_end_before_the_whole() -> None:
    time_ = FakeTime()
    pace = Pace(time_.timing, 1.0)
    assert pace.step_s() == pytest.approx(1.0 - MARGIN_S)
    time_.clock.advance(2.0)
    assert pace.left_s() == pace.step_s() == 0.0


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_jitter_stays_within_a_quarter(chance: float) -> None:
    timing = Timing(FakeClock(), rng=lambda: chance)
    assert 1 - JITTER <= timing.jittered(1.0) <= 1 + JITTER


def test_timing_is_real_unless_told() -> None:
    timing = Timing()
    assert timing.clock() == pytest.approx(time.monotonic(), abs=60)
    assert timing.wall() == pytest.approx(time.time(), abs=60)
    assert 0 <= timing.rng() < 1


def test_again_is_the_same_without_a_trace() -> None:
    for error in (AuthorizerError("no", "authorizer_refused", 403, 5.0), TpmError("no", "tpm_io")):
        try:
            raise error
        except (AuthorizerError, TpmError) as caught:
            copy = again(caught)
        assert copy is not error
        assert copy.__traceback__ is None
        assert (str(copy), vars(copy)) == (str(error), vars(error))
