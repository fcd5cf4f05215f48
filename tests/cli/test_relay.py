from __future__ import annotations

import json
import os
import signal
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import gevent
import pytest

from nexusg.agent.agent import Agent
from nexusg.agent.lifecycle import SessionConnected, SessionRejected
from nexusg.cli import app
from nexusg.cli import relay as command
from nexusg.config.loader import loads
from nexusg.config.model import PortMapping


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nexusg.agent.lifecycle import LifecycleEvent
    from tests.cli.conftest import Done

PORTS = ["--listen", "127.0.0.1:0", "--http-port", "0", "--tls-port", "0"]


class Running:
    """``nexusg relay`` in a greenlet of this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> None:
        self._capfd = capfd
        self._out = ""
        self._greenlet = gevent.Greenlet.spawn(app.main, ["relay", *PORTS, *arguments])

    def configuration(self) -> str:
        """What it tells people to use; it is up then."""
        text = ""
        with gevent.Timeout(5):
            while not text.endswith("\n\n"):
                gevent.sleep(0.001)
                text += self._read()
        return text

    def end(self, number: int = signal.SIGTERM) -> list[dict[str, str]]:
        """Stop it, and return the lines of its log."""
        os.kill(os.getpid(), number)
        assert self._greenlet.get(timeout=5) == 0
        self._read()
        return [json.loads(line) for line in self._out.splitlines()]

    def _read(self) -> str:
        captured = self._capfd.readouterr()
        self._out += captured.out
        return captured.err


@pytest.fixture
def running(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Running]:
    return lambda *arguments: Running(capfd, "--dir", str(tmp_path / "dev"), *arguments)


@pytest.mark.parametrize(("options", "scheme"), [([], "wss"), (["--no-tls"], "ws")])
def test_an_agent_connects_with_the_configuration_shown(
    running: Callable[..., Running], tmp_path: Path, options: list[str], scheme: str
) -> None:
    relay = running(*options)
    text = relay.configuration()
    assert text.startswith("# a configuration for this relay:\nbackends:\n")
    assert stat.S_IMODE((tmp_path / "dev" / "secret").stat().st_mode) == 0o600
    config = loads(text + "shutdown: {graceSeconds: 0}").config
    [backend] = config.backends
    assert backend.nexus_addresses[0].startswith(f"{scheme}://127.0.0.1:")
    [mapping] = backend.port_mappings.values()
    assert mapping == PortMapping(default="127.0.0.1:8000")

    connected = gevent.event.Event()

    def watch(event: LifecycleEvent) -> None:
        if isinstance(event, SessionConnected):
            connected.set()

    with Agent(config, on_event=watch):
        assert connected.wait(5)
    secret = (tmp_path / "dev" / "secret").read_text(encoding="utf-8").strip()
    lines = relay.end()
    assert secret not in text + str(lines)


def test_udp_ports(running: Callable[..., Running]) -> None:
    """The configuration shown claims them, and the relay listens."""
    relay = running("--no-tls", "--udp-port", "0", "--udp-port", "0")
    config = loads(relay.configuration()).config
    ports = [route.port for route in config.backends[0].udp_routes]
    assert len(set(ports)) == 2
    [started] = relay.end()
    assert started["udp_ports"] == ports
    # A number may be free for both TCP and UDP; then it has the mapping of TCP.
    mappings = config.backends[0].port_mappings
    own = [port for port in ports if port not in started["public_ports"]]
    assert all(mappings[port] == PortMapping(default="127.0.0.1:53") for port in own)


@pytest.mark.parametrize(
    ("options", "outcome"), [(["--allow-outbound"], SessionConnected), ([], SessionRejected)]
)
def test_connections_out(
    running: Callable[..., Running], options: list[str], outcome: type[LifecycleEvent]
) -> None:
    """Only with this option may an agent claim them."""
    relay = running("--no-tls", *options)
    config = loads(relay.configuration() + "shutdown: {graceSeconds: 0}").config
    [backend] = config.backends
    attestation = replace(backend.attestation, outbound_allowed=True)
    config = replace(config, backends=(replace(backend, attestation=attestation),))
    judged = gevent.event.Event()
    events: list[LifecycleEvent] = []

    def watch(event: LifecycleEvent) -> None:
        if isinstance(event, SessionConnected | SessionRejected):
            events.append(event)
            judged.set()

    with Agent(config, on_event=watch):
        assert judged.wait(5)
    assert isinstance(events[0], outcome)
    relay.end()


def test_it_says_what_it_is_for(running: Callable[..., Running]) -> None:
    relay = running("--no-tls")
    relay.configuration()
    [started] = relay.end(signal.SIGINT)
    assert started["event"] == "relay.started"
    assert "development" in started["notice"]


def test_a_secret_of_ones_own(running: Callable[..., Running], tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("m" * 40, encoding="utf-8")
    relay = running("--no-tls", "--secret-file", str(path))
    assert str(path) in relay.configuration()
    relay.end()


def test_a_missing_secret_is_not_made_elsewhere(nexusg: Callable[..., Done]) -> None:
    done = nexusg("relay", "--secret-file", "nowhere/secret")
    assert done.code == 2
    assert done.err == "cannot use the secret in nowhere/secret: no such file or directory\n"


def test_an_address_that_cannot_be_had(nexusg: Callable[..., Done], tmp_path: Path) -> None:
    arguments = ["--dir", str(tmp_path), "--no-tls", *PORTS, "--listen", "192.0.2.1:1"]
    done = nexusg("relay", *arguments)
    assert done.code == 2
    assert done.err.startswith("cannot listen on 192.0.2.1:1: ")


def test_bugs_of_the_relay_are_errors() -> None:
    lines = []

    class Log:
        def line(self, *line: object, **fields: object) -> None:
            lines.append((*line, fields))

    command._on_log(Log(), "relay.task_failed", {"task": "user"})  # type: ignore[arg-type]
    command._on_log(Log(), "user.opened", {})  # type: ignore[arg-type]
    assert lines == [
        ("error", "relay.task_failed", {"task": "user"}),
        ("info", "user.opened", {}),
    ]
