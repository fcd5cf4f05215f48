"""Links: one agent each, on real sockets."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket

from nexusg.protocol import relay_session
from nexusg.protocol.messages import Control, Event, encode_control
from nexusg.protocol.relay_session import RelaySession
from nexusg.protocol.session import AgentSession
from nexusg.protocol.wsframes import BINARY, PING, PONG, TEXT, FrameParser, encode_frame
from nexusg.relay import link
from nexusg.relay.settings import Ending, Habits
from tests.conftest import MS
from tests.support.relayed import (
    AMPLE_S,
    HOST,
    UPGRADE,
    RawAgent,
    dial,
    http_get,
    make_token,
    read_to_end,
    upgraded,
    user,
)


if TYPE_CHECKING:
    from nexusg.relay.server import DevRelay
    from tests.relay.conftest import StartRelay

KEY = b"\x01\x02\x03\x04"


class Peer:
    """An upgraded connection that says what a test wants."""

    def __init__(self, relay: DevRelay) -> None:
        self.sock = upgraded(relay)
        self._parser = FrameParser(masked=False)
        self._messages: list[tuple[int, bytes]] = []

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.sock.sendall(encode_frame(opcode, payload, KEY))

    def receive(self) -> tuple[int, bytes]:
        while not self._messages:
            data = self.sock.recv(65536)
            assert data, "the relay has closed"
            self._messages += [(op, bytes(payload)) for op, payload in self._parser.feed(data)]
        return self._messages.pop(0)

    def nonce(self) -> str:
        opcode, payload = self.receive()
        assert opcode == TEXT
        return json.loads(payload)["nonce"]

    def prove(self, **claims: Any) -> None:
        self.send(TEXT, make_token(**claims).encode())
        self.send(TEXT, make_token(session_nonce=self.nonce(), **claims).encode())
        self.send(PING, b"?")
        assert self.receive() == (PONG, b"?")


# Acceptance and rejection --------------------------------------------------------------------


def test_an_agent_is_registered_and_forgotten(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with RawAgent(relay, hostnames=["B.example.com", "*.c.example"], weight=3) as agent:
        agent.wait_accepted()
        [found] = relay.agents
        assert found.session.established
        assert found.claims.weight == 3
        fields = relay.config.on_log.entries[-1][1]
        assert fields["names"] == ["*.c.example", "b.example.com"]
        agent.session.close(1001)
        agent.flush()
        agent.wait_end()
    assert relay.wait_agents(0)
    assert relay.agents == ()
    assert relay.config.on_log.events[1:] == ["agent.registered", "agent.gone"]


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, "token has invalid claims: token is expired"),
        ({"secret": "wrong" * 8}, "token signature is invalid"),
        ({"hostnames": []}, "token is missing hostnames and port claims"),
    ],
)
def test_a_rejection_is_a_close_with_its_reason(
    start_relay: StartRelay, claims: dict[str, Any], reason: str
) -> None:
    relay: Any = start_relay(tls=True)
    with RawAgent(relay, **claims) as agent:
        closed = agent.wait_end()
        assert closed is not None
        assert (closed.code, closed.reason) == (1008, reason)
        assert not agent.session.accepted
    event, fields = relay.config.on_log.entries[-1]
    assert event == "agent.refused"
    assert fields["reason"] == reason


@pytest.mark.parametrize("claims", [{"weight": 1.5}, {"iss": None}, {"session_nonce": "n" * 43}])
def test_a_reason_too_long_for_a_close_frame(
    start_relay: StartRelay, claims: dict[str, Any]
) -> None:
    with RawAgent(start_relay(), **claims) as agent:
        assert agent.wait_end() is None


def test_a_first_token_that_does_not_come(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_session, "TOKEN_TIMEOUT_S", 0.005)
    with Peer(start_relay()) as peer:
        assert b"failed to read stage0 token: i/o timeout" in read_to_end(peer.sock)


def test_a_second_token_that_does_not_come(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer(start_relay()) as peer:
        monkeypatch.setattr(relay_session, "TOKEN_TIMEOUT_S", 0.005)
        peer.send(TEXT, make_token().encode())
        peer.nonce()
        with pytest.raises(ConnectionResetError):
            peer.sock.recv(100)


def test_a_protocol_error_is_answered_with_its_code(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.send(BINARY, b"no token")
        assert b"\x03\xf0expected text frame" in read_to_end(peer.sock)  # 1008
    assert relay.config.on_log.entries[-1][0] == "agent.protocol_error"
    with Peer(relay) as peer:
        peer.prove()
        peer.send(BINARY, b"\x01" + bytes(16 + 32768 + 1))
        assert read_to_end(peer.sock) == b"\x88\x02\x03\xf1"  # 1009, without a reason


def test_what_is_ignored_is_logged(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        peer.send(BINARY, b"\x07")
        peer.send(PING)
        peer.receive()
    event, fields = relay.config.on_log.entries[-1]
    assert (event, fields["what"]) == (
        "agent.ignored",
        "binary message of an unknown kind, or too short",
    )


def test_a_token_right_behind_the_request(start_relay: StartRelay) -> None:
    with dial(start_relay()) as sock:
        sock.sendall(UPGRADE + encode_frame(TEXT, make_token().encode(), KEY))
        data = b""
        while b"handshake_challenge" not in data:
            data += sock.recv(1000)


# Liveness ------------------------------------------------------------------------------------


def test_the_relay_pings(start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "PING_EVERY_S", 0.005)
    with Peer(start_relay()) as peer:
        peer.prove()
        assert peer.receive() == (PING, b"")


def test_a_silent_agent_is_cut(start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "READ_TIMEOUT_S", 0.01)
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        assert read_to_end(peer.sock) == b""
    assert relay.config.on_log.entries[-2][0] == "agent.silent"


def test_an_agent_that_reads_nothing_is_cut(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "WRITE_TIMEOUT_S", 0.01)
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        with user(relay, http_get()) as flood:
            sending = Greenlet.spawn(send_until_closed, flood)
            relay.config.on_log.wait("agent.gone")
            sending.join()


def send_until_closed(sock: Any) -> None:
    try:
        while True:
            sock.sendall(bytes(1024 * 1024))
    except OSError:
        pass


def test_a_reader_gives_others_a_turn(start_relay: StartRelay) -> None:
    relay = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        for _ in range(50):
            peer.send(BINARY, b"\x01" + bytes(16 + 32768))
        peer.send(PING, b"end")
        assert peer.receive() == (PONG, b"end")
        assert relay.agents[0].session.messages_in == 52


# Re-attestation ------------------------------------------------------------------------------


def reauth(**claims: Any) -> dict[str, Any]:
    return {"reauth_interval_seconds": 1, **claims}


def at_once(span_s: float) -> float:
    """A jitter that takes the whole second of the interval away."""
    assert span_s == 0.2
    return -1.0


def test_reauth_goes_on_until_a_token_asks_for_no_more(start_relay: StartRelay) -> None:
    relay: Any = start_relay(jitter=at_once)
    with RawAgent(relay, **reauth()) as agent:
        agent.wait(lambda: len(agent.events) >= 4)
        agent.reauth_claims = {}
        while relay.agents[0].claims.reauth_interval_s:
            gevent.sleep(0)
        assert relay.agents[0].session.established
    assert relay.config.on_log.events.count("agent.renewed") >= 3


@pytest.mark.parametrize("claims", [{"session_nonce": "bad"}, {"hostnames": ["other.example"]}])
def test_a_failed_reauth_ends_the_session_without_a_frame(
    start_relay: StartRelay, claims: dict[str, Any]
) -> None:
    relay: Any = start_relay(jitter=at_once)
    with RawAgent(relay, **reauth()) as agent:
        agent.reauth_claims = claims
        assert agent.wait_end() is None
        assert agent.session.accepted
    assert ("agent.refused", "reauth") in [
        (name, f.get("stage")) for name, f in relay.config.on_log.entries
    ]


@pytest.mark.parametrize("grace_s", [None, 1])
def test_a_reauth_that_is_not_answered(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch, grace_s: int | None
) -> None:
    monkeypatch.setattr(AgentSession, "send_reauth_token", lambda *args: False)
    challenge, graces = RelaySession.reauth_challenge, []

    def hasty(session: RelaySession, nonce: str, now: float, grace_s: float) -> bool:
        graces.append(grace_s)
        return challenge(session, nonce, now, 0.005)

    monkeypatch.setattr(RelaySession, "reauth_challenge", hasty)
    relay: Any = start_relay(jitter=at_once)
    with RawAgent(relay, **reauth(reauth_grace_seconds=grace_s)) as agent:
        assert agent.wait_end() is None
    assert graces == [grace_s or 10]
    reasons = [fields.get("reason") for _, fields in relay.config.on_log.entries]
    assert "failed to read reauth token: i/o timeout" in reasons


# Bad habits ----------------------------------------------------------------------------------


def test_no_close_frame(start_relay: StartRelay) -> None:
    with RawAgent(start_relay(habits=Habits(no_close_frame=True)), exp=1) as agent:
        assert agent.wait_end() is None


def test_hang_before_the_challenge(start_relay: StartRelay) -> None:
    relay: Any = start_relay(habits=Habits(hang_before_challenge=True))
    with Peer(relay) as peer:
        peer.send(TEXT, make_token().encode())
        peer.send(PING)
        peer.sock.settimeout(20 * MS)
        with pytest.raises(TimeoutError):
            peer.sock.recv(1)
        peer.send(PING)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.sock.settimeout(AMPLE_S)
        assert read_to_end(peer.sock) == b"", "it notices when the agent gives up"


def test_silence(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        relay.habits = Habits(silent=True)
        peer.send(PING)
        peer.sock.settimeout(20 * MS)
        with pytest.raises(TimeoutError):
            peer.sock.recv(1)
        relay.habits = Habits()
        peer.send(PING, b"back")
        peer.sock.settimeout(AMPLE_S)
        assert peer.receive() == (PONG, b"back")


def test_pings_are_swallowed(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove()
        relay.habits = Habits(ignore_pings=True)
        peer.send(PING, b"lost")
        with user(relay, http_get()):
            _, message = peer.receive()
            client_id = json.loads(message[1:])["client_id"]
            assert peer.receive()[1].endswith(http_get())
            relay.habits = Habits()
            ping = json.dumps({"event": "ping_client", "client_id": client_id}).encode()
            peer.send(BINARY, b"\x02" + ping)
            assert b"pong_client" in peer.receive()[1]
            relay.habits = Habits(ignore_health_pings=True)
            peer.send(BINARY, b"\x02" + ping)
            peer.send(PING, b"end")
            assert peer.receive() == (PONG, b"end")


def test_endings(start_relay: StartRelay) -> None:
    relay = start_relay()

    def end(ending: Ending) -> RawAgent:
        relay.habits = dataclasses.replace(relay.habits, ending=ending)
        with RawAgent(relay) as agent:
            agent.wait_accepted()
            relay.drop_agents()
            agent.wait_end()
            return agent

    assert end(Ending.EOF).error is None
    framed = end(Ending.CLOSE_FRAME)
    assert [getattr(event, "code", None) for event in framed.events][-1] == 1001
    assert isinstance(end(Ending.RESET).error, ConnectionResetError)


def test_an_ending_twice_is_one(start_relay: StartRelay) -> None:
    relay = start_relay(habits=Habits(ending=Ending.CLOSE_FRAME))
    with RawAgent(relay) as agent:
        [found] = (agent.wait_accepted(), relay.agents)[1]
        found.end()
        found.end()
        assert agent.wait_end() is not None


def test_the_sessions_streams_end_with_it(start_relay: StartRelay) -> None:
    relay = start_relay()
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        with user(relay, http_get()) as sock:
            agent.wait_local()
            agent.stop()
            assert read_to_end(sock) == b""


def test_a_request_for_a_connection_is_answered(start_relay: StartRelay) -> None:
    """The rest is in test_outbound.py."""
    relay: Any = start_relay()
    with RawAgent(relay).wait_accepted() as agent:
        agent.session.send_control(
            Control(Event.OUTBOUND_CONNECT.value, b"o" * 16, target_addr="example.test:80")
        )
        agent.flush()
        refused = relay.config.on_log.wait("outbound.refused")
        assert refused["reason"] == "outbound connections not allowed"


def test_events_of_other_kinds_are_not_sent_by_agents(start_relay: StartRelay) -> None:
    relay: Any = start_relay()
    with Peer(relay) as peer:
        peer.prove(hostnames=[HOST])
        peer.send(BINARY, encode_control(Control(Event.CONNECT, bytes(16))))
        peer.send(PING)
        peer.receive()
    assert relay.config.on_log.entries[-1][0] == "agent.ignored"
