"""One thread does the work, the loop goes on, and a job that hangs is survived."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet

from nexusg.attest.tpm import worker as module
from nexusg.attest.tpm.worker import Worker, outcome
from nexusg.errors import TpmError
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Greenlets

get_native_ident = gevent.monkey.get_original("_thread", "get_ident")

AMPLE_S = 20.0


class Tool:
    """What the jobs work with; ``block`` holds a job until ``release``, as a dead TPM does."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.closed = 0
        self._read_fd, self._write_fd = os.pipe()

    def work(self, value: object = None) -> Any:
        self.threads.add(get_native_ident())
        return value

    def block(self) -> bytes:
        return os.read(self._read_fd, 1)

    def release(self) -> None:
        os.write(self._write_fd, b"x")

    def close(self) -> None:
        self.closed += 1

    def end(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class Tools:
    """Makes tools, and remembers them."""

    def __init__(self) -> None:
        self.made: list[Tool] = []
        self.worker = Worker(self.make)

    def make(self) -> Tool:
        self.made.append(Tool())
        return self.made[-1]


@pytest.fixture
def tools() -> Iterator[Tools]:
    """A worker and its tools."""
    made = Tools()
    yield made
    for tool in made.made:
        tool.release()
    made.worker.close(AMPLE_S)
    until(lambda: made.worker._wedged == 0)
    for tool in made.made:
        tool.end()


def until(condition: Any) -> None:
    with gevent.Timeout(AMPLE_S):
        while not condition():
            gevent.sleep(MS)


def block(tool: Tool) -> bytes:
    return tool.block()


def test_jobs_are_done_one_after_the_other_in_one_thread_of_no_greenlet(tools: Tools) -> None:
    jobs = [
        Greenlet.spawn(tools.worker.call, AMPLE_S, lambda tool, n=n: tool.work(n))
        for n in range(50)
    ]
    gevent.joinall(jobs)
    assert [job.value for job in jobs] == list(range(50))
    [tool] = tools.made
    assert len(tool.threads) == 1
    assert get_native_ident() not in tool.threads


def test_the_loop_goes_on_while_a_job_blocks(tools: Tools) -> None:
    job = Greenlet.spawn(tools.worker.call, AMPLE_S, block)
    for _ in range(100):
        gevent.sleep(0)
    assert not job.ready()
    tools.made[0].release()
    assert job.get() == b"x"


def test_an_expected_error_is_raised_in_the_caller(tools: Tools) -> None:
    def fail(_: Tool) -> None:
        raise TpmError("no")

    for _ in range(2):
        with pytest.raises(TpmError, match=r"^no$"):
            tools.worker.call(AMPLE_S, fail)
    assert tools.worker.call(AMPLE_S, Tool.work) is None


def test_a_bug_is_raised_and_printed(tools: Tools, tidy_greenlets: Greenlets) -> None:
    with pytest.raises(ZeroDivisionError):
        tools.worker.call(AMPLE_S, lambda _: 1 // 0)
    [printed] = tidy_greenlets.failures
    assert "ZeroDivisionError" in printed
    tidy_greenlets.failures.clear()
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1


def test_a_job_that_hangs_costs_its_tool(tools: Tools) -> None:
    with pytest.raises(TpmError, match=r"^the TPM did not answer within 0.005 s$") as caught:
        tools.worker.call(5 * MS, block)
    assert caught.value.code == "tpm_timeout"
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1
    hung, fresh = tools.made
    assert (hung.threads & fresh.threads, hung.closed) == (set(), 0)
    hung.release()  # late: what it returns is dropped
    until(lambda: hung.closed)
    assert fresh.closed == 0
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(2)) == 2
    assert len(tools.made) == 2


def test_too_many_that_hang_are_enough(tools: Tools) -> None:
    for _ in range(module.MAX_WEDGED):
        with pytest.raises(TpmError, match="within"):
            tools.worker.call(MS, block)
    for _ in range(2):
        with pytest.raises(TpmError, match="does not answer: 3 requests wait") as caught:
            tools.worker.call(AMPLE_S, Tool.work)
        assert caught.value.code == "tpm_timeout"
    assert len(tools.made) == module.MAX_WEDGED
    tools.made[1].release()
    until(lambda: tools.made[1].closed)
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_the_job_of_a_caller_that_left_is_waited_for_and_dropped(tools: Tools, how: str) -> None:
    if how == "timeout":
        with pytest.raises(gevent.Timeout), gevent.Timeout(5 * MS):
            tools.worker.call(AMPLE_S, block)
    else:
        caller = Greenlet.spawn(tools.worker.call, AMPLE_S, block)
        until(lambda: tools.made)
        caller.kill()
    [tool] = tools.made
    following = Greenlet.spawn(tools.worker.call, AMPLE_S, lambda tool: tool.work("mine"))
    gevent.sleep(5 * MS)
    assert not following.ready()
    assert tool.threads == set(), "its thread does one thing at a time"
    tool.release()
    assert following.get() == "mine"
    assert tools.made == [tool]


def test_the_job_of_a_caller_that_left_may_hang_too(tools: Tools) -> None:
    caller = Greenlet.spawn(tools.worker.call, 20 * MS, block)
    until(lambda: tools.made)
    caller.kill()
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1
    assert len(tools.made) == 2


def test_a_caller_may_leave_while_it_waits_for_its_turn(tools: Tools) -> None:
    first = Greenlet.spawn(tools.worker.call, AMPLE_S, block)
    until(lambda: tools.made)
    second = Greenlet.spawn(tools.worker.call, AMPLE_S, Tool.work)
    gevent.sleep(0)
    second.kill()
    tools.made[0].release()
    assert first.get() == b"x"
    assert tools.made[0].threads == set()
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1


def test_closing_closes_the_tool_and_ends_the_thread(tools: Tools) -> None:
    tools.worker.close(AMPLE_S)  # there is nothing yet
    tools.worker.call(AMPLE_S, Tool.work)
    assert tools.worker._bench is not None
    pool = tools.worker._bench._pool
    tools.worker.close(AMPLE_S)
    tools.worker.close(AMPLE_S)
    assert (tools.made[0].closed, pool.size) == (1, 0)
    assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1
    assert len(tools.made) == 2


@pytest.mark.parametrize(("limit_s", "close_s"), [(5 * MS, AMPLE_S), (AMPLE_S, 5 * MS)])
def test_closing_does_not_wait_for_what_hangs(tools: Tools, limit_s: float, close_s: float) -> None:
    caller = Greenlet.spawn(tools.worker.call, limit_s, block)
    until(lambda: tools.made)
    caller.kill()
    tools.worker.close(close_s)
    [hung] = tools.made
    assert hung.closed == 0
    hung.release()
    until(lambda: hung.closed)


def test_closing_does_not_wait_for_those_who_use_it(tools: Tools) -> None:
    caller = Greenlet.spawn(tools.worker.call, AMPLE_S, block)
    until(lambda: tools.made)
    tools.worker.close(5 * MS)
    [tool] = tools.made
    tool.release()
    assert caller.get() == b"x"
    assert tool.closed == 0


def test_a_tool_that_hangs_in_its_close_is_left(tools: Tools) -> None:
    tools.worker.call(AMPLE_S, Tool.work)
    [tool] = tools.made
    close = tool.close
    tool.close = tool.block  # type: ignore[method-assign, assignment]
    tools.worker.close(5 * MS)
    assert tools.worker._bench is None
    tool.close = close  # type: ignore[method-assign]


def test_a_fork_has_a_thread_and_a_tool_of_its_own(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.worker.call(AMPLE_S, Tool.work)
    parent = tools.worker._bench
    pid = os.getpid()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid + 1)
        assert tools.worker.call(AMPLE_S, lambda tool: tool.work(1)) == 1
        assert len(tools.made) == 2
    tools.worker.close(AMPLE_S)  # of yet another process
    assert [tool.closed for tool in tools.made] == [0, 0]
    assert parent is not None
    parent.end()


def test_an_outcome_is_a_value_or_an_expected_error() -> None:
    assert outcome(int, "7") == (True, 7)
    done, error = outcome(os.open, "/nonexistent/file", os.O_RDONLY)
    assert not done
    assert isinstance(error, FileNotFoundError)
    with pytest.raises(ValueError, match="invalid literal"):
        outcome(int, "x")
