"""conf/supervisord and its example, under a real supervisord."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent.event import Event

from nexusg.cli.exits import Exit
from nexusg.cli.workers import MARGIN_S
from nexusg.config.model import Shutdown
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.conftest import MS
from tests.support.relayed import HOST, SECRET, http_get, read_to_end
from tests.support.running import read_exactly
from tests.support.services import echo
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.running import Running


xmlrpc_transport = pytest.importorskip("supervisor.xmlrpc", reason="supervisor is not installed")

PROGRAM = ROOT / "conf" / "supervisord" / "nexusg.conf"
EXAMPLE = ROOT / "examples" / "supervisord"

#: Long enough never to be reached by a passing test: processes start, and supervisord looks at
#: them once a second.
PATIENCE_S = 20.0
POLL_S = 10 * MS

SITE = """\
[supervisord]
nodaemon=true
logfile=supervisord.log
pidfile=supervisord.pid

[unix_http_server]
file=supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{folder}/supervisor.sock

[include]
files=nexusg.conf
"""


def fitted(folder: Path, startsecs: int = 2) -> str:
    """The shipped program for this machine: other paths, another user, and less patience."""
    text = PROGRAM.read_text()
    for shipped, ours in {
        "/opt/nexusg/bin/nexusg": f"{sys.executable} -m nexusg",
        "/etc/nexusg": str(folder),
        "user=nexusg\n": f"user={getpass.getuser()}\n",
        "startsecs=5\n": f"startsecs={startsecs}\n",
        "/var/log/supervisor/nexusg.log": str(folder / "nexusg.log"),
    }.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, ours)
    return text


class Supervisord:
    """A supervisord in ``folder``, where its configuration is. Use as a context."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        if not (folder / "supervisord.conf").exists():
            (folder / "supervisord.conf").write_text(SITE.format(folder=folder))
            (folder / "nexusg.conf").write_text(fitted(folder))
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"]
        with open(folder / "out", "wb") as out:
            self._process = subprocess.Popen(
                command, cwd=folder, env=self._environ, stdout=out, stderr=out
            )

    def __enter__(self) -> Supervisord:
        return self

    def __exit__(self, *_: object) -> None:
        """End it and its programs at once, which each have a group of their own."""
        groups = [info["pid"] for info in self._all() if info["pid"]]
        self._process.kill()
        self._process.wait()
        for group in groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:  # it has just ended
                pass

    def rpc(self, method: str, *arguments: Any) -> Any:
        """Call a method of supervisord's XML-RPC interface. Blocks."""
        address = f"unix://{self.folder}/supervisor.sock"
        transport = xmlrpc_transport.SupervisorTransport(None, None, address)
        server = xmlrpc.client.ServerProxy("http://127.0.0.1", transport)
        try:
            return getattr(server, f"supervisor.{method}")(*arguments)
        finally:
            transport.close()

    def info(self, name: str = "nexusg") -> dict[str, Any]:
        """What supervisord knows about a program; empty while it has not started itself."""
        return next((info for info in self._all() if info["name"] == name), {})

    def wait_state(self, state: str, name: str = "nexusg") -> dict[str, Any]:
        """Wait until the program is in that state. Blocks."""
        self.wait(lambda: self.info(name).get("statename") == state)
        return self.info(name)

    def wait(self, condition: Callable[[], object]) -> None:
        """Ask until ``condition()`` holds. Blocks."""
        try:
            with gevent.Timeout(PATIENCE_S):
                while not condition():
                    gevent.sleep(POLL_S)
        except gevent.Timeout:
            raise AssertionError(f"never came true: {self._all()}\n{self.log}") from None

    def ctl(self, *arguments: str) -> str:
        """What ``supervisorctl`` prints. Blocks."""
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", "supervisord.conf"]
        command += arguments
        options: Any = {"cwd": self.folder, "env": self._environ, "capture_output": True}
        done = subprocess.run(command, timeout=PATIENCE_S, check=True, text=True, **options)
        return str(done.stdout)

    @property
    def log(self) -> str:
        """All that nexusg has written."""
        file = self.folder / "nexusg.log"
        return file.read_text() if file.exists() else ""

    @property
    def own_log(self) -> str:
        """What supervisord has written."""
        return (self.folder / "supervisord.log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its lines of that name so far."""
        lines = (json.loads(line) for line in self.log.splitlines() if line.endswith("}"))
        return [line for line in lines if line["event"] == name]

    def wait_event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th of them. Blocks."""
        self.wait(lambda: len(self.events(name)) >= count)
        return self.events(name)[count - 1]

    def _all(self) -> list[dict[str, Any]]:
        try:
            return list(self.rpc("getAllProcessInfo"))
        except OSError:  # it has just been started
            return []


def yaml(relays: list[str], port: int, target: str, more: str = "") -> str:
    return f"""\
backends:
  - name: web
    hostnames: [{HOST}]
    nexusAddresses: {json.dumps(relays)}
    attestation: {{hmacSecretFile: secret}}
    portMappings: {{{port}: {{default: "{target}"}}}}
{more}"""


def write(folder: Path, config: str) -> None:
    """The configuration and its secret."""
    config = config.replace("hmacSecretFile: secret", f"hmacSecretFile: {folder}/secret")
    (folder / "config.yaml").write_text(config)
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o600)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[str], Supervisord]]:
    """Starts a supervisord with this configuration of nexusg."""
    started = []

    def supervise(config: str) -> Supervisord:
        write(tmp_path, config)
        started.append(Supervisord(tmp_path))
        return started[-1]

    yield supervise
    for supervisord in started:
        supervisord.__exit__()


@pytest.fixture(scope="module", autouse=True)
def unusable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisord]:
    """One whose nexusg has a bad configuration. It takes seconds to give up, beside the others."""
    folder = tmp_path_factory.mktemp("bad")
    bad = yaml(["wss://relay.example.com/connect"], 443, "127.0.0.1:9", "shutdwon: {}\n")
    write(folder, bad)
    (folder / "supervisord.conf").write_text(SITE.format(folder=folder))
    # However long it takes here to find out: the machine may be busy.
    (folder / "nexusg.conf").write_text(fitted(folder, startsecs=60))
    with Supervisord(folder) as supervisord:
        yield supervisord


def program(name: str) -> str:
    """The setting of that name in the shipped file."""
    (value,) = re.findall(rf"^{name}=(.*)$", PROGRAM.read_text(), re.M)
    return str(value)


def test_what_a_restart_cannot_help() -> None:
    """The exit codes are those of exits.py."""
    assert program("autorestart") == "unexpected"
    codes = {int(code) for code in program("exitcodes").split(",")}
    assert codes == set(Exit) - {Exit.FAILED}


def test_a_stop_has_the_time_it_needs() -> None:
    assert program("stopsignal") == "TERM"
    assert float(program("stopwaitsecs")) > Shutdown().grace_s + MARGIN_S


def test_a_stop_lets_a_download_finish(
    running: Running, supervise: Callable[[str], Supervisord]
) -> None:
    """And only a download: whoever comes meanwhile is refused."""
    first, rest, proceed = bytes(300_000), bytes(range(256)) * 1000, Event()

    def serve(sock: Any) -> None:
        sock.recv(65536)
        sock.sendall(first)
        assert proceed.wait(PATIENCE_S)
        sock.sendall(rest)

    relay, service = running.relay(tls=False), running.service(serve)
    site = supervise(yaml([relay.url], relay.public_ports[0], service.target))
    site.wait_event("session.connected")
    user = running.user(relay)
    assert read_exactly(user, len(first)) == first
    site.rpc("stopProcess", "nexusg", False)
    site.wait_event("agent.stopping")
    assert site.info()["statename"] == "STOPPING"
    assert read_to_end(running.user(relay)) == b""
    proceed.set()
    assert read_to_end(user) == rest
    assert site.wait_state("STOPPED")["exitstatus"] == 0
    assert site.events("stream.closed")[0]["reason"] == "normal"
    assert site.events("agent.stopped")[0]["cut"] == 0
    assert site.events("supervisor.detected")


def test_a_restart(running: Running, supervise: Callable[[str], Supervisord]) -> None:
    relay, service = running.relay(tls=False), running.service(echo)
    site = supervise(yaml([relay.url], relay.public_ports[0], service.target))
    site.wait_event("session.connected")
    assert running.talk(relay, b"before") == b"before"
    site.ctl("restart", "nexusg")
    site.wait_event("session.connected", 2)
    assert running.talk(relay, b"after") == b"after"
    assert site.events("session.closed"), "in order, and not by the end of a process"
    assert "RUNNING" in site.ctl("status", "nexusg")


def test_a_crash_of_several_workers(
    running: Running, supervise: Callable[[str], Supervisord]
) -> None:
    """It is started again, and the workers of the old one leave no sessions behind."""
    relay, service = running.relay(tls=False), running.service(echo)
    config = yaml([relay.url], relay.public_ports[0], service.target, "workers: 2\n")
    site = supervise(config)
    site.wait_event("session.connected", 2)
    before = site.wait_state("RUNNING")["pid"]
    os.kill(before, signal.SIGKILL)
    site.wait_event("session.connected", 4)
    assert site.info()["pid"] != before
    assert "terminated by SIGKILL; not expected" in site.own_log
    logged = relay.logged  # type: ignore[attr-defined]
    site.wait(lambda: [event for event, _ in logged].count("agent.gone") == 2)
    assert running.talk(relay, b"after") == b"after"


def test_a_network_that_is_late(running: Running, supervise: Callable[[str], Supervisord]) -> None:
    """No name is found, nobody answers: it is RUNNING, and there when the relay is."""
    with DevRelay(RelayConfig(secret=SECRET, tls=False)) as early:
        port = early.hub_port
    service = running.service(echo)
    relays = ["wss://relay.invalid/connect", f"ws://127.0.0.1:{port}/connect"]
    site = supervise(yaml(relays, early.public_ports[0], service.target))
    site.wait(lambda: len({line["relay"] for line in site.events("session.failed")}) == 2)
    relay = running.relay(tls=False, hub=("127.0.0.1", port), public_ports=early.public_ports)
    site.wait_event("session.connected")
    assert running.talk(relay, b"hello") == b"hello"
    assert site.wait_state("RUNNING")
    assert len(site.events("agent.started")) == 1


def test_a_bad_configuration(unusable: Supervisord) -> None:
    """FATAL, and the log says where it is wrong and what was meant."""
    unusable.wait_state("FATAL")
    lines = unusable.log.splitlines()
    attempts = 1 + int(program("startretries"))
    assert len(lines) == attempts
    assert unusable.own_log.count(f"(exit status {Exit.USAGE}; not expected)") == attempts
    (line,) = set(lines)
    assert line.startswith(f"{unusable.folder}/config.yaml:7:1: ")
    assert "shutdown" in line


# The example -----------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    socks = [gevent.socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_the_example(tmp_path: Path) -> None:
    """As it is shipped, but for the ports: others may use these."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    service, hub, http, tls = free_ports(4)
    relay = f"nexusg relay --listen 127.0.0.1:{hub} --http-port {http} --tls-port {tls}"
    for name, changes in {
        "supervisord.conf": {" 8000\n": f" {service}\n", "nexusg relay\n": f"{relay}\n"},
        "config.yaml": {":9443/": f":{hub}/", "8080:": f"{http}:", ":8000": f":{service}"},
    }.items():
        text = (folder / name).read_text()
        for shipped, ours in changes.items():
            assert text.count(shipped) == 1, shipped
            text = text.replace(shipped, ours)
        (folder / name).write_text(text)
    nexusg = tmp_path / "nexusg"
    nexusg.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nexusg "$@"\n')
    nexusg.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with Supervisord(folder, PATH=path) as site:
        out = folder / "out"
        site.wait(lambda: "session.connected" in out.read_text())
        with gevent.socket.create_connection(("127.0.0.1", http)) as user:
            user.sendall(http_get("demo.localhost").replace(b"1.1", b"1.0"))
            answer = read_to_end(user)
        assert answer.startswith(b"HTTP/1.0 200"), out.read_text()
        assert answer.endswith((EXAMPLE / "www" / "index.html").read_bytes())
        assert "nexusg" in site.ctl("status")
