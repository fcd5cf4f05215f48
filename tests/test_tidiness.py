"""The leak check of conftest.py, checked: it would be easy to break it without noticing."""

from __future__ import annotations

import logging
import threading

import gevent
import pytest
from gevent.event import Event

from tests import conftest
from tests.support.clock import FakeClock


@pytest.fixture
def leaks(
    tidy_greenlets: conftest.Greenlets, monkeypatch: pytest.MonkeyPatch
) -> conftest.Greenlets:
    """The running check, with hardly any patience."""
    monkeypatch.setattr(conftest, "GRACE_S", conftest.MS)
    return tidy_greenlets


def test_a_greenlet_that_dies_of_an_error_is_a_failure(leaks: conftest.Greenlets) -> None:
    gevent.Greenlet.spawn({}.__getitem__, "missing").join()
    [complaint] = leaks.complaints()
    assert "KeyError: 'missing'" in complaint
    assert "Greenlet" in complaint
    leaks.failures.clear()


def test_an_error_in_a_loop_callback_is_a_failure(leaks: conftest.Greenlets) -> None:
    gevent.get_hub().loop.run_callback({}.__getitem__, "missing")
    gevent.sleep(0)
    [complaint] = leaks.complaints()
    assert "KeyError: 'missing'" in complaint
    leaks.failures.clear()


def test_a_greenlet_that_outlives_its_test_is_a_failure(leaks: conftest.Greenlets) -> None:
    greenlet = gevent.Greenlet.spawn(Event().wait)
    [complaint] = leaks.complaints()
    assert complaint == f"{greenlet!r} outlived its test\n"
    assert greenlet.ready(), "not left to the next test"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its end
def test_a_thread_is_a_greenlet_and_watched_too(leaks: conftest.Greenlets) -> None:
    threading.Thread(target=Event().wait, daemon=True).start()
    [complaint] = leaks.complaints()
    assert complaint.endswith("outlived its test\n")


def test_a_greenlet_that_would_not_die_is_named(leaks: conftest.Greenlets) -> None:
    release = Event()

    def stubborn() -> None:
        try:
            Event().wait()
        except gevent.GreenletExit:
            release.wait()

    gevent.Greenlet.spawn(stubborn)
    assert leaks.complaints()[1:] == ["… and would not die\n"]
    release.set()


def test_ending_greenlets_are_given_a_moment(leaks: conftest.Greenlets) -> None:
    greenlet = gevent.Greenlet.spawn(gevent.sleep, 0)
    assert leaks.complaints() == []
    assert greenlet.successful()


def test_logging_is_put_back() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    restoring = conftest.restored_logging.__wrapped__()
    next(restoring)
    root.setLevel(1)
    root.addHandler(logging.NullHandler())
    next(restoring, None)
    assert (root.level, list(root.handlers)) == before


def test_fake_clock_stands_still_until_moved() -> None:
    clock = FakeClock(5.0)
    assert (clock(), clock.advance(2.5), clock()) == (5.0, 7.5, 7.5)
    with pytest.raises(AssertionError):
        clock.advance(-1)
