"""The process above several workers: forks them, passes signals on, replaces the dead.

It opens no connection and runs no hub, so that there is nothing that a fork could tear in two: each
worker begins as the only thread of a process in which nothing has been started. For that it calls
the system by the functions behind gevent's patches. A fork, and not a new command, because then all
workers have the same configuration, read once, and no secret has to be handed on.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.monkey import get_original

from .orders import HELD, Order
from .workers import MARGIN_S


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.observe.stdout import MasterLog

    from .board import Board
    from .exits import Exit
    from .workers import Slot, Workers

LOOK_AGAIN_S = 0.05  # how soon the log is looked at again when it has no room

_fork = get_original("os", "fork")
_close = get_original("os", "close")
_waitpid = get_original("os", "waitpid")
_signal = get_original("signal", "signal")
_set_wakeup_fd = get_original("signal", "set_wakeup_fd")


class Worker(NamedTuple):
    """What a process is to be that `Master.run` has made a worker."""

    number: int
    orders: int  #: the descriptor for ``Orders``


class Master:
    """Keeps ``workers`` running until they are stopped or have given up.

    ``grace_s`` is what streams get at a stop. It is for the main thread of a process without a hub.
    ``clock`` is for tests. With a ``board`` the service manager is told how all of it is, and a
    worker that hangs is killed.
    """

    def __init__(
        self,
        workers: Workers,
        grace_s: float,
        log: MasterLog,
        clock: Callable[[], float] = time.monotonic,
        board: Board | None = None,
    ) -> None:
        self._workers = workers
        self._grace_s = grace_s
        self._log = log
        self._clock = clock
        self._board = board or None  # it is false when nobody wants to know
        self._pipes: dict[int, int] = {}  # by number of the worker: where it gets its orders

    def run(self) -> Exit | Worker:
        """Return like a fork, in every process: in the master, at the end, with the exit code.

        A worker's signals are blocked until it has entered its ``Orders``. Blocks.
        """
        with Wakeups() as wakeups:
            while not self._workers.ended:
                for slot in self._workers.due(self._clock()):
                    worker = self._start(slot)
                    if worker is not None:
                        return worker
                for number in wakeups.wait(self._pause_s()):
                    self._hear(number)
                self._reap()
                self._kill_overdue()
                self._report()
                self._log.writer.flush()
        return self._workers.exit_code

    def _pause_s(self) -> float:
        pause_s = max(self._workers.wake_at - self._clock(), 0.0)
        if self._board is not None:
            pause_s = min(pause_s, self._board.every_s)
        return min(pause_s, LOOK_AGAIN_S) if self._log.writer.waiting else pause_s

    def _start(self, slot: Slot) -> Worker | None:
        """Fork a worker; in that one, what it is to be."""
        orders, pipe = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            pid = _fork()
        except OSError as error:
            pid = -1
            self._log.line("error", "worker.failed", worker=slot.number, error=error.strerror)
        if pid == 0:
            for other in (pipe, *self._pipes.values()):
                _close(other)  # or nobody would notice the end of the master
            return Worker(slot.number, orders)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _close(orders)
        now = self._clock()
        if pid < 0:
            _close(pipe)
            slot.bury(now)
        else:
            os.set_blocking(pipe, False)
            self._pipes[slot.number] = pipe
            self._workers.started(slot, pid, now)
            self._expect(slot)
            self._log.line("info", "worker.started", worker=slot.number, pid=pid)
        return None

    def _hear(self, number: int) -> None:
        """A signal: the first stops, the second does so at once."""
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(Order.AT_ONCE if self._workers.stopping else Order.STOP)
        elif number == signal.SIGHUP:
            self._tell(Order.HANGUP)

    def _stop(self, order: Order) -> None:
        grace_s = self._grace_s if order is Order.STOP else 0.0
        self._workers.stop(grace_s + MARGIN_S, self._clock())
        self._tell(order)

    def _tell(self, order: Order) -> None:
        for pipe in self._pipes.values():
            try:
                os.write(pipe, order.value)
            except OSError:
                pass  # it is gone, as will be seen, or has not listened for 64 KiB of orders

    def _reap(self) -> None:
        """See who has ended; orphans, too, which the first process of a container inherits."""
        while True:
            try:
                pid, status = _waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for slot in self._workers.running:
                if slot.pid == pid:
                    self._bury(slot, os.waitstatus_to_exitcode(status))

    def _bury(self, slot: Slot, code: int) -> None:
        workers, now = self._workers, self._clock()
        _close(self._pipes.pop(slot.number))
        fields: dict[str, Any] = {"worker": slot.number, "pid": slot.pid}
        fields |= {"code": code} if code >= 0 else {"signal": _name(-code)}
        fields["duration_s"] = round(now - slot.since, 3)
        level = "error" if code else "info" if workers.stopping else "warning"
        self._log.line(level, "worker.exited", **fields)
        workers.exited(slot, code, now)
        self._expect(slot)
        if workers.unusable and not workers.stopping:
            self._stop(Order.STOP)
        elif slot.gave_up:
            text = "its credentials were refused too often; it is not started again"
            self._log.line("error", "worker.refused", worker=slot.number, message=text)
        elif not workers.stopping:
            in_s = round(slot.due_at - now, 3)
            self._log.line("warning", "worker.restarting", worker=slot.number, in_s=in_s)

    def _kill_overdue(self) -> None:
        for slot in self._workers.overdue(self._clock()):
            self._log.line("error", "worker.killed", worker=slot.number, pid=slot.pid)
            os.kill(slot.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def _expect(self, slot: Slot) -> None:
        if self._board is not None:
            self._board.expect(slot.number)

    def _report(self) -> None:
        """Tell the service manager, and end who hangs: the manager would end all of them."""
        if self._board is None:
            return
        workers = self._workers
        for slot in workers.running:
            if not workers.stopping and self._board.silent(slot.number):
                self._log.line("error", "worker.silent", worker=slot.number, pid=slot.pid)
                os.kill(slot.pid, signal.SIGKILL)
        self._board.tell(len(workers.running), stopping=workers.stopping)


class Wakeups:
    """The signals of the master. A handler does nothing: the system notes them in a pipe."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Wakeups:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._fd_before = _set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in HELD:
            self._before[number] = _signal(number, _nothing)
        self._poll = get_original("select", "poll")()
        self._poll.register(self._reader, select.POLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        _set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            _signal(number, handler)
        _close(self._reader)
        _close(self._writer)

    def wait(self, timeout_s: float) -> bytes:
        """The numbers of the signals that have come, at the latest after this time. Blocks."""
        self._poll.poll(None if math.isinf(timeout_s) else math.ceil(timeout_s * 1000))
        try:
            return os.read(self._reader, 4096)
        except BlockingIOError:
            return b""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return str(number)


def _nothing(_number: int, _frame: object) -> None:
    pass
