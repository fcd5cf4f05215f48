"""Configuration files and commands for the tests of the command line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nexusg.cli import app
from nexusg.relay import certs
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "a secret of more than 32 bytes, which nobody may see"

GOOD = f"""\
backends:
  - name: web
    hostnames: [app.example.com, "*.example.com"]
    tcpPorts: [22]
    udpRoutes: [{{port: 53}}]
    nexusAddresses: ["ws://127.0.0.1:1/connect?key=hidden"]
    attestation: {{hmacSecret: "{SECRET}"}}
    portMappings:
      443:
        default: "127.0.0.1:8080"
        hosts: {{app.example.com: "127.0.0.1:8081", "*.example.com": "unix:/run/web.sock"}}
      22: {{default: "127.0.0.1:22"}}
      53: {{hosts: {{"udp:53": "127.0.0.1:53"}}}}
  - name: spare
    hostnames: [spare.example.com]
    nexusAddresses: ["ws://127.0.0.1:1/connect"]
    attestation: {{command: /usr/bin/token}}
    portMappings:
      443: {{default: "127.0.0.1:9000"}}
shutdown: {{graceSeconds: 0}}
logging: {{format: json}}
"""


@pytest.fixture(autouse=True)
def freezes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whenever a command has told the collector that what is there will stay. It has not."""
    told: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: told.append("freeze"))
    return told


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)

    return write


@pytest.fixture
def good(write: Callable[[str], str]) -> str:
    """The path of a configuration without problems."""
    return write(GOOD)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The authority's certificate, and one of the development relay with its key."""
    return certs.ensure(tmp_path_factory.mktemp("certificates"))


class Done:
    """What a command has printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@pytest.fixture
def nexusg(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command in this process."""

    def run(*arguments: str) -> Done:
        try:
            code = app.main(arguments)
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        return Done(int(code), *capfd.readouterr())

    return run


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("SUPERVISOR_ENABLED", None)
    command = [sys.executable, "-m", "nexusg", *arguments]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environ, **options}
    return subprocess.Popen(command, **settings)  # type: ignore[call-overload,no-any-return]
