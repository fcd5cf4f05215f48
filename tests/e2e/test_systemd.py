"""conf/systemd: the unit as systemd reads it, and the agent started as systemd starts it.

What stands in for systemd here is its socket and its environment; no systemd needs to run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest

from nexusg.cli.exits import MEANINGS, Exit
from nexusg.cli.workers import MARGIN_S
from nexusg.config.model import Shutdown
from tests.conftest import MS
from tests.support.manager import PATIENCE_S, Manager
from tests.support.relayed import HOST, SECRET
from tests.support.services import echo
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running

UNIT = ROOT / "conf" / "systemd" / "nexusg.service"

# The unit -------------------------------------------------------------------------------------


def setting(name: str) -> list[str]:
    """The values that the unit gives to ``name``."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The unit with a program that exists."""
    program = tmp_path / "nexusg"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text, count = re.subn("/opt/nexusg/bin/nexusg", str(program), UNIT.read_text())
    assert count == 1
    (tmp_path / "nexusg.service").write_text(text)
    return str(tmp_path / "nexusg.service")


def analyze(*arguments: str) -> str:
    """What ``systemd-analyze`` says; it must have no objection."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([tool, "--no-pager", *arguments], capture_output=True, text=True)
    if "nknown option" in done.stderr or "nrecognized option" in done.stderr:
        pytest.skip("systemd is too old")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_the_unit(unit: str) -> None:
    assert analyze("verify", "--man=no", unit) == ""


def test_little_is_exposed(unit: str) -> None:
    """In systemd's own judgement, from 0 to 10; a unit without any hardening has 9.6."""
    analyze("security", "--offline=true", "--threshold=20", unit)


def test_what_a_restart_cannot_help() -> None:
    """The exit codes are those of exits.py."""
    assert setting("Restart") == ["on-failure"]
    (codes,) = setting("RestartPreventExitStatus")
    assert {int(code) for code in codes.split()} == {Exit.USAGE, Exit.REFUSED}


def test_a_stop_has_the_time_it_needs() -> None:
    (time_s,) = setting("TimeoutStopSec")
    assert float(time_s) > Shutdown().grace_s + MARGIN_S
    assert setting("KillMode") == ["mixed"]


def test_the_page_has_the_exit_codes() -> None:
    """In the words of the help."""
    text = (ROOT / "docs" / "deployment.md").read_text().replace("`", "")
    rows = re.findall(r"^\| (\d) \| (.*) \| (yes|no) \|$", text, re.M)
    assert {int(code): meaning for code, meaning, _ in rows} == MEANINGS
    assert [int(code) for code, _, restarted in rows if restarted == "yes"] == [Exit.FAILED]


# The agent -------------------------------------------------------------------------------------


class Started:
    """The command of the unit, started as systemd does; ``manager`` is who listens."""

    def __init__(self, folder: Path, manager: Manager, config: str, watchdog_s: float) -> None:
        self.folder = folder
        (folder / "config.yaml").write_text(config)
        (folder / "hmac-secret").write_text(SECRET)
        (folder / "hmac-secret").chmod(0o400)
        (command,) = setting("ExecStart")
        _, arguments = command.replace("/etc/nexusg", str(folder)).split(" ", 1)
        # The shell becomes the program, and so its number is that of the main process.
        line = f'WATCHDOG_PID=$$ exec "{sys.executable}" -m nexusg {arguments}'
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
            "CREDENTIALS_DIRECTORY": str(folder),
        }
        with open(folder / "log", "wb") as log:
            shell = ["/bin/sh", "-c", line]
            self.process = subprocess.Popen(shell, env=environ, stdout=log, cwd=folder)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of that name in its log so far."""
        lines = map(json.loads, (self.folder / "log").read_text().splitlines())
        return [line for line in lines if line["event"] == name]

    def stop(self) -> int:
        """Stop it as ``systemctl stop`` does; its exit code. Blocks."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def clean_up(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager.at(tmp_path) as manager:
        yield manager


@pytest.fixture
def start(tmp_path: Path, manager: Manager) -> Iterator[Callable[..., Started]]:
    """Starts the agent with a configuration."""
    started = []

    def start(config: str, watchdog_s: float = 30.0) -> Started:
        started.append(Started(tmp_path, manager, config, watchdog_s))
        return started[-1]

    yield start
    for one in started:
        one.clean_up()


def yaml(relay: str, port: int, target: str, ca_file: object = None, more: str = "") -> str:
    """A configuration whose secret is a credential."""
    return f"""\
backends:
  - name: web
    hostnames: [{HOST}]
    nexusAddresses: ["{relay}"]
    attestation: {{hmacSecretFile: "${{CREDENTIALS_DIRECTORY}}/hmac-secret"}}
    tls: {{caFile: {json.dumps(str(ca_file)) if ca_file else "null"}}}
    portMappings: {{{port}: {{default: "{target}"}}}}
{more}"""


def yaml_for(relay: DevRelay, target: str, more: str = "") -> str:
    return yaml(relay.url, relay.public_ports[0], target, relay.ca_file, more)


OTHER = """\
  - name: other
    hostnames: [other.example.com]
    nexusAddresses: ["ws://127.0.0.1:1/connect"]
    attestation: {command: /bin/sh, args: ["-c", "env > environment; exit 1"]}
    portMappings: {443: {default: "127.0.0.1:9"}}
"""


def test_from_start_to_stop(
    running: Running, manager: Manager, start: Callable[..., Started], tmp_path: Path
) -> None:
    """Ready, its sessions and streams, alive, stopping; a token command sees nothing of it."""
    relay, service = running.relay(), running.service(echo)
    agent = start(yaml_for(relay, service.target, OTHER))
    manager.wait_line("READY=1")
    status = manager.wait(lambda line: line.startswith("STATUS=1 of 2 sessions, 0 streams: "))
    assert "exit" in status, "why the other one is missing"
    assert running.talk(relay, b"hello") == b"hello"
    environment = (tmp_path / "environment").read_text()
    assert "CREDENTIALS_DIRECTORY=" in environment
    assert "NOTIFY_SOCKET" not in environment
    assert "WATCHDOG" not in environment
    assert agent.stop() == 0
    manager.wait_line("STOPPING=1")
    manager.wait_line("STATUS=done, or stopped as asked")
    assert list(manager.lines()).count("READY=1") == 1
    assert all("WATCHDOG=1" in message for message in manager.told)


def test_without_a_network_it_is_ready(manager: Manager, start: Callable[..., Started]) -> None:
    """systemd would kill who is not ready in time; the status says what is missing."""
    agent = start(yaml("ws://127.0.0.1:1/connect", 443, "127.0.0.1:9"))
    manager.wait_line("READY=1")
    status = manager.wait(lambda line: line.startswith("STATUS=0 of 1 sessions, 0 streams: "))
    assert "refused" in status
    assert agent.stop() == 0


APP = """\
def application(environ, start_response):
    open("hanging", "w").close()
    with open("fifo") as fifo:  # nothing else happens in this process until somebody writes
        fifo.read()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def test_a_loop_that_hangs_has_no_heartbeat(
    running: Running, manager: Manager, start: Callable[..., Started], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "blocking.py").write_text(APP)
    relay = running.relay()
    agent = start(yaml_for(relay, "wsgi:blocking"), watchdog_s=0.1)
    manager.wait(lambda line: line.startswith("STATUS=1 of 1 "))
    manager.wait_line("WATCHDOG=1")
    user = running.user(relay)
    with gevent.Timeout(PATIENCE_S):
        while not (tmp_path / "hanging").exists():
            gevent.sleep(5 * MS)
    manager.take()  # what was said before
    assert manager.quiet(200 * MS)
    (tmp_path / "fifo").write_text("go on")
    assert user.recv(12) == b"HTTP/1.1 200"
    manager.wait_line("WATCHDOG=1")
    user.close()
    assert agent.stop() == 0


def test_several_workers(running: Running, manager: Manager, start: Callable[..., Started]) -> None:
    """The master speaks for them, and replaces one that hangs before systemd ends all."""
    relay, service = running.relay(), running.service(echo)
    agent = start(yaml_for(relay, service.target, "workers: 2\n"), watchdog_s=1.0)
    manager.wait_line("STATUS=2 of 2 sessions, 0 streams, 2 of 2 workers")
    assert list(manager.lines()).count("READY=1") == 1
    hanging = agent.events("worker.started")[1]["pid"]
    os.kill(hanging, signal.SIGSTOP)
    manager.wait_line("STATUS=1 of 1 sessions, 0 streams, 1 of 2 workers")
    assert hanging in [line["pid"] for line in agent.events("worker.silent")]
    manager.wait_line("STATUS=2 of 2 sessions, 0 streams, 2 of 2 workers")
    assert agent.stop() == 0
    manager.wait_line("STATUS=done, or stopped as asked")
    assert "WATCHDOG=1" in manager.told[-1]
