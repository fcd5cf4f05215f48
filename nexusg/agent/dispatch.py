"""Hands lifecycle events to the subscriber, in order, without the streams ever waiting for it."""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.agent.lifecycle import EventsDropped


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.agent.tasks import Tasks

    EventHandler = Callable[[LifecycleEvent], object]


_LOG = logging.getLogger("nexusg")

#: A burst of a thousand streams that open and close at once fits.
QUEUE_EVENTS = 4096


class Dispatcher:
    """A bounded queue of events and one greenlet that calls the subscriber."""

    def __init__(self, handler: EventHandler | None, tasks: Tasks) -> None:
        self.dropped = 0
        self._handler = handler
        self._tasks = tasks
        self._queue: collections.deque[LifecycleEvent] = collections.deque()
        self._unreported = 0
        self._wake = Event()
        self._drained = Event()
        self._drained.set()

    def start(self) -> None:
        """Begin to call the subscriber."""
        if self._handler is not None:
            self._tasks.spawn("events", self._run, self._handler)

    def emit(self, event: LifecycleEvent) -> None:
        """Queue ``event``; dropped and counted when the subscriber is too slow. Never blocks."""
        if self._handler is None:
            return
        if len(self._queue) >= QUEUE_EVENTS:
            self.dropped += 1
            self._unreported += 1
            return
        self._queue.append(event)
        self._drained.clear()
        self._wake.set()

    def drain(self, timeout_s: float) -> bool:
        """Wait until the subscriber has seen everything; whether it has. Blocks."""
        return bool(self._drained.wait(timeout_s))

    def _run(self, handler: EventHandler) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._call(handler, self._queue.popleft())
                if self._unreported and not self._queue:
                    count, self._unreported = self._unreported, 0
                    self._call(handler, EventsDropped(count=count))
            self._drained.set()

    def _call(self, handler: EventHandler, event: LifecycleEvent) -> None:
        try:
            handler(event)
        except Exception:  # a broken subscriber must not end the agent
            _LOG.exception("the event handler failed on %s", event.name())
