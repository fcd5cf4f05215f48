"""``nexusg run``: the agent as a process, or several, from its configuration to its exit code."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from nexusg.agent.agent import Agent
from nexusg.agent.apps import wsgi_targets
from nexusg.agent.tasks import Tasks
from nexusg.config.loader import load
from nexusg.observe.stdout import MasterLog, setup_cli_logging

from .arguments import override
from .board import Board
from .cpus import how_many
from .descriptors import raise_limit
from .exits import MEANINGS, OUTCOMES, Exit
from .master import Master, Worker
from .notify import Notifier
from .orders import Orders
from .reports import Reports
from .signals import Signals
from .workers import Workers


if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from gevent.event import Event

    from nexusg.config.loader import Loaded
    from nexusg.config.model import Logging
    from nexusg.observe.stdout import StdoutLog

    from .reports import Report

END_S = 1.0  # for greenlets that only wait


def execute(given: argparse.Namespace) -> int:
    """Run the agent until it is stopped or gives up. Blocks. Raises ConfigError."""
    loaded = load(given.config)
    if any(wsgi_targets(loaded.config)):
        import_from_here()
    return launch(loaded, override(loaded.config.logging, given), Agent)


def launch(loaded: Loaded, logging: Logging, make: Callable[..., Agent]) -> int:
    """The same with a configuration that was read, and the agent that ``make`` makes of it.

    With several workers each calls it for itself. Blocks. Raises ConfigError.
    """
    # Modules and settings are there to stay. Without this each full collection looks through them
    # all, which is 20 ms in the middle of the traffic.
    gc.freeze()
    notifier = Notifier.found()
    count = how_many(loaded.config.workers)
    if count == 1:
        return _alone(loaded, logging, make, notifier)
    board = Board(count, notifier)
    fate = _divide(loaded, logging, count, board)
    return _work(fate, loaded, logging, make, board) if isinstance(fate, Worker) else fate


def import_from_here() -> None:
    """Let applications be found in the working directory first, as gunicorn does."""
    sys.path.insert(0, os.getcwd())


def serve(
    agent: Agent, log: StdoutLog, signals: Signals | None = None, reports: Reports | None = None
) -> int:
    """Start the agent; stop it at a signal, at once at the second. Return the exit code. Blocks.

    ``reports`` are made from its start to its end.
    """
    tasks = Tasks("command line", partial(_failed, log))
    try:
        with signals or Signals() as signals:
            tasks.spawn("end of the agent", _then, agent.join, signals.stop.set)
            tasks.spawn("second signal", _then, signals.at_once.wait, agent.stop)
            tasks.spawn("SIGHUP", _hangups, signals.hangup, log)
            agent.start()
            if reports is not None:
                tasks.spawn("reports", reports.run, agent)
            signals.stop.wait()
            if reports is not None:
                reports.stopping()
            agent.stop()
    finally:
        tasks.kill(END_S)
    return OUTCOMES[agent.outcome]


def _alone(loaded: Loaded, logging: Logging, make: Callable[..., Agent], notifier: Notifier) -> int:
    log = setup_cli_logging(logging)
    reports = Reports(log, partial(_tell, notifier), notifier.every_s) if notifier else None
    try:
        _say_first(loaded, log)
        code = serve(make(loaded.config, on_event=reports or log), log, reports=reports)
        notifier.end(MEANINGS[Exit(code)])
        return code
    finally:
        log.close()


def _divide(loaded: Loaded, logging: Logging, count: int, board: Board) -> Exit | Worker:
    """Return in each of the workers, and in their master when they have ended. Blocks."""
    log = MasterLog(logging)
    _say_first(loaded, log)
    fate = Master(Workers(count), loaded.config.shutdown.grace_s, log, board=board).run()
    if isinstance(fate, Exit):
        board.notifier.end(MEANINGS[fate])
        log.close()
    return fate


def _work(
    worker: Worker, loaded: Loaded, logging: Logging, make: Callable[..., Agent], board: Board
) -> int:
    log = setup_cli_logging(logging, worker=worker.number)
    orphaned = partial(log.line, "warning", "master.gone", message="this worker stops, too")
    reports = board.reports(worker.number, log) if board else None
    try:
        agent = make(loaded.config, on_event=reports or log, worker=worker.number)
        return serve(agent, log, Orders(worker.orders, orphaned), reports)
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


def _tell(notifier: Notifier, report: Report) -> None:
    notifier.beat(str(report), stopping=report.stopping)


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
