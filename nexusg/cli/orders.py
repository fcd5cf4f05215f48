"""What the master tells a worker, and how a worker hears of it.

Orders come through a pipe, not as signals: a terminal or a supervisor may send a signal to the
whole group, and a worker could not tell whether it has heard the same one twice. The pipe also says
when the master is gone, however it ended.
"""

from __future__ import annotations

import enum
import os
import signal
from typing import TYPE_CHECKING, Any

import gevent

from .signals import Signals


if TYPE_CHECKING:
    from collections.abc import Callable

#: The signals that wait from the fork of a worker until it listens.
HELD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


class Order(enum.Enum):
    """An order; its value is what the pipe carries."""

    STOP = b"s"
    AT_ONCE = b"a"
    HANGUP = b"h"


class Orders(Signals):
    """`Signals` of a worker: SIGTERM or SIGINT stop it gracefully, the rest are orders.

    ``fd`` is the pipe. When the master is gone, ``orphaned`` is called and the worker is to stop.
    The signals are not given back: when the context ends, so does the process.
    """

    def __init__(self, fd: int, orphaned: Callable[[], None]) -> None:
        super().__init__()
        self._fd = fd
        self._orphaned = orphaned
        self._pipe: Any = None

    def __enter__(self) -> Orders:
        super().__enter__()
        os.set_blocking(self._fd, False)
        self._pipe = gevent.get_hub().loop.io(self._fd, 1)  # 1: to read
        self._pipe.start(self._listen)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers():
            signal.signal(number, signal.SIG_IGN)  # a late one must not disturb the end
        self._pipe.stop()
        self._pipe.close()

    def _handlers(self) -> dict[int, Callable[[], object]]:
        return {
            signal.SIGTERM: self.stop.set,
            signal.SIGINT: self.stop.set,
            signal.SIGHUP: _nothing,
        }

    def _listen(self) -> None:
        """Called by the hub when there is something to read."""
        said = os.read(self._fd, 4096)
        for number in said:
            self._obey(Order(bytes((number,))))
        if not said:
            self._pipe.stop()
            self._orphaned()
            self.stop.set()

    def _obey(self, order: Order) -> None:
        if order is Order.HANGUP:
            self.hangup.set()
            return
        self.stop.set()
        if order is Order.AT_ONCE:
            self.at_once.set()


def _nothing() -> None:
    pass
