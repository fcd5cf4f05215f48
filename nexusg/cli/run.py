"""``nexusg run``: the agent as a process, or several, from its configuration to its exit code."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from nexusg.agent.agent import Agent
from nexusg.agent.tasks import Tasks
from nexusg.config.loader import load
from nexusg.observe.stdout import MasterLog, setup_cli_logging

from .arguments import override
from .cpus import how_many
from .descriptors import raise_limit
from .exits import OUTCOMES, Exit
from .master import Master, Worker
from .orders import Orders
from .signals import Signals
from .workers import Workers


if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from gevent.event import Event

    from nexusg.config.loader import Loaded
    from nexusg.config.model import Logging
    from nexusg.observe.stdout import StdoutLog

END_S = 1.0  # for greenlets that only wait


def execute(given: argparse.Namespace) -> int:
    """Run the agent until it is stopped or gives up. Blocks. Raises ConfigError."""
    loaded = load(given.config)
    logging = override(loaded.config.logging, given)
    count = how_many(loaded.config.workers)
    if count == 1:
        return _alone(loaded, logging)
    fate = _divide(loaded, logging, count)
    return _work(fate, loaded, logging) if isinstance(fate, Worker) else fate


def serve(agent: Agent, log: StdoutLog, signals: Signals | None = None) -> int:
    """Start the agent; stop it at a signal, at once at the second. Return the exit code. Blocks."""
    tasks = Tasks("command line", partial(_failed, log))
    try:
        with signals or Signals() as signals:
            tasks.spawn("end of the agent", _then, agent.join, signals.stop.set)
            tasks.spawn("second signal", _then, signals.at_once.wait, agent.stop)
            tasks.spawn("SIGHUP", _hangups, signals.hangup, log)
            agent.start()
            signals.stop.wait()
            agent.stop()
    finally:
        tasks.kill(END_S)
    return OUTCOMES[agent.outcome]


def _alone(loaded: Loaded, logging: Logging) -> int:
    log = setup_cli_logging(logging)
    try:
        _say_first(loaded, log)
        return serve(Agent(loaded.config, on_event=log), log)
    finally:
        log.close()


def _divide(loaded: Loaded, logging: Logging, count: int) -> Exit | Worker:
    """Return in each of the workers, and in their master when they have ended. Blocks."""
    log = MasterLog(logging)
    _say_first(loaded, log)
    fate = Master(Workers(count), loaded.config.shutdown.grace_s, log).run()
    if isinstance(fate, Exit):
        log.close()
    return fate


def _work(worker: Worker, loaded: Loaded, logging: Logging) -> int:
    log = setup_cli_logging(logging, worker=worker.number)
    orphaned = partial(log.line, "warning", "master.gone", message="this worker stops, too")
    try:
        agent = Agent(loaded.config, on_event=log, worker=worker.number)
        return serve(agent, log, Orders(worker.orders, orphaned))
    finally:
        log.close()


def _say_first(loaded: Loaded, log: StdoutLog) -> None:
    for warning in loaded.warnings:
        log.line("warning", "config.warning", message=warning)
    short = raise_limit()
    if short:
        log.line("warning", "limits.descriptors", message=short)
    if "SUPERVISOR_ENABLED" in os.environ:
        grace_s = loaded.config.shutdown.grace_s
        advice = f"stopwaitsecs must be more than shutdown.graceSeconds, which is {grace_s:g}"
        log.line("info", "supervisor.detected", message=advice)


def _then(wait: Callable[[], Any], act: Callable[[], Any]) -> None:
    wait()
    act()


def _hangups(hangup: Event, log: StdoutLog) -> None:
    while True:
        hangup.wait()
        hangup.clear()
        log.line("warning", "signal.ignored", signal="SIGHUP", message="restart to reload")


def _failed(log: StdoutLog, task: str, error: BaseException) -> None:
    log.line("error", "task.failed", task=task, error=f"{type(error).__name__}: {error}")
