"""What workers write in the memory they share with their master."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from nexusg.cli.board import FIRST_LOOK_S, STARTING_S, Board
from nexusg.cli.notify import Notifier
from nexusg.cli.reports import Report
from tests.support.clock import FakeClock
from tests.support.manager import Manager


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WATCHDOG_S = 10.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager.at(tmp_path) as manager:
        yield manager


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def board(manager: Manager, clock: FakeClock) -> Iterator[Board]:
    board = Board(2, Notifier(manager.address, WATCHDOG_S), clock)
    for number in range(2):
        board.expect(number)
    yield board
    board.notifier.close()


def test_the_manager_is_told_when_all_were_heard_of(manager: Manager, board: Board) -> None:
    board.write(0, Report(1, 1, 3))
    board.tell(2)
    assert manager.take() == []
    assert board.every_s == FIRST_LOOK_S
    board.write(1, Report(1, 2, 4))
    board.tell(2)
    status = "STATUS=2 of 3 sessions, 7 streams, 2 of 2 workers"
    assert manager.take() == [["READY=1", status, "WATCHDOG=1"]]
    assert board.every_s == WATCHDOG_S / 2


def test_one_that_has_ended_counts_no_more(manager: Manager, board: Board) -> None:
    for number in range(2):
        board.write(number, Report(1, 1, 5))
    board.expect(1)
    board.tell(1)
    assert "STATUS=1 of 1 sessions, 5 streams, 1 of 2 workers" in manager.take()[0]


def test_stopping_is_told_in_any_case(manager: Manager, board: Board) -> None:
    board.write(0, Report(1, 1, 1))
    board.tell(1, stopping=True)
    status = "STATUS=stopping, 1 stream left, 1 of 2 workers"
    assert manager.take() == [["STOPPING=1", status, "WATCHDOG=1"]]


def test_who_hangs_is_seen_once(board: Board, clock: FakeClock) -> None:
    board.write(0, Report(1, 1, 0))
    clock.advance(WATCHDOG_S)
    assert not board.silent(0)
    clock.advance(0.1)
    assert board.silent(0)
    assert not board.silent(0)
    assert not board.silent(1), "it has only begun"
    clock.advance(STARTING_S)
    assert board.silent(1)


def test_without_a_watchdog_nobody_is_silent(clock: FakeClock) -> None:
    board = Board(1, Notifier(), clock)
    assert not board, "nobody wants to know"
    board.write(0, Report(1, 1, 0))
    clock.advance(1e9)
    assert not board.silent(0)


def agent_of(streams: int) -> Any:
    """An agent with so many streams."""
    stats = SimpleNamespace(sessions=(), streams_active=streams, streams_pending=0)
    return SimpleNamespace(stats=lambda: stats)


def test_a_worker_reports_from_another_process(manager: Manager) -> None:
    """The memory is shared, the socket of the manager is not."""
    board = Board(1, Notifier(manager.address))
    child = gevent.fork()
    if child == 0:
        reports = board.reports(0, print)
        if not board.notifier:
            gevent.Greenlet.spawn(reports.run, agent_of(7))
            gevent.sleep(0)
        os._exit(0)
    gevent.os.waitpid(child, 0)
    board.tell(1)
    board.notifier.close()
    assert manager.take() == [["READY=1", "STATUS=0 of 0 sessions, 7 streams, 1 of 1 workers"]]
