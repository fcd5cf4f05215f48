"""A thread of its own for something that blocks, such as a TPM; and what to do if it hangs.

It must not know what the jobs do. The TSS has no timeout, and a thread cannot be killed: one that
hangs is left to itself, and another takes its place.
"""

from __future__ import annotations

import operator
import os
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import gevent.threadpool
from gevent.lock import BoundedSemaphore

from nexusg.errors import NexusgError, TpmError


if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.event import AsyncResult


class Tool(Protocol):
    """What the jobs work with."""

    def close(self) -> None:
        """Let go of everything. It may be used again afterwards."""


T = TypeVar("T", bound=Tool)
R = TypeVar("R")

#: This many threads that hang are enough to know that one more would hang, too.
MAX_WEDGED = 3

#: A thread that has nothing to do ends; the next job starts another.
IDLE_THREAD_S = 5

_close = operator.methodcaller("close")


class Worker(Generic[T]):
    """Does jobs with a tool that ``make`` makes, one after the other, in a thread that is no
    greenlet's. Only for the greenlets of one thread.

    A tool in which a job hangs is given up, and closed should the job ever end. A greenlet that
    is interrupted while it waits leaves its job running: what that returns is dropped, and the
    next job waits for it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._bench: _Bench[T] | None = None
        self._running: _Running | None = None  # set while the thread is at work
        self._wedged = 0
        self._renew()

    def call(self, limit_s: float, job: Callable[[T], R]) -> R:
        """Return ``job(tool)``. Blocks: without limit for its turn, then for ``limit_s``.

        Raises:
            TpmError: it took longer (``tpm_timeout``), or too many have hung before.
            NexusgError, OSError: from the job. Anything else it raises is also printed, as a bug.
        """
        if self._pid != os.getpid():
            self._renew()  # threads do not survive a fork, and the tool is the parent's
        with self._turn:
            self._settle()
            if self._wedged >= MAX_WEDGED:
                text = f"the TPM does not answer: {self._wedged} requests wait for it"
                raise TpmError(text, "tpm_timeout")
            if self._bench is None:
                self._bench = _Bench(self._make())
            self._running = _Running(self._bench.start(job), limit_s)
            return cast("R", self._result(self._running))

    def close(self, limit_s: float) -> None:
        """Close the tool and end the thread, or leave both if that takes longer. Blocks.

        Another `call` would begin with a new tool.
        """
        until = time.monotonic() + limit_s
        if self._pid != os.getpid():
            self._renew()
        if not self._turn.acquire(timeout=limit_s):
            return  # it is in use
        try:
            if self._running is not None:
                self._running.until = min(until, self._running.until)
            self._settle()
            if self._bench is not None:
                self._running = _Running(self._bench.start(_close), until - time.monotonic())
                self._result(self._running)
                self._bench.end()
                self._bench = None
        except TpmError:
            pass  # it hangs, and has been given up
        finally:
            self._turn.release()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._turn = BoundedSemaphore(1)
        self._bench = self._running = None
        self._wedged = 0

    def _settle(self) -> None:
        """Wait for the job of a greenlet that was interrupted."""
        if self._running is not None and not self._running.finished():
            self._give_up(self._running)
        self._running = None

    def _result(self, running: _Running) -> Any:
        if not running.finished():
            self._give_up(running)
            text = f"the TPM did not answer within {running.limit_s:g} s"
            raise TpmError(text, "tpm_timeout")
        self._running = None
        ok, value = cast("tuple[bool, Any]", running.outcome.get())
        if not ok:
            raise value
        return value

    def _give_up(self, running: _Running) -> None:
        bench = self._bench
        assert bench is not None, "a job is running on it"
        self._bench = self._running = None
        self._wedged += 1

        def late(_: object) -> None:
            self._wedged -= 1
            bench.start(_close)

        running.outcome.rawlink(late)


class _Running:
    """A job at work, and until when it may be."""

    def __init__(self, outcome: AsyncResult[tuple[bool, Any]], limit_s: float) -> None:
        self.outcome = outcome
        self.limit_s = limit_s
        self.until = time.monotonic() + limit_s

    def finished(self) -> bool:
        """Wait for its end, but not longer than it may take. Blocks."""
        self.outcome.wait(max(0.0, self.until - time.monotonic()))
        return self.outcome.ready()


class _Bench(Generic[T]):
    """A tool, and the thread in which alone it is used."""

    def __init__(self, tool: T) -> None:
        self._tool = tool
        self._pool = gevent.threadpool.ThreadPool(1, idle_task_timeout=IDLE_THREAD_S)

    def start(self, job: Callable[[T], object]) -> AsyncResult[tuple[bool, Any]]:
        """Begin ``job(tool)``; no other may be running."""
        return self._pool.spawn(outcome, job, self._tool)

    def end(self) -> None:
        """End the thread, which is idle. Blocks shortly."""
        self._pool.kill()


def outcome(function: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    """``(True, function(*args))``, or ``(False, error)`` for an error that was to be expected.

    gevent prints a traceback for every error that leaves a function in another thread.
    """
    try:
        return True, function(*args)
    except (NexusgError, OSError) as error:
        return False, error
