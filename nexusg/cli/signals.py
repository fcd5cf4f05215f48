"""The signals of the process as events. A handler does nothing but set one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event


if TYPE_CHECKING:
    from collections.abc import Callable


class Signals:
    """A context manager that takes over the signals, and gives them back at its end.

    SIGTERM or SIGINT set ``stop``, and a second one ``at_once``; SIGHUP sets ``hangup``. SIGPIPE is
    ignored: a peer that is gone is an error of a write.
    """

    def __init__(self) -> None:
        self.stop = Event()
        self.at_once = Event()
        self.hangup = Event()
        self._watchers: list[Any] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number, handler in self._handlers().items():
            self._before[number] = signal.getsignal(number)
            self._watchers.append(gevent.signal_handler(number, handler))
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # the loop leaves the system's default behind

    def _handlers(self) -> dict[int, Callable[[], object]]:
        return {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self.hangup.set,
        }

    def _stop(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()
