"""The stop, asserted from both sides: not later than the grace, not so fast that work is cut.

PROTOCOL.md section 15, and case 45 of section 17.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, socket
from gevent.event import Event

from nexusg.config.model import Shutdown
from nexusg.relay.settings import Habits
from tests.conftest import MS
from tests.e2e.test_traffic import noise
from tests.support.relayed import AMPLE_S, read_to_end
from tests.support.running import HEAD, Running, read_exactly
from tests.support.services import Sink, echo, hold


if TYPE_CHECKING:
    import pytest

    from tests.support.running import WatchedAgent


KIB = 1024


def stopping(agent: WatchedAgent, grace_s: float | None = None) -> Any:
    """Stop it in a greenlet, which is returned once that has begun. Blocks."""
    greenlet = Greenlet.spawn(agent.stop, grace_s)
    agent.wait("agent.stopping", len(agent.named("agent.stopping")) + 1)
    return greenlet


def test_an_upload_and_a_download_finish(running: Running) -> None:
    """Both are slow, both are whole, and new users are refused meanwhile."""
    data, gate, sink = noise(700 * KIB), Event(), Sink(open_=False)

    def download(sock: Any) -> None:
        read_exactly(sock, len(HEAD))
        sock.sendall(data[: 300 * KIB])
        gate.wait()
        sock.sendall(data[300 * KIB :])

    services = iter([running.service(sink), running.service(download)])

    def handler(_: object) -> Any:
        host, port = next(services).target.split(":")
        return socket.create_connection((host, int(port)))

    relay = running.relay()
    agent = running.connected(relay, connect_handler=handler)
    uploading = running.user(relay)
    agent.wait("stream.connected")
    downloading = running.user(relay)
    agent.wait("stream.connected", 2)
    uploading.sendall(data[: 300 * KIB])
    stop = stopping(agent)
    assert read_to_end(running.user(relay)) == b"", "new users are refused"
    uploading.sendall(data[300 * KIB :])
    uploading.shutdown(socket.SHUT_WR)
    gate.set()
    assert read_to_end(downloading) == data
    assert not stop.ready()
    sink.gate.set()
    stop.get(timeout=AMPLE_S)
    assert sink.digest == hashlib.sha256(HEAD + data).digest()
    assert agent.named("agent.stopped")[0].cut == 0
    assert agent.stats().streams_closed == {"normal": 2}


def test_the_close_frame_is_sent(running: Running) -> None:
    """Section 14: a relay that is not told sends users to a dead agent for a minute."""
    relay = running.relay()
    agent = running.connected(relay)
    session = relay.agents[0].session
    agent.stop()
    assert session.wire.close_received
    assert relay.agents == ()
    assert agent.named("session.closed")[0].duration_s >= 0


def test_not_later_than_the_grace(running: Running) -> None:
    relay = running.relay()
    settings = {"shutdown": Shutdown(idle_s=60)}
    agent = running.connected(relay, target=running.service(hold).target, settings=settings)
    user = running.user(relay)
    agent.wait("stream.connected")
    began = time.monotonic()
    agent.stop(50 * MS)
    took_s = time.monotonic() - began
    assert took_s >= 50 * MS
    assert took_s < 1
    assert read_to_end(user) == b""
    assert agent.named("agent.stopped")[0].cut == 1


def test_idle_users_do_not_hold_it_up(running: Running) -> None:
    """An idle keep-alive connection kept the reference for 22 s; who is busy is waited for."""
    relay = running.relay()
    settings = {"shutdown": Shutdown(idle_s=30 * MS)}
    agent = running.connected(relay, target=running.service(echo).target, settings=settings)
    idle, busy = running.user(relay), running.user(relay)
    for user in (idle, busy):
        read_exactly(user, len(HEAD))
    stop = stopping(agent)
    ended = Greenlet.spawn(read_to_end, idle)
    while not ended.ready():
        busy.sendall(b"x")
        assert busy.recv(1) == b"x"
        gevent.sleep(5 * MS)
    assert not stop.ready()
    busy.close()
    stop.get(timeout=AMPLE_S)
    assert agent.named("agent.stopped")[0].cut == 0


def test_a_second_call_is_at_once(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, target=running.service(hold).target)
    running.user(relay)
    agent.wait("stream.connected")
    stop = stopping(agent)
    agent.stop()
    stop.get(timeout=AMPLE_S)
    assert agent.named("agent.stopped")[0].cut == 1


def test_a_relay_that_does_not_answer(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for, beyond a moment."""
    monkeypatch.setattr("nexusg.agent.session.GOODBYE_S", 20 * MS)
    relay = running.relay()
    agent = running.connected(relay)
    relay.habits = Habits(silent=True)
    agent.stop()
    assert agent.outcome == "stopped"


def test_a_relay_that_is_gone(running: Running) -> None:
    """There is nobody to say goodbye to: no session, and none is begun."""
    relay = running.relay()
    agent = running.connected(relay)
    relay.stop()
    agent.wait("session.lost")
    agent.stop()
    assert agent.outcome == "stopped"
    assert not agent.named("session.closed")


def test_a_session_lost_during_the_stop_is_the_last(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, target=running.service(hold).target)
    running.user(relay)
    agent.wait("stream.connected")
    stop = stopping(agent)
    relay.drop_agents()
    stop.get(timeout=AMPLE_S)
    assert len(agent.named("session.connecting")) == 1
    assert agent.named("session.lost")[0].streams == 1
    assert agent.named("agent.stopped")[0].cut == 0


def test_a_slow_service_gets_the_rest_within_the_grace(running: Running) -> None:
    """Section 15: the reference throws away what a draining stream is sent."""
    data, sink = noise(6 * KIB * KIB), Sink(open_=False)
    relay = running.relay()
    service = running.service(sink, buffer_bytes=16_384)
    agent = running.connected(relay, target=service.target)
    user = running.user(relay)
    user.sendall(data)
    user.close()
    agent.wait_until(lambda: agent.stats().buffered_bytes > KIB * KIB)
    stop = stopping(agent)
    gevent.sleep(10 * MS)
    assert not stop.ready()
    sink.gate.set()
    stop.get(timeout=AMPLE_S)
    assert sink.digest == hashlib.sha256(HEAD + data).digest()
    assert agent.named("agent.stopped")[0].cut == 0
