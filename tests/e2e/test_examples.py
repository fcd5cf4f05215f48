"""Every program in examples/ does what it says, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket, ssl

from nexusg.relay import certs
from tests.support.relayed import AMPLE_S, HOST, SECRET, http_get, read_to_end
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running

EXAMPLES = ROOT / "examples"

#: Those that are run here. What is for other programs to load is tested with these.
TESTED = {"in_memory.py", "router.py", "flask_app.py"}

CLOSE = b"Connection: close\r\n\r\n"


@pytest.fixture
def relay(running: Running) -> DevRelay:
    return running.relay()


@pytest.fixture
def config(relay: DevRelay, tmp_path: Path) -> Path:
    """A configuration for HOST and all below example.com, which leads nowhere by itself."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"backends:\n"
        f"  - name: web\n"
        f"    hostnames: [{HOST}, '*.example.com']\n"
        f"    nexusAddresses: ['{relay.url}']\n"
        f"    attestation: {{hmacSecret: '{SECRET}'}}\n"
        f"    tls: {{caFile: '{relay.ca_file}'}}\n"
        f"    portMappings: {{{relay.public_ports[0]}: {{default: '127.0.0.1:9'}}}}\n"
    )
    path.chmod(0o600)
    return path


@contextmanager
def example(name: str, relay: DevRelay, *arguments: object) -> Iterator[None]:
    """Run an example until it is connected, and end it."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environ, text=True, **pipes)
    try:
        assert relay.wait_agents(1, AMPLE_S), process.communicate(timeout=AMPLE_S)
        yield
    finally:
        process.terminate()
        out, err = process.communicate(timeout=AMPLE_S)
    assert err == ""
    assert "SessionConnected" in out
    assert "TaskFailed" not in out


def ask(relay: DevRelay, request: bytes, ca_file: Path | None = None) -> str:
    """The answer to a request. Blocks."""
    user: Any = socket.create_connection(("127.0.0.1", relay.public_ports[0]), AMPLE_S)
    if ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca_file)
        user = context.wrap_socket(user, server_hostname=HOST)
    with user:
        user.sendall(request)
        return read_to_end(user).decode()


def get(host: str = HOST) -> bytes:
    return http_get(host)[:-2] + CLOSE


def test_every_example_is_tested() -> None:
    """Somewhere: by its name in a test."""
    tests = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("e2e", "integrations", "conf")
        for path in (ROOT / "tests" / folder).rglob("*.py")
    )
    found = sorted(path.name for path in EXAMPLES.rglob("*.py"))
    assert len(found) >= len(TESTED)
    assert [name for name in found if name not in tests] == []


def test_in_memory(relay: DevRelay, config: Path) -> None:
    with example("in_memory.py", relay, config):
        assert f"Hello 127.0.0.1, this is {HOST}." in ask(relay, get())


def test_router(running: Running, relay: DevRelay, config: Path, tmp_path: Path) -> None:
    def serve(name: str) -> str:
        text = f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode()

        def answer(sock: Any) -> None:
            sock.recv(65536)
            sock.sendall(text)

        return running.service(answer).target

    table = {"acme.example.com": serve("acme"), "zeta.example.com": serve("zeta")}
    tenants = tmp_path / "tenants.json"
    tenants.write_text(json.dumps(table))
    with example("router.py", relay, config, tenants):
        for name in ("acme", "zeta"):
            assert ask(relay, get(f"{name}.example.com")).endswith(name)
        assert ask(relay, get("later.example.com")) == "", "the mappings lead nowhere"
        tenants.write_text(json.dumps({**table, "later.example.com": table["acme.example.com"]}))
        assert ask(relay, get("later.example.com")).endswith("acme")


def test_flask(relay: DevRelay, config: Path, tmp_path: Path) -> None:
    ca_file, pem = certs.ensure(tmp_path / "certs", [HOST])
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "portMappings" not in line))
    with example("flask_app.py", relay, config, pem):
        assert f"Hello 127.0.0.1, this is http://{HOST}/" in ask(relay, get())
        assert f"Hello 127.0.0.1, this is https://{HOST}/" in ask(relay, get(), ca_file)
        body = bytes(300_000)
        head = f"POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n".encode()
        assert '{"bytes":300000}' in ask(relay, head + CLOSE + body, ca_file)
