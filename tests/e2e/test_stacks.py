"""Agents with applications in a process of somebody else's, patched or not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, socket

from tests.support.relayed import AMPLE_S, SECRET, http_get, read_to_end
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.running import Running

HOSTS = ("one.example.com", "two.example.com")


@pytest.fixture(params=["patched", "unpatched"])
def program(request: pytest.FixtureRequest, running: Running) -> Iterator[Any]:
    """The process, and the relay that it is connected to."""
    relay = running.relay()
    settings = {
        "url": relay.url,
        "ca_file": str(relay.ca_file),
        "secret": SECRET,
        "hosts": HOSTS,
    }
    command = [sys.executable, "-m", "tests.e2e.stacks", request.param, json.dumps(settings)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    try:
        yield process, relay, request.param
    finally:
        process.kill()
        process.communicate()


def ask(port: int, host: str, path: str = "/") -> str:
    """The body of an answer. Blocks."""
    with socket.create_connection(("127.0.0.1", port), AMPLE_S) as user:
        user.sendall(http_get(host).replace(b" / ", f" {path} ".encode()))
        return read_to_end(user).decode().rpartition("\r\n\r\n")[2]


def test_it_is_a_good_neighbour(program: Any) -> None:
    """Beside a server and another agent on the same hub, it serves, and leaves nothing behind."""
    process, relay, kind = program
    started = json.loads(process.stdout.readline())
    assert (started["patched"], started["same"]) == (kind == "patched", True)
    port = relay.public_ports[0]
    asked = [
        *[(port, host, path) for host in HOSTS for path in ("/", "/slow")],
        *[(started["port"], "server", path) for path in ("/", "/slow")],
    ]
    answers = [Greenlet.spawn(ask, *one) for one in asked]
    assert [answer.get() for answer in answers] == [host for _, host, _ in asked]
    hanging = Greenlet.spawn(ask, port, HOSTS[0], "/hang")
    assert json.loads(process.stdout.readline()) == {"hangs": HOSTS[0]}
    process.stdin.write("\n")
    process.stdin.flush()
    ended = json.loads(process.stdout.readline())
    assert ended == {"left": [], "same": True, "outcomes": ["stopped", "stopped"]}
    assert hanging.get() == ""
    assert process.wait(AMPLE_S) == 0
    assert process.stderr.read() == ""
