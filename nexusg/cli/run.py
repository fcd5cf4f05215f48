"""``nexusg run``: the agent as a process, from its configuration to its exit code."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from nexusg.agent.agent import Agent
from nexusg.agent.tasks import Tasks
from nexusg.config.loader import load
from nexusg.observe.stdout import setup_cli_logging

from .arguments import override
from .exits import OUTCOMES
from .signals import Signals


if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from gevent.event import Event

    from nexusg.config.loader import Loaded
    from nexusg.observe.stdout import StdoutLog

END_S = 1.0  # for greenlets that only wait


def execute(given: argparse.Namespace) -> int:
    """Run the agent until it is stopped or gives up. Blocks. Raises ConfigError."""
    loaded = load(given.config)
    log = setup_cli_logging(override(loaded.config.logging, given))
    try:
        _say_first(loaded, log)
        return serve(Agent(loaded.config, on_event=log), log)
    finally:
        log.close()


def serve(agent: Agent, log: StdoutLog) -> int:
    """Start the agent; stop it at a signal, at once at the second. Return the exit code. Blocks."""
    tasks = Tasks("command line", partial(_failed, log))
    try:
        with Signals() as signals:
            tasks.spawn("end of the agent", _then, agent.join, signals.stop.set)
            tasks.spawn("second signal", _then, signals.at_once.wait, agent.stop)
            tasks.spawn("SIGHUP", _hangups, signals.hangup, log)
            agent.start()
            signals.stop.wait()
            agent.stop()
    finally:
        tasks.kill(END_S)
    return OUTCOMES[agent.outcome]


def _say_first(loaded: Loaded, log: StdoutLog) -> None:
    for warning in loaded.warnings:
        log.line("warning", "config.warning", message=warning)
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
