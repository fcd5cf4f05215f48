"""A program with an agent in it, run by tests as a process of its own. It prints what it sees.

    python -m tests.e2e.program MODE SETTINGS

The settings are JSON: ``url``, ``ca_file``, ``secret``, ``host``, and maybe ``port`` and ``target``
for a mapping. Otherwise the service is one that echoes, in a thread of the system's where nothing
is patched. A line on stdin lets it go on.
"""

from __future__ import annotations

import sys


if sys.argv[1:2] == ["patched"]:
    from gevent import monkey

    monkey.patch_all()

import json
import os
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import gevent
from gevent import monkey as gevent_monkey
from gevent import subprocess as gevent_subprocess
from gevent.fileobject import FileObject

from nexusg import Agent, Attestation, Backend, PortMapping, RelayTls, Secret
from nexusg.config.model import Config


if TYPE_CHECKING:
    from collections.abc import Callable

STDIN = FileObject(sys.stdin.fileno(), "r", close=False)


def say(*words: object) -> None:
    """One line on stdout, at once."""
    print(*words, flush=True)


def proceed() -> None:
    """Wait for the test. Blocks."""
    STDIN.readline()


def serve(sock: Any) -> None:
    """Echo until the end."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.close()


def handler(_: object) -> Any:
    """A connected socket of the standard library, whose other end a thread serves."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=serve, args=(theirs,), daemon=True).start()
    return ours


def make_agent(settings: dict[str, Any]) -> Agent:
    """The agent, which tells of every session."""
    mapped = "target" in settings
    mappings = {settings["port"]: PortMapping(default=settings["target"])} if mapped else {}
    backend = Backend(
        name="program",
        hostnames=(settings["host"],),
        nexus_addresses=(settings["url"],),
        attestation=Attestation(hmac_secret=Secret(settings["secret"])),
        tls=RelayTls(ca_file=settings["ca_file"]),
        port_mappings=mappings,
    )

    def on_event(event: Any) -> None:
        if event.name().startswith(("session.", "task.")):
            say(event.name(), os.getpid())

    handlers = [] if mapped else [handler]
    return Agent(Config(backends=(backend,)), connect_handler=handlers, on_event=on_event)


def run(agent: Agent) -> None:
    """Serve until the test says something."""
    with agent:
        proceed()
    say("outcome", agent.outcome)


def start_after_fork(agent: Agent) -> None:
    """What a pre-forking server does: made in the parent, started in the child."""
    child = gevent.fork()
    if child == 0:
        run(agent)
        sys.stdout.flush()
        os._exit(0)
    _, status = gevent.os.waitpid(child, 0)  # type: ignore[attr-defined]
    say("exit", status, agent.running)


def fork_while_running(agent: Agent) -> None:
    """The child finds the agent stopped, lets everything run that it has inherited, and leaves."""
    with agent:
        proceed()
        child = gevent.fork()
        if child == 0:
            say("child", agent.running, agent.join(0), agent.stop())
            gevent.sleep(0.05)
            say("child", len(agent._slot_tasks), len(agent._context.tasks), agent.running)
            os._exit(0)
        gevent.os.waitpid(child, 0)  # type: ignore[attr-defined]
        say("waited", agent.running)
        proceed()
    say("outcome", agent.outcome)


def fork_and_start(agent: Agent) -> None:
    """The child has an agent of its own at once, beside the parent's."""
    with agent:
        proceed()
        child = gevent.fork()
        if child == 0:
            agent.start()
            with gevent.Timeout(5):
                while not agent.stats().connects:
                    gevent.sleep(0.005)
            gevent.sleep(0.05)  # what was inherited has ended by now
            say("child", agent.running)
            agent.stop()
            say("child", agent.outcome)
            os._exit(0)
        gevent.os.waitpid(child, 0)  # type: ignore[attr-defined]
        say("waited", agent.running)
        proceed()
    say("outcome", agent.outcome)


def children_that_exec(agent: Agent) -> None:
    """Commands of every kind, as attestation commands are run, or a host program runs its own."""
    with agent:
        proceed()
        own: dict[str, Any] = {"check": True, "stdin": subprocess.DEVNULL}  # ours must not block
        for _ in range(3):
            gevent_subprocess.run(["/bin/true"], **own)
            gevent_subprocess.run(["/bin/true"], start_new_session=True, **own)
            subprocess.run(["/bin/true"], preexec_fn=os.getpid, **own)
        say("ran", agent.running)
        proceed()
    say("outcome", agent.outcome)


MODES: dict[str, Callable[[Agent], None]] = {
    "run": run,
    "start_after_fork": start_after_fork,
    "fork_while_running": fork_while_running,
    "fork_and_start": fork_and_start,
    "children_that_exec": children_that_exec,
}

if __name__ == "__main__":
    say("patched", gevent_monkey.is_module_patched("socket"))
    MODES[sys.argv[2]](make_agent(json.loads(sys.argv[3])))
