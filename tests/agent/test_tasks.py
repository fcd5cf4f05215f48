from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from nexusg.agent.tasks import Tasks, contained


# Long enough never to be reached by a passing test.
AMPLE_S = 5.0


class Recorder:
    """An ``on_error`` that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException]] = []

    def __call__(self, name: str, error: BaseException) -> None:
        self.seen.append((name, error))


@pytest.fixture
def errors() -> Recorder:
    return Recorder()


@pytest.fixture
def tasks(errors: Recorder) -> Tasks:
    return Tasks("test", errors)


def forever() -> None:
    Event().wait()


def ignore_one_kill(begun: Event, release: Event) -> None:
    begun.set()
    try:
        forever()
    except gevent.GreenletExit:
        release.wait()


def test_spawn_names_runs_and_returns_the_value(tasks: Tasks, errors: Recorder) -> None:
    task = tasks.spawn("adder", int.__add__, 2, 3)
    assert task.name == "adder"
    assert not task.ready()  # not before the next loop turn
    assert task.get(timeout=AMPLE_S) == 5
    assert errors.seen == []


def test_len_and_repr_count_what_has_not_ended(tasks: Tasks) -> None:
    assert (len(tasks), repr(tasks)) == (0, "<Tasks test: 0 running>")
    tasks.spawn("a", int)
    tasks.spawn("b", int)
    assert (len(tasks), repr(tasks)) == (2, "<Tasks test: 2 running>")
    assert tasks.join(AMPLE_S)
    assert len(tasks) == 0


@pytest.mark.parametrize("error", [ValueError("no"), gevent.Timeout(1), LookupError()], ids=repr)
def test_an_error_is_reported_with_the_name(
    tasks: Tasks, errors: Recorder, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    task = tasks.spawn("failing", fail)
    assert tasks.join(AMPLE_S)
    assert errors.seen == [("failing", error)]
    assert error.__traceback__ is not None
    assert task.value is None


def test_one_failure_leaves_the_others_running(tasks: Tasks, errors: Recorder) -> None:
    tasks.spawn("stays", forever)
    failing = tasks.spawn("failing", {}.__getitem__, "missing")
    failing.join(AMPLE_S)
    assert [name for name, _ in errors.seen] == ["failing"]
    assert len(tasks) == 1
    assert tasks.kill(AMPLE_S)


def test_greenlet_exit_is_no_error(tasks: Tasks, errors: Recorder) -> None:
    def leave() -> None:
        raise gevent.GreenletExit

    tasks.spawn("leaving", leave)
    assert tasks.join(AMPLE_S)
    assert errors.seen == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_reaches_the_main_greenlet(
    tasks: Tasks, errors: Recorder, error: type[BaseException]
) -> None:
    def leave() -> None:
        raise error

    tasks.spawn("leaving", leave)
    with pytest.raises(error):
        tasks.join(AMPLE_S)
    assert errors.seen == []
    assert tasks.join(AMPLE_S)


def test_join_of_nothing_returns_at_once(tasks: Tasks) -> None:
    assert tasks.join(0)
    assert tasks.kill(0)


def test_join_gives_up_after_its_time(tasks: Tasks) -> None:
    tasks.spawn("stays", forever)
    assert not tasks.join(0)
    assert not tasks.join(0.001)
    assert tasks.kill(AMPLE_S)


def test_join_waits_for_tasks_spawned_meanwhile(tasks: Tasks) -> None:
    order: list[str] = []

    def first() -> None:
        tasks.spawn("second", second)
        order.append("first")

    def second() -> None:
        gevent.sleep(0)
        order.append("second")

    tasks.spawn("first", first)
    assert tasks.join(AMPLE_S)
    assert order == ["first", "second"]


def test_join_right_after_the_last_step_of_a_task(tasks: Tasks) -> None:
    """The task is ready but its link has not run yet: join must neither spin nor miscount."""
    reached = Event()
    tasks.spawn("short", reached.set)
    reached.wait()
    assert tasks.join(AMPLE_S)
    assert len(tasks) == 0


def test_kill_runs_finally_blocks_to_their_end(tasks: Tasks, errors: Recorder) -> None:
    begun, closed = Event(), []

    def serve(number: int) -> None:
        try:
            begun.set()
            forever()
        finally:
            gevent.sleep(0)  # a close may switch
            closed.append(number)

    for number in range(3):
        tasks.spawn(f"serve {number}", serve, number)
    begun.wait()
    assert tasks.kill(AMPLE_S)
    assert sorted(closed) == [0, 1, 2]
    assert (len(tasks), errors.seen) == (0, [])


def test_a_failing_finally_block_is_reported(tasks: Tasks, errors: Recorder) -> None:
    begun = Event()

    def serve() -> None:
        try:
            begun.set()
            forever()
        finally:
            raise OSError("close failed")

    tasks.spawn("serve", serve)
    begun.wait()
    assert tasks.kill(AMPLE_S)
    assert [(name, str(error)) for name, error in errors.seen] == [("serve", "close failed")]


def test_a_task_killed_before_its_first_turn_never_runs(tasks: Tasks, errors: Recorder) -> None:
    ran: list[int] = []
    tasks.spawn("early", ran.append, 1)
    assert tasks.kill(AMPLE_S)
    assert (ran, len(tasks), errors.seen) == ([], 0, [])


def test_kill_ends_what_dying_tasks_spawn(tasks: Tasks) -> None:
    begun = Event()

    def serve() -> None:
        try:
            begun.set()
            forever()
        finally:
            tasks.spawn("late", forever)

    tasks.spawn("serve", serve)
    begun.wait()
    assert tasks.kill(AMPLE_S)
    assert len(tasks) == 0


def test_kill_from_a_task_spares_the_caller(tasks: Tasks) -> None:
    results: list[object] = []
    tasks.spawn("other", forever)

    def end_the_others() -> None:
        gevent.sleep(0)
        results.append(tasks.kill(AMPLE_S))
        results.append(len(tasks))
        results.append(tasks.join(AMPLE_S))

    tasks.spawn("caller", end_the_others).join(AMPLE_S)
    assert results == [True, 1, True]
    assert len(tasks) == 0


def test_kill_says_when_one_would_not_die(tasks: Tasks) -> None:
    begun, release = Event(), Event()
    tasks.spawn("stubborn", ignore_one_kill, begun, release)
    tasks.spawn("obedient", forever)
    begun.wait()
    assert not tasks.kill(0.001)
    assert len(tasks) == 1
    release.set()
    assert tasks.join(AMPLE_S)


def test_a_second_kill_interrupts_once_more(tasks: Tasks) -> None:
    begun = Event()
    tasks.spawn("stubborn", ignore_one_kill, begun, Event())
    begun.wait()
    assert not tasks.kill(0.001)
    assert tasks.kill(AMPLE_S)


def test_an_outer_timeout_travels_through_join(tasks: Tasks) -> None:
    tasks.spawn("stays", forever)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
        tasks.join(AMPLE_S)
    assert tasks.kill(AMPLE_S)


def test_a_task_may_have_somebody_else_to_tell(tasks: Tasks, errors: Recorder) -> None:
    told: list[BaseException] = []
    tasks.spawn("failing", {}.__getitem__, "missing", on_error=told.append)
    assert tasks.join(AMPLE_S)
    assert [type(error) for error in told] == [KeyError]
    assert errors.seen == []


def test_a_task_is_in_its_group_until_it_has_ended(tasks: Tasks) -> None:
    task = tasks.spawn("stays", forever)
    assert task in tasks
    assert gevent.getcurrent() not in tasks
    tasks.kill(AMPLE_S)
    assert task not in tasks


def test_abandon_ends_all_without_waiting(tasks: Tasks) -> None:
    """For a child of fork: the caller, perhaps a callback of the loop, must not block."""
    running = [tasks.spawn("stays", forever) for _ in range(3)]
    gevent.sleep(0)
    tasks.abandon()
    assert len(tasks) == 3
    gevent.joinall(running, timeout=AMPLE_S)
    assert len(tasks) == 0


@pytest.mark.parametrize("error", [ValueError("no"), gevent.Timeout(1)], ids=repr)
def test_what_is_contained_is_told_and_goes_no_further(error: BaseException) -> None:
    def fail() -> None:
        raise error

    told: list[BaseException] = []
    assert contained(told.append, fail) is None
    assert told == [error]
    assert contained(told.append, int.__add__, 2, 3) == 5


@pytest.mark.parametrize("kind", [gevent.GreenletExit, KeyboardInterrupt, SystemExit])
def test_what_ends_a_greenlet_or_the_process_is_not_contained(kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    with pytest.raises(kind):
        contained(pytest.fail, leave)
