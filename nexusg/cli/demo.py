"""``nexusg demo``: a relay, an agent and a service on this machine, and requests through them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nexusg.agent.agent import Agent
from nexusg.config.loader import loads
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import CERTIFICATE_FOLDER, RelayConfig

from . import demo_client, example
from .demo_parts import (
    CONNECT_S,
    GRACE_YAML,
    INTRODUCTION,
    Steps,
    Unexpected,
    Watch,
    agent_log,
    free_port,
    summary,
)
from .demo_service import DemoService
from .demo_tpm import TpmDemo
from .example import HOSTNAME, HTTP_PORT, HUB_PORT, TLS_PORT
from .exits import Exit
from .signals import Signals


if TYPE_CHECKING:
    import argparse


def execute(given: argparse.Namespace) -> int:
    """Show a tunnel at work; FAILED if it does not work. Blocks. Raises TpmError."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        watch = Watch(agent_log(given, stack))
        if given.keep:
            folder = CERTIFICATE_FOLDER
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexusg-")))
        demo = TpmDemo(folder, watch, signals.stop) if given.tpm else Demo(folder, watch)
        works = demo.show(stack)
        if works and not (given.once or signals.stop.is_set()):
            print("\nCtrl-C ends it.", flush=True)
            signals.stop.wait()
    return Exit.OK if works else Exit.FAILED


class Demo:
    """The parts, started one by one, and what is said about each."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder = folder
        self._watch = watch
        self._secret_file = folder / example.SECRET_FILE
        self._say = Steps()

    def show(self, stack: contextlib.ExitStack) -> bool:
        """Start everything, to be ended by ``stack``, and try it out; whether it works. Blocks."""
        print(INTRODUCTION)
        relay = stack.enter_context(self._relay())
        http_port, tls_port = relay.public_ports
        self._say.step("relay", f"waits for agents at {relay.url}")
        self._say.more(
            f"and for users at 127.0.0.1:{http_port} (HTTP) and 127.0.0.1:{tls_port} (TLS)"
        )

        service = stack.enter_context(DemoService(self._certificate_file()))
        self._say.step("service", f"a web service at {service.http}, and by TLS at {service.tls}")

        targets = {http_port: service.http, tls_port: service.tls}
        assert relay.ca_file is not None
        text = example.agent_yaml(relay.url, relay.ca_file, self._secret_file, targets) + GRACE_YAML
        (self._folder / "config.yaml").write_text(text, encoding="utf-8")
        stack.enter_context(Agent(loads(text).config, on_event=self._watch))
        if not self._watch.connected.wait(CONNECT_S):
            self._say.step("agent", f"could not connect: {self._watch.problem or 'no answer'}")
            return False
        self._say.step("agent", f"has connected the two ({self._watch.how})")
        try:
            self._try(http_port, tls_port, relay.ca_file)
        except (*demo_client.FAILURES, Unexpected) as error:
            self._say.step("request", f"failed: {error}")
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
        """One request of each kind. Blocks. Raises FAILURES, Unexpected."""
        reply = demo_client.fetch(HOSTNAME, http_port)
        self._say.step("HTTP", f"http://{HOSTNAME}:{http_port}/ says {summary(reply)}")
        self._say.more("some 50 ms of it is the relay's habit of gathering what users send")
        heard = demo_client.echo(HOSTNAME, http_port, "hello")
        if heard != "hello":
            raise Unexpected(f"the echo of 'hello' was {heard!r}")
        self._say.step("WebSocket", f"ws://{HOSTNAME}:{http_port}/ws sends back {heard!r}")
        reply = demo_client.fetch(HOSTNAME, tls_port, ca_file)
        self._say.step("TLS", f"https://{HOSTNAME}:{tls_port}/ says {summary(reply)}")
        self._say.more("only the service can decrypt it: the relay reads no more than the name")

    def _invite(self, http_port: int, tls_port: int, ca_file: Path) -> None:
        where = f"--resolve {HOSTNAME}:{tls_port}:127.0.0.1 https://{HOSTNAME}:{tls_port}/"
        print("\nTry it yourself:")
        print(f"  curl -H 'Host: {HOSTNAME}' http://127.0.0.1:{http_port}/")
        print(f"  curl --cacert {ca_file} {where}")
        print(f"  or open http://{HOSTNAME}:{http_port}/ in a browser", flush=True)
