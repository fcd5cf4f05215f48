"""Reports of how an agent is: at its events, and now and then because of its figures.

They are made in a greenlet on the agent's hub, so whoever hears nothing any more knows that the hub
hangs. Who that is, they must not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gevent.event import Event

from nexusg.agent.lifecycle import (
    SessionClosed,
    SessionConnected,
    SessionFailed,
    SessionLost,
    SessionRejected,
)
from nexusg.protocol.states import SessionState


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.agent import Agent
    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.agent.stats import Stats

_ACCEPTED = (SessionState.OPEN.value, SessionState.DRAINING.value)


class Report(NamedTuple):
    """How an agent is, or several."""

    sessions: int  #: that a relay has accepted
    wanted: int  #: sessions that it is to have
    streams: int
    stopping: bool = False
    problem: str = ""  #: the latest that befell a session

    def __str__(self) -> str:
        streams = f"{self.streams} stream{'' if self.streams == 1 else 's'}"
        if self.stopping:
            return f"stopping, {streams} left"
        text = f"{self.sessions} of {self.wanted} sessions, {streams}"
        return f"{text}: {self.problem}" if self.problem and self.sessions < self.wanted else text


class Reports:
    """A subscriber to the agent; ``on_event`` is the one behind it, which gets every event.

    ``tell`` is given a `Report` as soon as a session comes or goes, and every ``every_s``.
    """

    def __init__(
        self,
        on_event: Callable[[LifecycleEvent], object],
        tell: Callable[[Report], object],
        every_s: float,
    ) -> None:
        self._on_event = on_event
        self._tell = tell
        self._every_s = every_s
        self._news = Event()
        self._stopping = False
        self._problems: dict[tuple[str, str], str] = {}  # by backend and relay, the last one last

    def __call__(self, event: LifecycleEvent) -> None:
        if isinstance(event, (SessionConnected, SessionClosed)):
            self._problems.pop((event.backend, event.relay), None)
            self._news.set()
        elif isinstance(event, (SessionFailed, SessionLost, SessionRejected)):
            what = event.reason if isinstance(event, SessionRejected) else event.error
            where = (event.backend, event.relay)
            self._problems.pop(where, None)
            self._problems[where] = what
            self._news.set()
        self._on_event(event)

    def stopping(self) -> None:
        """The agent is about to stop."""
        self._stopping = True
        self._news.set()

    def run(self, agent: Agent) -> None:
        """Report until killed, for the first time at once. Blocks."""
        while True:
            self._tell(self._report(agent.stats()))
            self._news.wait(self._every_s)
            self._news.clear()

    def _report(self, stats: Stats) -> Report:
        return Report(
            sessions=sum(session.state in _ACCEPTED for session in stats.sessions),
            wanted=len(stats.sessions),
            streams=stats.streams_active + stats.streams_pending,
            stopping=self._stopping,
            problem=next(reversed(self._problems.values()), ""),
        )
