from __future__ import annotations

import math

import pytest

from nexusg.cli.exits import Exit
from nexusg.cli.workers import BACKOFF_MAX_S, STABLE_S, Slot, Workers


def started(count: int, now: float = 0.0) -> Workers:
    workers = Workers(count)
    for slot in workers.due(now):
        workers.started(slot, 100 + slot.number, now)
    return workers


def numbers(slots: list[Slot]) -> list[int]:
    return [slot.number for slot in slots]


def test_all_are_due_at_once_and_only_once() -> None:
    workers = Workers(3)
    assert numbers(workers.due(0.0)) == [0, 1, 2]
    assert not workers.ended
    workers = started(3)
    assert (workers.due(0.0), workers.wake_at) == ([], math.inf)
    assert numbers(workers.running) == [0, 1, 2]


def test_the_dead_come_back_later_and_later() -> None:
    workers = started(2)
    first, now, waits = workers.slots[0], 0.0, []
    for _ in range(8):
        workers.exited(first, 1, now)
        waits.append(workers.wake_at - now)
        assert workers.due(workers.wake_at - 0.001) == []
        now = workers.wake_at
        assert workers.due(now) == [first]
        workers.started(first, 200, now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_stable_worker_comes_back_soon_again() -> None:
    workers = started(1)
    (slot,) = workers.slots
    for now in (0.0, 0.0, STABLE_S - 0.1):
        workers.exited(slot, 1, now)
        workers.started(slot, 200, now)
    assert slot.due_at - now == 4
    workers.exited(slot, 1, now + STABLE_S)
    assert slot.due_at - (now + STABLE_S) == 1


def test_the_wait_itself_is_not_stability() -> None:
    """A worker that could not even be started has not run, however long ago the last one did."""
    (slot,) = Workers(1).slots
    for now in (0.0, 100.0, 200.0):
        slot.bury(now)
    assert slot.due_at == 204


def test_many_deaths_do_not_overflow() -> None:
    slot = Slot(0, deaths=10_000)
    slot.bury(0.0)
    assert slot.due_at == BACKOFF_MAX_S


@pytest.mark.parametrize("code", [0, 1, -9])
def test_whatever_ends_unasked_is_started_again(code: int) -> None:
    workers = started(1)
    workers.exited(workers.slots[0], code, 0.0)
    assert not workers.ended
    assert workers.wake_at == 1


def test_stopped_as_asked() -> None:
    workers = started(2)
    workers.stop(40.0, 5.0)
    assert (workers.ended, workers.wake_at) == (False, 45)
    workers.exited(workers.slots[0], 0, 6.0)
    assert not workers.ended
    workers.exited(workers.slots[1], 0, 7.0)
    assert (workers.ended, workers.exit_code) == (True, Exit.OK)


def test_who_waits_to_be_started_is_not_while_stopping() -> None:
    workers = started(2)
    workers.exited(workers.slots[0], 1, 0.0)
    workers.stop(40.0, 0.0)
    assert workers.due(10.0) == []
    workers.exited(workers.slots[1], 0, 10.0)
    assert (workers.ended, workers.exit_code) == (True, Exit.OK), "the crash is an older story"


@pytest.mark.parametrize("code", [1, -9])
def test_a_stop_that_goes_wrong_is_a_failure(code: int) -> None:
    workers = started(2)
    workers.stop(40.0, 0.0)
    workers.exited(workers.slots[0], code, 1.0)
    workers.exited(workers.slots[1], 0, 1.0)
    assert workers.exit_code is Exit.FAILED


def test_who_does_not_stop_is_overdue_once() -> None:
    workers = started(2)
    workers.stop(40.0, 0.0)
    workers.exited(workers.slots[0], 0, 1.0)
    assert workers.overdue(39.9) == []
    assert numbers(workers.overdue(40.0)) == [1]
    assert (workers.overdue(41.0), workers.wake_at) == ([], math.inf)


def test_a_second_stop_can_only_be_sooner() -> None:
    workers = started(1)
    workers.stop(40.0, 0.0)
    workers.stop(10.0, 5.0)
    assert workers.wake_at == 15
    workers.stop(10.0, 10.0)
    assert workers.wake_at == 15


def test_all_have_given_up() -> None:
    workers = started(2)
    workers.exited(workers.slots[0], 3, 0.0)
    assert (workers.due(1000.0), workers.ended) == ([], False), "the other one goes on"
    workers.exited(workers.slots[1], 3, 0.0)
    assert (workers.ended, workers.exit_code) == (True, Exit.REFUSED)


def test_one_has_given_up_and_the_other_is_stopped() -> None:
    workers = started(2)
    workers.exited(workers.slots[0], 3, 0.0)
    workers.stop(40.0, 0.0)
    workers.exited(workers.slots[1], 0, 0.0)
    assert (workers.ended, workers.exit_code) == (True, Exit.OK)


def test_an_unusable_configuration_is_no_better_next_time() -> None:
    workers = started(2)
    assert not workers.unusable
    workers.exited(workers.slots[0], 2, 0.0)
    assert workers.unusable
    workers.stop(40.0, 0.0)
    workers.exited(workers.slots[1], 1, 0.0)
    assert (workers.ended, workers.exit_code) == (True, Exit.USAGE)
