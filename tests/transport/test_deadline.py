"""One point in time for several steps."""

from __future__ import annotations

import time

import gevent
import pytest

from nexusg.transport.deadline import Deadline, limit


class Late(Exception):
    pass


def test_it_counts_down_and_never_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(3.0)
    assert (deadline.remaining(), deadline.expired) == (3.0, False)
    now = 102.5
    assert (deadline.remaining(), deadline.expired) == (0.5, False)
    now = 103.0
    assert (deadline.remaining(), deadline.expired) == (0.0, True)
    now = 999.0
    assert (deadline.remaining(), deadline.expired) == (0.0, True)


def test_a_limit_raises_its_error() -> None:
    error = Late("too late")
    with pytest.raises(Late) as caught, limit(Deadline(0), error):
        gevent.sleep(5)
    assert caught.value is error
    assert isinstance(error.__cause__, gevent.Timeout)


def test_one_deadline_serves_several_steps() -> None:
    deadline = Deadline(0.01)
    with limit(deadline, Late("the first step")):
        gevent.sleep(0)
    with pytest.raises(Late, match="the second step"), limit(deadline, Late("the second step")):
        gevent.sleep(5)


def test_except_exception_does_not_stop_it() -> None:
    def library() -> None:
        try:
            gevent.sleep(5)
        except Exception:
            pytest.fail("a library would have swallowed the limit")

    with pytest.raises(Late), limit(Deadline(0), Late()):
        library()


def test_it_is_gone_after_the_block() -> None:
    with limit(Deadline(0.001), Late()):
        pass
    gevent.sleep(0.002)


def test_errors_of_the_block_pass() -> None:
    with pytest.raises(KeyError), limit(Deadline(5), Late()):
        raise KeyError


def test_another_timeout_passes() -> None:
    outer = gevent.Timeout(0)
    with pytest.raises(gevent.Timeout) as caught, outer, limit(Deadline(5), Late()):
        gevent.sleep(5)
    assert caught.value is outer
