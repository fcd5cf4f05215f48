"""Local programs that connect out through the relay, by SOCKS5 (PROTOCOL.md section 11).

Application, agent, relay and the far service, all on real sockets.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.agent import outbound
from nexusg.config.model import Shutdown, Socks5Auth
from nexusg.config.secret import Secret
from nexusg.relay import outbound as dialling
from nexusg.relay.settings import Ending, Habits
from nexusg.transport.connect import connect_tcp
from tests.conftest import MS
from tests.support.running import read_exactly
from tests.support.services import Sink, Source, echo, hold


if TYPE_CHECKING:
    from pathlib import Path

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running, WatchedAgent

AMPLE_S = 5.0
SUCCEEDED, FAILURE, NOT_ALLOWED, REFUSED, TIMED_OUT = 0, 1, 2, 5, 6
MIB = 1024 * 1024


def outbound_relay(running: Running, **settings: Any) -> DevRelay:
    return running.relay(allow_outbound=True, **settings)


def start(running: Running, *relays: DevRelay, connected: int = 1, **backend: Any) -> WatchedAgent:
    """An agent that listens for programs, and has some sessions."""
    usual: dict[str, Any] = {"socks5_listen_addr": "127.0.0.1:0"}
    agent = running.agent(
        *relays,
        attestation={"outbound_allowed": True},
        backend={**usual, **backend},
        settings={"shutdown": Shutdown(grace_s=2.0, idle_s=20 * MS)},
    )
    agent.wait_until(lambda: len(agent.named("session.connected")) >= connected)
    agent.wait("socks.listening")
    return agent


class Program:
    """A local program that speaks SOCKS5."""

    def __init__(self, agent: WatchedAgent) -> None:
        address = agent.wait("socks.listening").address
        if address.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(AMPLE_S)
            self.sock.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)), AMPLE_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def request(self, target: str, *, early: bytes = b"", login: bytes = b"") -> None:
        """Greet and ask, all at once."""
        host, _, port = target.rpartition(":")
        name = host.encode()
        method = b"\x02" if login else b"\x00"
        self.sock.sendall(
            b"\x05\x01" + method + login + b"\x05\x01\x00\x03" + bytes([len(name)]) + name
            + struct.pack(">H", int(port)) + early
        )  # fmt: skip
        expected = b"\x05" + method + (b"\x01\x00" if login else b"")
        assert read_exactly(self.sock, len(expected)) == expected

    def reply(self) -> int:
        """The answer's code. Blocks."""
        reply = read_exactly(self.sock, 10)
        assert (len(reply), reply[0], reply[2:]) == (10, 5, b"\x00\x01" + bytes(6)), reply
        return reply[1]

    def connect(self, target: str, **options: Any) -> None:
        """Ask, and be connected. Blocks."""
        self.request(target, **options)
        assert self.reply() == SUCCEEDED

    def read_all(self) -> bytes:
        """To the end. Blocks."""
        data = bytearray()
        while piece := self.sock.recv(65536):
            data += piece
        return bytes(data)


# Success -----------------------------------------------------------------------------------------


def test_a_conversation(running: Running) -> None:
    far = running.service(echo)
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.connect(far.target, early=b"early ")
        program.sock.sendall(b"bird")
        assert read_exactly(program.sock, 10) == b"early bird"
        (stream,) = agent.stats(streams=True).streams
        assert (stream.is_outbound, stream.target, stream.state) == (True, far.target, "open")
    connected = agent.wait("outbound.connected")
    assert connected.target == far.target
    closed = agent.wait("stream.closed")
    assert (closed.stream, closed.ended_by, closed.reason) == (connected.stream, "user", "normal")
    far.wait_open(0)


def test_a_name_is_looked_up_by_the_relay(running: Running, monkeypatch: Any) -> None:
    far = running.service(echo)
    real = connect_tcp
    asked = []

    def connect(host: str, port: int, timeout_s: float) -> Any:
        asked.append(host)
        return real("127.0.0.1", port, timeout_s)

    monkeypatch.setattr(dialling, "connect_tcp", connect)
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.connect("Only.The.Relay.knows:" + far.target.rpartition(":")[2], early=b"x")
        assert read_exactly(program.sock, 1) == b"x"
    assert asked == ["Only.The.Relay.knows"]


def test_8_mib_up(running: Running) -> None:
    sink = Sink()
    far = running.service(sink)
    agent = start(running, outbound_relay(running))
    data = bytes(range(256)) * (8 * MIB // 256)
    with Program(agent) as program:
        program.connect(far.target)
        program.sock.sendall(data)
    assert sink.ended.wait(AMPLE_S)
    assert sink.digest == hashlib.sha256(data).digest()


def test_8_mib_down(running: Running) -> None:
    data = bytes(range(256)) * (8 * MIB // 256)
    far = running.service(Source(data))
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.connect(far.target, early=b"?")
        assert hashlib.sha256(program.read_all()).digest() == hashlib.sha256(data).digest()
    assert agent.wait("stream.closed").ended_by == "target"


def test_both_ways_at_once_on_several_connections(running: Running) -> None:
    far = running.service(echo)
    agent = start(running, outbound_relay(running))
    data = bytes(range(256)) * (MIB // 256)

    def converse() -> bool:
        with Program(agent) as program:
            program.connect(far.target)
            sending = Greenlet.spawn(program.sock.sendall, data)
            received = read_exactly(program.sock, len(data))
            sending.get()
            return received == data

    tasks = [Greenlet.spawn(converse) for _ in range(4)]
    assert [task.get(timeout=AMPLE_S) for task in tasks] == [True] * 4


# Which relay -------------------------------------------------------------------------------------


def test_one_of_two_relays_is_down(running: Running) -> None:
    """Case 47: it never was up."""
    far = running.service(echo)
    down, up = outbound_relay(running), outbound_relay(running)
    down.stop()
    agent = start(running, down, up)
    for _ in range(3):
        with Program(agent) as program:
            program.connect(far.target, early=b"x")
            assert read_exactly(program.sock, 1) == b"x"


def test_one_of_two_relays_goes_down(running: Running) -> None:
    far = running.service(echo)
    relays = [outbound_relay(running), outbound_relay(running)]
    agent = start(running, *relays, connected=2)
    with Program(agent) as program:
        program.connect(far.target)
        used = next(r for r in relays if r.url == agent.wait("outbound.connected").relay)
        used.stop()
        assert program.read_all() == b""
    agent.wait("session.lost")
    with Program(agent) as program:
        program.connect(far.target, early=b"x")
        assert read_exactly(program.sock, 1) == b"x"


def test_no_relay_at_all(running: Running) -> None:
    down = outbound_relay(running)
    down.stop()
    agent = start(running, down, connected=0)
    with Program(agent) as program:
        program.request("example.test:80")
        assert program.reply() == FAILURE
        assert program.read_all() == b""
    assert agent.wait("outbound.refused").error == "there is no session with a relay"


# Refusals ----------------------------------------------------------------------------------------


def test_nobody_listens_there(running: Running) -> None:
    far = running.service(hold)
    far.stop()
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.request(far.target)
        assert program.reply() == REFUSED
        assert program.read_all() == b""
    event = agent.wait("outbound.refused")
    assert (event.target, event.error) == (far.target, "the relay refused: dial failed")
    assert agent.stats().outbound_refused == 1


def test_a_port_that_is_not_allowed(running: Running) -> None:
    agent = start(running, outbound_relay(running, allowed_outbound_ports=(443,)))
    with Program(agent) as program:
        program.request("example.test:25")
        assert program.reply() == NOT_ALLOWED


def test_the_limit(running: Running) -> None:
    far = running.service(echo)
    agent = start(running, outbound_relay(running, max_outbound=1))
    with Program(agent) as first, Program(agent) as second:
        first.connect(far.target)
        second.request(far.target)
        assert second.reply() == FAILURE
    assert "limit" in agent.wait("outbound.refused").error


# Giving up ---------------------------------------------------------------------------------------


class SlowDial:
    """The relay's dialling, held back until the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = Event()
        self.begun = Event()
        self._real = connect_tcp
        monkeypatch.setattr(dialling, "connect_tcp", self._dial)

    def _dial(self, *what: Any) -> Any:
        self.begun.set()
        self.gate.wait()
        return self._real(*what)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowDial:
    return SlowDial(monkeypatch)


def test_a_success_that_comes_too_late(
    running: Running, slow: SlowDial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 40: what the relay has connected is not left behind."""
    monkeypatch.setattr(outbound, "RESULT_TIMEOUT_S", 20 * MS)
    far = running.service(hold)
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.request(far.target)
        assert program.reply() == TIMED_OUT
        assert program.read_all() == b""
    slow.gate.set()
    agent.wait_until(lambda: far.accepted == 1)
    far.wait_open(0)


def test_a_program_that_leaves_while_it_waits(running: Running, slow: SlowDial) -> None:
    far = running.service(hold)
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.request(far.target)
        slow.begun.wait()
    slow.gate.set()
    agent.wait_until(lambda: far.accepted == 1)
    far.wait_open(0)


@pytest.mark.parametrize("ending", [Ending.EOF, Ending.RESET, Ending.CLOSE_FRAME])
def test_the_session_ends(running: Running, slow: SlowDial, ending: Ending) -> None:
    """Pending requests fail, and established connections end with the session."""
    far = running.service(echo)
    relay = outbound_relay(running, habits=Habits(ending=ending))
    agent = start(running, relay)
    with Program(agent) as established, Program(agent) as pending:
        slow.gate.set()
        established.connect(far.target)
        slow.gate.clear()
        slow.begun.clear()
        pending.request(far.target)
        slow.begun.wait()
        relay.drop_agents()
        assert established.read_all() == b""
        assert pending.reply() == FAILURE
        assert pending.read_all() == b""
    slow.gate.set()


# The listener ------------------------------------------------------------------------------------


def test_a_password(running: Running) -> None:
    far = running.service(echo)
    auth = Socks5Auth("me", Secret("hunter2"))
    agent = start(running, outbound_relay(running), socks5_auth=auth)
    with Program(agent) as program:
        program.connect(far.target, login=b"\x01\x02me\x07hunter2", early=b"x")
        assert read_exactly(program.sock, 1) == b"x"
    with Program(agent) as program:
        program.sock.sendall(b"\x05\x01\x02\x01\x02me\x07hunter3")
        assert program.read_all() == b"\x05\x02\x01\x01"
    assert "hunter" not in repr(agent.events)


def test_a_unix_socket(running: Running, tmp_path: Path) -> None:
    far = running.service(echo)
    path = tmp_path / "socks"
    agent = start(running, outbound_relay(running), socks5_listen_addr=f"unix:{path}")
    with Program(agent) as program:
        program.connect(far.target, early=b"x")
        assert read_exactly(program.sock, 1) == b"x"
    agent.stop()
    assert not path.exists()


# Stopping ----------------------------------------------------------------------------------------


def test_stop_lets_a_transfer_finish_and_takes_no_more(running: Running) -> None:
    far = running.service(echo)
    agent = start(running, outbound_relay(running))
    address = agent.wait("socks.listening").address
    with Program(agent) as program:
        program.connect(far.target)
        program.sock.sendall(b"one")
        assert read_exactly(program.sock, 3) == b"one"
        stopping = Greenlet.spawn(agent.stop)
        agent.wait("agent.stopping")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), AMPLE_S)
        program.sock.sendall(b"two")
        assert read_exactly(program.sock, 3) == b"two"
        assert program.read_all() == b""  # idle for long enough
        stopping.get(timeout=AMPLE_S)
    assert agent.wait("agent.stopped").cut == 0


def test_stop_answers_who_waits(running: Running, slow: SlowDial) -> None:
    agent = start(running, outbound_relay(running))
    with Program(agent) as program:
        program.request("127.0.0.1:9")
        slow.begun.wait()
        agent.stop(0)
        assert program.reply() == FAILURE
        assert program.read_all() == b""
    slow.gate.set()


def test_nothing_is_left_behind(running: Running) -> None:
    """Neither at the relay nor at the agent."""
    far = running.service(echo)
    relay = outbound_relay(running)
    agent = start(running, relay)
    for _ in range(10):
        with Program(agent) as program:
            program.connect(far.target, early=b"x")
            assert read_exactly(program.sock, 1) == b"x"
    far.wait_open(0)
    agent.wait("stream.closed", 10)
    stats = agent.stats(streams=True)
    assert (stats.streams, stats.streams_total, stats.buffered_bytes) == ((), 10, 0)
    assert not relay.agents[0].session.streams
