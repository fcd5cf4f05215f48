"""``nexusg demo``: a relay, an agent and a service on this machine, and requests through them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gevent import socket
from gevent.event import Event

from nexusg.agent.agent import Agent
from nexusg.agent.lifecycle import SessionConnected, SessionFailed, SessionRejected
from nexusg.config.loader import loads
from nexusg.config.model import Logging
from nexusg.observe.stdout import setup_cli_logging
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import CERTIFICATE_FOLDER, RelayConfig

from . import demo_client, example
from .arguments import override
from .demo_service import DemoService
from .example import HOSTNAME, HTTP_PORT, HUB_PORT, TLS_PORT
from .exits import Exit
from .signals import Signals


if TYPE_CHECKING:
    import argparse

    from nexusg.agent.lifecycle import LifecycleEvent
    from nexusg.observe.logs import LogObserver

CONNECT_S = 10.0
GRACE_YAML = "shutdown: {graceSeconds: 1}\n"  # a browser's idle connection must not hold up the end


def execute(given: argparse.Namespace) -> int:
    """Show a tunnel at work; FAILED if it does not work. Blocks."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        watch = _Watch(_log(given, stack))
        if given.keep:
            folder = CERTIFICATE_FOLDER
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexusg-")))
        works = Demo(folder, watch).show(stack)
        if works and not given.once:
            print("\nCtrl-C ends it.", flush=True)
            signals.stop.wait()
    return Exit.OK if works else Exit.FAILED


class Demo:
    """The parts, started one by one, and what is said about each."""

    def __init__(self, folder: Path, watch: _Watch) -> None:
        self._folder = folder
        self._watch = watch
        self._secret_file = folder / example.SECRET_FILE
        self._steps = 0

    def show(self, stack: contextlib.ExitStack) -> bool:
        """Start everything, to be ended by ``stack``, and try it out; whether it works. Blocks."""
        print("Everything here runs on this machine, and ends with this command.\n")
        relay = stack.enter_context(self._relay())
        http_port, tls_port = relay.public_ports
        self._step("relay", f"waits for agents at {relay.url}")
        self._more(f"and for users at 127.0.0.1:{http_port} (HTTP) and 127.0.0.1:{tls_port} (TLS)")

        service = stack.enter_context(DemoService(self._certificate_file()))
        self._step("service", f"a web service at {service.http}, and by TLS at {service.tls}")

        targets = {http_port: service.http, tls_port: service.tls}
        assert relay.ca_file is not None
        text = example.agent_yaml(relay.url, relay.ca_file, self._secret_file, targets) + GRACE_YAML
        (self._folder / "config.yaml").write_text(text, encoding="utf-8")
        stack.enter_context(Agent(loads(text).config, on_event=self._watch))
        if not self._watch.connected.wait(CONNECT_S):
            self._step("agent", f"could not connect: {self._watch.problem or 'no answer'}")
            return False
        self._step("agent", f"has connected the two ({self._watch.how})")
        try:
            self._try(http_port, tls_port, relay.ca_file)
        except (*demo_client.FAILURES, _Unexpected) as error:
            self._step("request", f"failed: {error}")
            return False
        self._invite(http_port, tls_port, relay.ca_file)
        return True

    def _relay(self) -> DevRelay:
        return DevRelay(
            RelayConfig(
                secret=example.shared_secret(self._secret_file, make=True),
                hub=("127.0.0.1", free_port(HUB_PORT)),
                public_ports=(free_port(HTTP_PORT), free_port(TLS_PORT)),
                certificates=self._folder,
                on_log=lambda _event, _fields: None,  # this command says what happens
            )
        )

    def _certificate_file(self) -> Path:
        from nexusg.relay.certs import CERTIFICATE_FILE  # needs the extra, as the relay has said

        return self._folder / CERTIFICATE_FILE

    def _try(self, http_port: int, tls_port: int, ca_file: Path) -> None:
        """One request of each kind. Blocks. Raises FAILURES, _Unexpected."""
        reply = demo_client.fetch(HOSTNAME, http_port)
        self._step("HTTP", f"http://{HOSTNAME}:{http_port}/ says {_summary(reply)}")
        self._more("some 50 ms of it is the relay's habit of gathering what users send")
        heard = demo_client.echo(HOSTNAME, http_port, "hello")
        if heard != "hello":
            raise _Unexpected(f"the echo of 'hello' was {heard!r}")
        self._step("WebSocket", f"ws://{HOSTNAME}:{http_port}/ws sends back {heard!r}")
        reply = demo_client.fetch(HOSTNAME, tls_port, ca_file)
        self._step("TLS", f"https://{HOSTNAME}:{tls_port}/ says {_summary(reply)}")
        self._more("only the service can decrypt it: the relay reads no more than the name")

    def _invite(self, http_port: int, tls_port: int, ca_file: Path) -> None:
        where = f"--resolve {HOSTNAME}:{tls_port}:127.0.0.1 https://{HOSTNAME}:{tls_port}/"
        print("\nTry it yourself:")
        print(f"  curl -H 'Host: {HOSTNAME}' http://127.0.0.1:{http_port}/")
        print(f"  curl --cacert {ca_file} {where}")
        print(f"  or open http://{HOSTNAME}:{http_port}/ in a browser", flush=True)

    def _step(self, who: str, what: str) -> None:
        self._steps += 1
        print(f"{self._steps}. {who:<10} {what}", flush=True)

    def _more(self, what: str) -> None:
        print(f"   {'':<10} {what}", flush=True)


class _Unexpected(Exception):
    """An answer came, but not the right one."""


class _Watch:
    """Subscriber to the agent: how the session came about, or why it does not."""

    def __init__(self, log: LogObserver | None) -> None:
        self.connected = Event()
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
        if self._log is not None:
            self._log(event)


def free_port(wanted: int) -> int:
    """``wanted`` if it is free on this machine, else 0: any other."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def _log(given: argparse.Namespace, stack: contextlib.ExitStack) -> LogObserver | None:
    """The agent's log, if an option asks for it: it would be in the way of what is said here."""
    if given.log_level is None and given.log_format is None:
        return None
    log = setup_cli_logging(override(Logging(), given))
    stack.callback(log.close)
    return log


def _summary(reply: demo_client.Reply) -> str:
    if reply.status != "200 OK" or "It works" not in reply.body:
        raise _Unexpected(f"the page said {reply.status}")
    return f"{reply.status}, {len(reply.body)} bytes in {reply.took_s * 1000:.0f} ms"
