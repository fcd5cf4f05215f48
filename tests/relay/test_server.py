from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, socket

from nexusg.errors import ConfigError
from nexusg.protocol.stream import Cause
from nexusg.relay import certs
from nexusg.relay.hub import server_context
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import Ending, Habits, RelayConfig
from tests.conftest import MS
from tests.support.relayed import (
    AMPLE_S,
    SECRET,
    RawAgent,
    http_get,
    read_to_end,
    upgraded,
    user,
)
from tests.support.source import ROOT


if TYPE_CHECKING:
    from pathlib import Path

    from tests.relay.conftest import StartRelay


def test_a_round_trip(start_relay: StartRelay) -> None:
    relay = start_relay(tls=True, public_ports=(0, 0))
    assert relay.url == f"wss://127.0.0.1:{relay.hub_port}/connect"
    assert len(set(relay.public_ports)) == 2
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        with user(relay, http_get()) as sock:
            local = agent.wait_local()
            agent.wait(lambda: local.data)
            local.stream.send(memoryview(b"HTTP/1.1 204 No Content\r\n\r\n"))
            agent.flush()
            assert sock.recv(100).startswith(b"HTTP/1.1 204")


def test_it_says_what_it_is_for(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    [(event, fields)] = relay.config.on_log.entries
    assert event == "relay.started"
    assert "for development and tests only" in fields["notice"]
    assert fields["url"] == relay.url == f"ws://127.0.0.1:{relay.hub_port}/connect"


def test_the_public_ports_may_be_claimed_unless_others_are_named(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with RawAgent(relay, hostnames=None, tcp_ports=[relay.public_ports[0]]) as agent:
        agent.wait_accepted()
    relay = start_relay(allowed_tcp_ports=(1234,))
    with RawAgent(relay, hostnames=None, tcp_ports=[relay.public_ports[0]]) as agent:
        closed = agent.wait_end()
        assert closed is not None
        assert "is not allowed" in closed.reason


def test_wait_agents(start_relay: StartRelay) -> None:
    relay = start_relay()
    assert relay.wait_agents(0, 0)
    assert not relay.wait_agents(1, 1 * MS)
    waiting = Greenlet.spawn(relay.wait_agents, 2)
    with RawAgent(relay), RawAgent(relay):
        assert waiting.get(timeout=AMPLE_S)
        assert len(relay.agents) == 2


def test_habits_can_be_exchanged(start_relay: StartRelay) -> None:
    relay = start_relay()
    assert relay.habits == Habits()
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        relay.habits = Habits(ignore_pings=True)
        assert not relay.agents[0].session.answers_pings
    assert relay.habits.ignore_pings


@pytest.mark.parametrize("ending", list(Ending))
def test_stop_ends_everything(start_relay: StartRelay, ending: Ending) -> None:
    relay = start_relay(habits=Habits(ending=ending))
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        with user(relay, http_get()) as sock, upgraded(relay) as early, user(relay) as quiet:
            local = agent.wait_local()
            assert relay.stop()
            assert read_to_end(sock) == b""
            assert read_to_end(early) == b""
            assert read_to_end(quiet) == b""
            closed = agent.wait_end()
            assert (closed is not None) is (ending is Ending.CLOSE_FRAME)
            agent.session.lost()
            assert local.cause in (Cause.SESSION, Cause.USER)
    for port in (relay.hub_port, *relay.public_ports):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), AMPLE_S)


def test_stop_does_not_wait_for_ever(start_relay: StartRelay) -> None:
    relay = start_relay(habits=Habits(ending=Ending.CLOSE_FRAME))
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        relay.agents[0].flush = lambda: None  # type: ignore[method-assign]
        relay.agents[0]._finish = lambda: None  # type: ignore[method-assign]
        begin = time.monotonic()
        assert not relay.stop(0.01) or not relay.agents
        assert time.monotonic() - begin < 1.0
        assert relay.stop()


def test_a_port_in_use(start_relay: StartRelay) -> None:
    taken = start_relay().public_ports[0]
    relay = DevRelay(RelayConfig(secret=SECRET, tls=False, public_ports=(0, taken)))
    with pytest.raises(ConfigError, match="Address already in use"):
        relay.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", relay.hub_port), AMPLE_S)


def test_a_relay_starts_again_on_its_port(start_relay: StartRelay) -> None:
    first = start_relay()
    with RawAgent(first) as agent:
        agent.wait_accepted()
        first.stop()
        second = start_relay(hub=("127.0.0.1", first.hub_port))
        with RawAgent(second) as again:
            again.wait_accepted()
        assert second.hub_port == first.hub_port


def test_a_context_of_ones_own(start_relay: StartRelay, tmp_path: Path) -> None:
    ca_file, certificate_file = certs.ensure(tmp_path)
    relay = start_relay(tls=True, context=server_context(certificate_file), certificates=ROOT)
    assert relay.ca_file is None
    relay.ca_file = ca_file
    with RawAgent(relay) as agent:
        agent.wait_accepted()


def test_without_the_package_cryptography(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "nexusg.relay.certs")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delattr("nexusg.relay.certs")
    with pytest.raises(ConfigError, match=r"pip install 'nexusg\[relay\]'"):
        DevRelay(RelayConfig(secret=SECRET, certificates=tmp_path)).start()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write development certificates to"):
        DevRelay(RelayConfig(secret=SECRET, certificates=tmp_path / "file")).start()


UNPATCHED = """
import socket, sys, threading
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
import gevent

def client(port):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        print(sock.recv(100).split(b"\\r\\n")[0].decode())

with DevRelay(RelayConfig(secret="x", tls=False)) as relay:
    thread = threading.Thread(target=client, args=[relay.hub_port])
    thread.start()
    while thread.is_alive():
        gevent.sleep(0.001)
"""


def test_it_works_in_a_process_that_is_not_patched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPATCHED], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.stdout == "HTTP/1.1 404 Not Found\n"
    assert "relay.started" in done.stderr, "said even where no logging is configured"
    assert "for development and tests only" in done.stderr
