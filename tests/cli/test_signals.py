from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from nexusg.cli.signals import Signals


if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_stops_and_the_second_does_so_at_once(
    signals: Signals, first: int, second: int
) -> None:
    send(first)
    assert signals.stop.wait(1.0)
    assert not signals.at_once.is_set()
    send(second)
    assert signals.at_once.wait(1.0)
    assert not signals.hangup.is_set()


def test_a_hangup_stops_nothing(signals: Signals) -> None:
    send(signal.SIGHUP)
    assert signals.hangup.wait(1.0)
    assert not signals.stop.is_set()


def test_a_broken_pipe_is_an_error_of_the_write(signals: Signals) -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN


def test_handlers_are_given_back() -> None:
    def mine(_number: int, _frame: object) -> None:
        raise AssertionError("never sent")

    before = {number: signal.getsignal(number) for number in ALL}
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, mine)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with Signals():
            pass
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is mine
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
