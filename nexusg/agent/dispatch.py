"""Hands lifecycle events to the subscriber, in order, without the streams ever waiting for it."""

from __future__ import annotations

import collections
import functools
import logging
from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.agent.lifecycle import EventsDropped
from nexusg.agent.tasks import contained


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.agent.tasks import Task, Tasks

    EventHandler = Callable[[LifecycleEvent], object]


_LOG = logging.getLogger("nexusg")

#: The end of ten thousand streams at once fits, in some 10 MiB.
QUEUE_EVENTS = 16_384


class Dispatcher:
    """A bounded queue of events and one greenlet that calls the subscriber."""

    def __init__(self, handler: EventHandler | None, tasks: Tasks) -> None:
        self.dropped = 0
        self._handler = handler
        self._tasks = tasks
        self._queue: collections.deque[LifecycleEvent] = collections.deque()
        self._unreported = 0
        self._wake = Event()
        self._task: Task | None = None
        self._ending = False

    def start(self) -> None:
        """Begin to call the subscriber."""
        if self._handler is not None:
            self._task = self._tasks.spawn("events", self._run, self._handler)

    def emit(self, event: LifecycleEvent) -> None:
        """Queue ``event``; dropped and counted when the subscriber is too slow. Never blocks."""
        if self._handler is None:
            return
        if len(self._queue) >= QUEUE_EVENTS:
            self.dropped += 1
            self._unreported += 1
            return
        self._queue.append(event)
        self._wake.set()

    def stop(self, timeout_s: float) -> bool:
        """End when the subscriber has seen everything; whether it has by then. Blocks."""
        self._ending = True
        self._wake.set()
        if self._task is not None:
            self._task.join(timeout_s)
        return self._task is None or self._task.ready()

    def _run(self, handler: EventHandler) -> None:
        while self._queue or not self._ending:
            if not self._queue:
                self._wake.wait()
                self._wake.clear()
                continue
            self._call(handler, self._queue.popleft())
            if self._unreported and not self._queue:
                count, self._unreported = self._unreported, 0
                self._call(handler, EventsDropped(count=count))

    def _call(self, handler: EventHandler, event: LifecycleEvent) -> None:
        # A broken subscriber must not end the agent, nor be the last to hear of anything.
        contained(functools.partial(_failed, event), handler, event)


def _failed(event: LifecycleEvent, error: BaseException) -> None:
    _LOG.error("the event handler failed on %s", event.name(), exc_info=error)
