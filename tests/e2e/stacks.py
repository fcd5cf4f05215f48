"""A program with a web server and two agents on one hub, run by tests as a process of its own.

    python -m tests.e2e.stacks patched|unpatched SETTINGS

The settings are JSON: ``url``, ``ca_file``, ``secret`` and two ``hosts``. It prints a line of JSON
when everything runs, waits for a line on stdin, ends everything, and prints what is left.
"""

from __future__ import annotations

import sys


if sys.argv[1:2] == ["patched"]:
    from gevent import monkey

    monkey.patch_all()

import gc
import json
import logging
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.fileobject import FileObject
from gevent.monkey import is_module_patched
from gevent.pywsgi import WSGIServer
from greenlet import greenlet

from nexusg import Agent, Attestation, Backend, RelayTls, Secret
from nexusg.config.model import Config


if TYPE_CHECKING:
    from collections.abc import Callable

STDIN = FileObject(sys.stdin.fileno(), "r", close=False)


def manners() -> tuple[Any, ...]:
    """All of the process that an embedded agent has no business with."""
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(one for one in known if isinstance(one, logging.Logger))]
    handlers = [one for logger in loggers for one in logger.handlers]
    handlers = [one for one in handlers if not isinstance(one, logging.NullHandler)]
    functions = (socket.socket, threading.Thread, sys.excepthook)
    return signals, handlers, logging.root.level, functions, threading.active_count()


def living() -> set[greenlet]:
    """All greenlets that run or will, but this one and the hub."""
    gc.collect()
    found = {one for one in gc.get_objects() if isinstance(one, greenlet)}
    mine = {gevent.getcurrent(), gevent.get_hub()}
    return {
        one
        for one in found - mine
        if (not one.dead if isinstance(one, gevent.Greenlet) else bool(one))
    }


def application(name: str) -> Any:
    """Says who it is; after a while for ``/slow``, and never for ``/hang``."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            gevent.sleep(0.05)
        if environ["PATH_INFO"] == "/hang":
            print(json.dumps({"hangs": name}), flush=True)
            Event().wait()
        start_response("200 OK", [("Connection", "close")])
        return [name.encode()]

    return app


def make_agent(settings: dict[str, Any], host: str, connected: Event) -> Agent:
    backend = Backend(
        name=host,
        hostnames=(host,),
        nexus_addresses=(settings["url"],),
        attestation=Attestation(hmac_secret=Secret(settings["secret"])),
        tls=RelayTls(ca_file=settings["ca_file"]),
    )

    def on_event(event: Any) -> None:
        if event.name() == "session.connected":
            connected.set()

    config = Config(backends=(backend,))
    return Agent(config, wsgi={host: application(host)}, on_event=on_event)


def main(settings: dict[str, Any]) -> None:
    gevent.get_hub()
    server = WSGIServer(("127.0.0.1", 0), application("server"), log=None)
    server.start()
    before, greenlets = manners(), living()
    connected = [Event() for _ in settings["hosts"]]
    what = zip(settings["hosts"], connected, strict=True)
    agents = [make_agent(settings, host, event) for host, event in what]
    for agent in agents:
        agent.start()
    for event in connected:
        event.wait(5)
    same = manners() == before
    running = {"patched": is_module_patched("socket"), "port": server.server_port, "same": same}
    print(json.dumps(running), flush=True)
    STDIN.readline()
    for agent in agents:
        agent.stop(0)
    gevent.sleep(0)
    left = [repr(one) for one in living() - greenlets]
    outcomes = [agent.outcome for agent in agents]
    ended = {"left": left, "same": manners() == before, "outcomes": outcomes}
    print(json.dumps(ended), flush=True)
    server.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
