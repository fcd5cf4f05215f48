"""What the demos share: how a story is told, and how an agent's session came about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent import socket
from gevent.event import Event

from nexusg.agent.lifecycle import ReauthCompleted, SessionConnected, SessionFailed, SessionRejected
from nexusg.config.model import Logging
from nexusg.observe.stdout import setup_cli_logging

from .arguments import override


if TYPE_CHECKING:
    import argparse
    import contextlib

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.observe.logs import LogObserver

    from .demo_client import Reply

INTRODUCTION = "Everything here runs on this machine, and ends with this command.\n"
CONNECT_S = 10.0
GRACE_YAML = "shutdown: {graceSeconds: 1}\n"  # a browser's idle connection must not hold up the end


class Unexpected(Exception):
    """An answer came, but not the right one."""


class Watch:
    """Subscriber to the agent: how the session came about, or why it does not."""

    def __init__(self, log: LogObserver | None) -> None:
        self.connected = Event()
        self.changed = Event()  #: set by whatever is remembered here
        self.renewals: list[float] = []  #: how long each re-attestation took, in seconds
        self.how = ""
        self.problem = ""
        self._log = log

    def __call__(self, event: LifecycleEvent) -> None:
        if isinstance(event, SessionConnected):
            self.how = f"{event.tls or 'without TLS'}, {event.took_s * 1000:.0f} ms"
            self.connected.set()
        elif isinstance(event, SessionFailed):
            self.problem = event.error
        elif isinstance(event, SessionRejected):
            self.problem = event.reason
        elif isinstance(event, ReauthCompleted):
            self.renewals.append(event.took_s)
        self.changed.set()
        if self._log is not None:
            self._log(event)


class Steps:
    """What is said while it happens: numbered, and who does what."""

    def __init__(self) -> None:
        self._count = 0

    def step(self, who: str, what: str) -> None:
        """Say one thing that has been done."""
        self._count += 1
        print(f"{self._count}. {who:<10} {what}", flush=True)

    def more(self, what: str) -> None:
        """Say more about it."""
        print(f"   {'':<10} {what}", flush=True)


def free_port(wanted: int) -> int:
    """``wanted`` if it is free on this machine, else 0: any other."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def agent_log(given: argparse.Namespace, stack: contextlib.ExitStack) -> LogObserver | None:
    """The agent's log, if an option asks for it: it would be in the way of what is said here."""
    if given.log_level is None and given.log_format is None:
        return None
    log = setup_cli_logging(override(Logging(), given))
    stack.callback(log.close)
    return log


def summary(reply: Reply) -> str:
    """What is said about the page. Raises Unexpected when it is another one."""
    if reply.status != "200 OK" or "It works" not in reply.body:
        raise Unexpected(f"the page said {reply.status}")
    return f"{reply.status}, {len(reply.body)} bytes in {reply.took_s * 1000:.0f} ms"
