"""An agent's life within that of one gunicorn worker.

It begins when the worker's main loop does, after fork and after patching. When the worker is to
stop, the agent hands over to a younger worker, lets what is in flight end, and closes its sessions,
all within gunicorn's graceful timeout and while the worker's heart goes on beating.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import TYPE_CHECKING

from gevent.event import Event

from nexusg.agent.agent import Agent
from nexusg.agent.lifecycle import (
    AgentStarted,
    SessionConnected,
    SessionFailed,
    SessionRejected,
)
from nexusg.agent.tasks import Tasks, contained
from nexusg.errors import ConfigError
from nexusg.integrations.delivery import BoundSocket, Delivery, Memory
from nexusg.integrations.lines import log_event


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.config.model import Config
    from nexusg.integrations.generations import Generations
    from nexusg.integrations.leader import Leadership
    from nexusg.integrations.worker import Worker


DELIVERIES: dict[str, type[Delivery] | None] = {
    "memory": Memory,
    "socket": BoundSocket,
    "config": None,
}

#: How often the worker is asked whether it is to stop. gunicorn itself asks once a second.
POLL_S = 0.1
#: How often a worker that does not lead tries to.
LEAD_S = 0.5
#: The heartbeat, as often as gunicorn's own.
BEAT_S = 1.0
#: How long a leader waits for another worker to take over if none is on its way: time for one that
#: stands by to notice, and to connect.
SUCCESSION_S = 1.5
#: How long, and how often, a busy worker looks for a moment without streams to close its sessions
#: in, before it refuses some.
LULL_S, LOOK_S = 1.0, 0.005
#: Left of the graceful timeout for close frames, and for noticing that it has begun.
MARGIN_S = 2.0
#: For the close frames when the worker is told to quit at once; the master waits for 2 s.
QUICK_S = 1.0
#: An agent that failed of a bug is started again after this.
RESTART_S = 5.0


class Tunnel:
    """Make it in the worker, and let `run` take the place of its main loop."""

    def __init__(
        self,
        worker: Worker,
        config: Config,
        deliver: str,
        leadership: Leadership | None,
        generations: Generations,
    ) -> None:
        """``leadership`` is what an agent of one per host needs, and None for others."""
        self._worker = worker
        self._leadership = leadership
        self._generations = generations
        timeout_s = worker.cfg.graceful_timeout
        self._grace_s = timeout_s - min(MARGIN_S, timeout_s / 2)
        self._tasks = Tasks("gunicorn", self._failed)
        self._quit = Event()
        self._ended = Event()
        self._outcomes: set[tuple[str, str]] = set()  # of the sessions' first attempts
        self._sessions = 0
        self._connected = self._ready = False
        delivery = DELIVERIES[deliver]
        if delivery is not None:
            # When a stream is over is gunicorn's decision: a slow app looks like an idle stream.
            idle = dataclasses.replace(config.shutdown, idle_s=timeout_s)
            config = dataclasses.replace(config, shutdown=idle)
        self._agent = Agent(
            config,
            connect_handler=None if delivery is None else delivery(worker, config),
            on_event=self._on_event,
            worker=worker.age,
        )

    def run(self, serve: Callable[[], object]) -> None:
        """Call ``serve``, the worker's main loop, with the agent beside it. Blocks."""
        self._tasks.spawn("tunnel", self._live)
        try:
            serve()
            while not self._ended.wait(BEAT_S):
                self._worker.notify()
        finally:
            self._end()

    def _live(self) -> None:
        try:
            if self._lead():
                self._keep()
                self._retire()
        finally:
            self._ended.set()

    # Until the worker is to stop ---------------------------------------------------------------

    @property
    def _alive(self) -> bool:
        return self._worker.alive and not self._quit.is_set()

    def _lead(self) -> bool:
        """Wait until it is for this worker to have an agent; whether it ever is. Blocks."""
        leadership = self._leadership
        if leadership is None:
            return self._alive
        if self._alive and not leadership.take():
            self._worker.log.info("nexusg: another process has the sessions, standing by")
            while self._alive and not leadership.take():
                self._wait(lambda: self._alive, LEAD_S)
        return self._alive

    def _keep(self) -> None:
        agent = self._agent
        while self._alive:
            agent.start()
            self._wait(lambda: self._alive and agent.running)
            if self._alive and agent.outcome == "refused":
                text = "nexusg: no tunnel any more: mend what the relay refused, and send a HUP"
                self._worker.log.error(text)
                self._wait(lambda: self._alive)
            elif self._alive:
                self._wait(lambda: self._alive, RESTART_S)

    def _on_event(self, event: LifecycleEvent) -> None:
        log_event(self._worker.log, event)
        if isinstance(event, AgentStarted):
            self._sessions = event.sessions
        elif isinstance(event, (SessionConnected, SessionFailed, SessionRejected)):
            self._connected = self._connected or isinstance(event, SessionConnected)
            self._outcomes.add((event.backend, event.relay))
            if self._connected and not self._ready and len(self._outcomes) >= self._sessions:
                self._ready = True
                self._generations.take_over(self._worker.age)

    # From then on ------------------------------------------------------------------------------

    def _retire(self) -> None:
        # Until the very end users are served: as long as there is a session, the relay sends it
        # some, and those whom it refused would get nothing, not even from a younger worker.
        end = time.monotonic() + self._grace_s
        takeovers = self._generations.takeovers
        if self._leadership is not None:
            self._leadership.release()
        if self._agent.running:
            if self._ready:
                self._hand_over(takeovers, end - time.monotonic())
            self._finish(end)
            self._agent.stop(max(end - time.monotonic(), 0))

    def _hand_over(self, takeovers: int, seconds: float) -> None:
        """Wait until another worker has the sessions that this one is about to close. Blocks."""
        age, generations = self._worker.age, self._generations
        if self._leadership is None:
            self._wait(lambda: generations.settled <= age < generations.announced, seconds)
            return
        patience = time.monotonic() + SUCCESSION_S

        def expected() -> bool:
            coming = generations.settled < generations.announced
            return generations.takeovers == takeovers and (coming or time.monotonic() < patience)

        self._wait(expected, seconds)

    def _finish(self, end: float) -> None:
        """Wait until the streams that there are now have ended. Blocks."""
        left = self._streams()

        def unfinished() -> set[str]:
            left.intersection_update(self._streams())
            return left

        self._wait(unfinished, end - time.monotonic())
        # Of those that came since, all may be served between two requests.
        self._wait(self._streams, min(LULL_S, end - time.monotonic()), LOOK_S)

    def _streams(self) -> set[str]:
        streams = self._agent.stats(streams=True).streams
        return {stream.client_id for stream in streams if not stream.is_udp}

    def _end(self) -> None:
        """Whatever happened, leave nothing behind; at once, if there was no time. Blocks."""
        self._quit.set()
        self._generations.settle(self._worker.age)
        if self._agent.running:
            self._tasks.spawn("stop", self._agent.stop, 0)
            self._agent.join(QUICK_S)
        self._tasks.kill(QUICK_S)
        if self._leadership is not None:
            self._leadership.release()

    # Inside ------------------------------------------------------------------------------------

    def _wait(
        self, condition: Callable[[], object], seconds: float = math.inf, step_s: float = POLL_S
    ) -> None:
        """As long as it holds, but not longer than that, nor when the worker quits. Blocks."""
        end = time.monotonic() + seconds
        while condition() and not self._quit.is_set() and (left_s := end - time.monotonic()) > 0:
            self._quit.wait(min(step_s, left_s))

    def _failed(self, _task: str, error: BaseException) -> None:
        _log_failure(self._worker, error)


def run_beside(
    worker: Worker,
    serve: Callable[[], object],
    config: Config,
    deliver: str,
    leadership: Leadership | None,
    generations: Generations,
) -> None:
    """Call ``serve``, the main loop of ``worker``, with an agent beside it. Blocks.

    Without one if there is something wrong with it: the app goes on serving all others.
    """
    failed = functools.partial(_log_failure, worker)
    tunnel = contained(failed, Tunnel, worker, config, deliver, leadership, generations)
    if tunnel is None:
        serve()
    else:
        tunnel.run(serve)


def _log_failure(worker: Worker, error: BaseException) -> None:
    text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    worker.log.error("nexusg: no tunnel: %s", text)
