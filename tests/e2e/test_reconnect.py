"""Sessions that end, and what comes after them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, joinall

from nexusg.config.model import HealthChecks
from nexusg.protocol.session import SETTLE_S
from nexusg.relay.settings import Ending, Habits
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, make_token, read_to_end
from tests.support.running import HEAD, Running, read_exactly
from tests.support.services import Service, Sink, Source, echo, hold
from tests.transport.conftest import open_sockets


if TYPE_CHECKING:
    from nexusg.attest.base import TokenRequest
    from nexusg.relay.server import DevRelay


KIB = 1024


def restarted(running: Running, relay: DevRelay, **settings: Any) -> DevRelay:
    """The same relay, after a restart. Blocks."""
    hub, ports = ("127.0.0.1", relay.hub_port), relay.public_ports
    relay.stop()
    return running.relay(hub=hub, public_ports=ports, **settings)


# The relay ends it -----------------------------------------------------------------------------


def test_a_restart_with_a_hundred_streams(running: Running) -> None:
    """Section 17, case 46: all local connections are closed, and nothing is left of them."""
    relay = running.relay()
    service = running.service(echo)
    agent = running.connected(relay, target=service.target)
    users = [running.user(relay) for _ in range(100)]
    for user in users:
        read_exactly(user, len(HEAD))
    assert len(service.open) == 100
    relay = restarted(running, relay)
    agent.wait("session.connected", 2)
    service.wait_open(0)
    lost = agent.named("session.lost")[0]
    assert (lost.code, lost.streams) == ("eof", 100)
    assert agent.stats().streams_closed == {"session_ended": 100}
    assert len(agent._context.tasks) == 0, "no greenlet is left"
    gc.collect()
    sessions = [relay.agents[0].peer]
    assert len(sessions) == 1
    assert running.talk(relay, b"a new life") == b"a new life"
    ignored = [event for event, _ in relay.logged if "ignored" in event]  # type: ignore[attr-defined]
    assert not ignored, "nothing of the old session appears on the new one"


def test_restarts_leave_no_sockets(running: Running) -> None:
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    running.talk(relay)
    agent.wait("stream.closed")
    gc.collect()
    before = len(open_sockets())
    for number in range(2, 5):
        relay.drop_agents()
        agent.wait("session.connected", number)
        assert running.talk(relay, b"x") == b"x"
        agent.wait("stream.closed", number)
    assert len(open_sockets()) == before


@pytest.mark.parametrize(
    ("ending", "codes"),
    [
        (Ending.EOF, {"eof"}),
        (Ending.CLOSE_FRAME, {"closed"}),
        (Ending.RESET, {"reset", "eof"}),  # under TLS, gevent takes the one for the other
    ],
)
def test_however_the_relay_ends_it(running: Running, ending: Ending, codes: set[str]) -> None:
    """Section 1.4: each is an ordinary loss, and is noticed at once."""
    relay = running.relay(habits=Habits(ending=ending))
    agent = running.connected(relay, target=running.service(echo).target)
    relay.drop_agents()
    agent.wait("session.connected", 2)
    assert agent.named("session.lost")[0].code in codes
    assert running.talk(relay, b"hello") == b"hello"


def test_a_relay_that_falls_silent(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 17, case 9: nothing is heard any more, and yet the connection stands."""
    for name in ("PING_AFTER_S", "SILENCE_S", "PROBE_S"):
        monkeypatch.setattr(f"nexusg.protocol.liveness.{name}", 20 * MS)
    relay = running.relay()
    agent = running.connected(relay)
    relay.habits = Habits(silent=True)
    lost = agent.wait("session.lost")
    assert lost.code == "silent"
    relay.habits = Habits()
    agent.wait("session.connected", 2)


def talk(link: Any) -> None:
    """Signs of life."""
    while True:
        link.session.wire.send_ping()
        link.flush()
        gevent.sleep(5 * MS)


def test_a_relay_that_stops_reading(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download fills every buffer on the way; the session is given up, not the agent.

    The relay goes on talking, or silence would be the reason.
    """
    monkeypatch.setattr("nexusg.protocol.liveness.PING_AFTER_S", 20 * MS)
    monkeypatch.setattr("nexusg.agent.session.WRITE_TIMEOUT_S", 20 * MS)
    monkeypatch.setattr("nexusg.agent.session.GOODBYE_S", 10 * MS)
    relay = running.relay()
    service = running.service(Source(bytes(40 * 1024 * KIB)))
    agent = running.connected(relay, target=service.target)
    link = relay.agents[0]
    users = [running.user(relay) for _ in range(6)]
    agent.wait("stream.connected", 6)
    link._tasks[0].kill()
    talking = Greenlet.spawn(talk, link)
    readers = [Greenlet.spawn(read_to_end, user) for user in users]
    lost = agent.wait("session.lost")
    assert lost.code == "stalled"
    assert agent.stats().stalled_links == 1
    service.wait_open(0)
    talking.kill()
    link.end()
    joinall(readers, timeout=AMPLE_S)
    agent.wait("session.connected", 2)


# Credentials -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["handshake", "attest"])
@pytest.mark.parametrize("silent", [False, True])
def test_rejected_until_the_provider_knows_better(
    running: Running, stage: str, silent: bool
) -> None:
    """Section 17, cases 4 and 5: never reported as connected, never in a hurry."""
    wrong = {"handshake": {"exp": 1}, "attest": {"session_nonce": "wrong"}}[stage]

    def provider(request: TokenRequest) -> str:
        nonce = {} if request.stage.value == "handshake" else {"session_nonce": request.nonce}
        bad = wrong if request.stage.value == stage and len(agent_events()) < 2 else {}
        return make_token(**{**nonce, **bad})

    def agent_events() -> list[Any]:
        return agent.named("session.rejected")

    relay = running.relay(habits=Habits(no_close_frame=silent))
    agent = running.agent(relay, token_provider=provider, start=False)
    agent.start()
    agent.wait("session.connected")
    rejections = agent_events()
    assert [event.stage for event in rejections] == [stage, stage]
    assert [event.attempts for event in rejections] == [1, 2]
    assert rejections[1].retry_in_s > rejections[0].retry_in_s
    assert all(bool(event.reason) is not silent for event in rejections)
    assert not agent.named("session.failed")


def test_a_provider_that_raises(running: Running) -> None:
    """Its words are not told: they may hold the token."""

    def provider(request: TokenRequest) -> str:
        if len(asked) < 2:
            asked.append(request)
            raise ValueError("eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0")
        nonce = request.nonce or None
        return make_token(session_nonce=nonce)

    asked: list[TokenRequest] = []
    agent = running.agent(running.relay(), token_provider=provider)
    agent.wait("session.connected")
    failures = agent.named("session.failed")
    assert [event.code for event in failures] == ["token", "token"]
    assert "ValueError at test_reconnect.py" in failures[0].error
    assert "eyJ" not in str(agent.events)
    assert agent.stats().token_failures == 2


def test_a_relay_that_never_challenges(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexusg.protocol.handshake.CHALLENGE_TIMEOUT_S", 20 * MS)
    relay = running.relay(habits=Habits(hang_before_challenge=True))
    agent = running.agent(relay)
    failed = agent.wait("session.failed")
    assert failed.code == "silent"
    assert "no challenge" in failed.error
    relay.habits = Habits()
    agent.wait("session.connected")


# What gets lost --------------------------------------------------------------------------------


def test_a_disconnect_that_gets_lost(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 17, case 38: health checks find the stream, and leave the others alone."""
    for name in ("PING_AFTER_S", "FLOOR_S"):
        monkeypatch.setattr(f"nexusg.protocol.liveness.{name}", 10 * MS)
    relay = running.relay()
    service = running.service(hold)
    checks = HealthChecks(inactivity_timeout_s=30 * MS, pong_timeout_s=30 * MS)
    agent = running.connected(relay, target=service.target, backend={"health_checks": checks})
    forgotten, kept = running.user(relay), running.user(relay)
    agent.wait("stream.connected", 2)
    relay.habits = Habits(lose_disconnects=True)
    forgotten.close()
    closed = agent.wait("stream.closed")
    assert (closed.reason, closed.ended_by) == ("timeout", "agent")
    service.wait_open(1)
    assert agent.stats().streams_active == 1
    kept.close()


def test_a_first_grant_that_gets_lost(running: Running) -> None:
    """Section 17, case 23: the stream reaches its full window all the same."""
    relay = running.relay(habits=Habits(lose_first_grant=True))
    sink = Sink()
    service = running.service(sink)
    agent = running.connected(relay, target=service.target)
    user = running.user(relay, bytes(4 * 1024 * KIB))
    agent.wait_until(lambda: sink.bytes == len(HEAD) + 4 * 1024 * KIB)
    (flow,) = relay.agents[0].session.streams.values()
    assert flow.window.capacity == 64
    assert flow.window.available > 40
    user.close()


def test_three_hundred_refused_dials_are_all_told(running: Running) -> None:
    """Section 17, case 18, and 5.4: the relay records a stream late, and knows no one before."""
    relay = running.relay(habits=Habits(record_delay_s=SETTLE_S / 2), sniff_timeout_s=5 * MS)
    port = relay.public_ports[0]
    agent = running.connected(relay, backend={"hostnames": (), "tcp_ports": (port,)})
    users = [running.raw_user(relay) for _ in range(300)]
    readers = [Greenlet.spawn(read_to_end, user) for user in users]
    assert len(joinall(readers, timeout=AMPLE_S)) == 300
    assert [reader.value for reader in readers] == [b""] * 300
    assert agent.stats().streams_closed == {"dial_failed": 300}


def test_a_banner_is_not_lost(running: Running) -> None:
    """Section 5.4: what a service says first must not come before the stream is recorded."""
    relay = running.relay(habits=Habits(record_delay_s=SETTLE_S / 2), sniff_timeout_s=5 * MS)

    def banner(sock: Any) -> None:
        sock.sendall(b"220 hello\r\n")

    port = relay.public_ports[0]
    running.connected(
        relay,
        target=running.service(banner).target,
        backend={"hostnames": (), "tcp_ports": (port,)},
    )
    users = [Greenlet.spawn(read_to_end, running.raw_user(relay)) for _ in range(20)]
    joinall(users, timeout=AMPLE_S)
    assert [user.value for user in users] == [b"220 hello\r\n"] * 20


def test_a_local_service_that_comes_back(running: Running) -> None:
    """Each stream is dialled anew."""
    relay = running.relay()
    with Service(echo) as service:
        target = service.target
        agent = running.connected(relay, target=target)
        assert running.talk(relay, b"one") == b"one"
    assert read_to_end(running.user(relay)) == b""
    closed = agent.wait("stream.closed", 2)
    assert closed.reason == "dial_failed"
    assert "refused" in closed.error.lower()


def test_the_session_outlives_a_storm_of_users(running: Running) -> None:
    """They come and go at once; afterwards nothing is left of them."""
    relay = running.relay()
    service = running.service(echo)
    agent = running.connected(relay, target=service.target)
    for _ in range(3):
        users = [running.user(relay) for _ in range(40)]
        gevent.sleep(0)
        for user in users:
            user.close()
    agent.wait_until(lambda: relay.agents and not agent.stats().streams_active)
    service.wait_open(0)
    assert running.talk(relay, b"calm") == b"calm"
    agent.wait_until(lambda: len(agent._context.tasks) == 0)
    assert not agent.named("session.lost")
