"""Bytes both ways through a relay over TLS, whatever else is going on."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, joinall, socket

from nexusg.attest.base import Stage
from nexusg.errors import NoRoute
from nexusg.targets.memory import memory_pair
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, SECRET, http_get, make_token, read_to_end
from tests.support.running import HEAD, Running, WatchedAgent, read_exactly
from tests.support.services import Sink, Source, echo, hold


if TYPE_CHECKING:
    from nexusg.agent.connect import ConnectRequest
    from nexusg.attest.base import TokenRequest

MIB = 1024 * 1024


def noise(size: int) -> bytes:
    """Bytes that no mistake in their order or number leaves unnoticed."""
    return random.Random(size).randbytes(size)


def upload(sock: Any, data: bytes) -> None:
    """Send everything, and say that it is all."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


# Much ------------------------------------------------------------------------------------------


def test_much_in_both_directions(running: Running) -> None:
    """16 MiB each way, at the same time; no byte is lost or out of order."""
    data, sink = noise(16 * MIB), Sink()
    relay = running.relay()
    ports = {"sink": running.service(sink), "source": running.service(Source(data))}

    def route(request: ConnectRequest) -> Any:
        host, port = ports[request.hostname.partition(".")[0]].target.split(":")
        return socket.create_connection((host, int(port)))

    hostnames = {"hostnames": ("sink.example.com", "source.example.com")}
    running.connected(relay, connect_handler=route, backend=hostnames)
    downloading = running.raw_user(relay, http_get("source.example.com"))
    uploading = running.raw_user(relay, http_get("sink.example.com"))
    sender = Greenlet.spawn(uploading.sendall, data)
    received = read_exactly(downloading, len(data))
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    sender.get(timeout=AMPLE_S)
    uploading.shutdown(socket.SHUT_WR)
    assert sink.ended.wait(AMPLE_S)
    head = http_get("sink.example.com")
    assert sink.digest == hashlib.sha256(head + data).digest()


def test_a_slow_user_gets_the_tail(running: Running) -> None:
    """Section 17, case 30: the service closes at once, and the user reads late and little."""
    data = noise(2 * MIB)
    relay = running.relay()
    agent = running.connected(relay, target=running.service(Source(data)).target)
    user = running.user(relay)
    agent.wait("stream.connected")
    received = bytearray()
    while piece := user.recv(20_000):
        received += piece
    assert bytes(received) == data


def test_a_slow_service_gets_the_tail(running: Running) -> None:
    """Section 17, case 21: the user has gone long before the service has read everything."""
    data, sink = noise(6 * MIB), Sink(open_=False)
    relay = running.relay()
    service = running.service(sink, buffer_bytes=16_384)
    agent = running.connected(relay, target=service.target)
    user = running.user(relay)
    upload(user, data)
    user.close()
    agent.wait_until(
        lambda: [pump for pump in agent.stats(streams=True).streams if pump.state == "delivering"]
    )
    assert agent.stats().buffered_bytes > MIB
    sink.gate.set()
    assert sink.ended.wait(AMPLE_S)
    assert sink.digest == hashlib.sha256(HEAD + data).digest()
    assert agent.wait("stream.closed").reason == "normal"


def test_many_users_at_once(running: Running) -> None:
    """Each gets its own answer."""
    relay = running.relay()
    agent = running.connected(relay, target=running.service(echo).target)
    texts = [noise(1000 + number) for number in range(50)]
    talks = [Greenlet.spawn(running.talk, relay, text) for text in texts]
    joinall(talks, timeout=AMPLE_S, raise_error=True)
    assert [talk.value for talk in talks] == texts
    agent.wait("stream.closed", 50)
    assert agent.stats().streams_closed == {"normal": 50}


# Re-attestation --------------------------------------------------------------------------------


def soon(span_s: float) -> float:
    """A jitter that takes nearly all of the interval away: it is five times the span."""
    return 10 * MS - 5 * span_s


def slow_provider(request: TokenRequest) -> str:
    """Its tokens ask for re-attestation, and take a while when it comes to that."""
    if request.stage is Stage.REAUTH:
        gevent.sleep(20 * MS)
    nonce = request.nonce if request.stage is not Stage.HANDSHAKE else None
    return make_token(session_nonce=nonce, reauth_interval_seconds=1)


#: The same as a command, with nothing but the standard library.
COMMAND = f"""
import base64, hashlib, hmac, json, os, time

def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")

claims = {{
    "iss": "authorizer",
    "aud": ["nexus"],
    "exp": int(time.time()) + 30,
    "hostnames": os.environ["NEXUS_HOSTNAMES"].split(","),
    "reauth_interval_seconds": 1,
    "session_nonce": os.environ["NEXUS_SESSION_NONCE"],
}}
if os.environ["NEXUS_ATTESTATION_STAGE"] == "reauth":
    time.sleep({50 * MS})
signed = text(b'{{"alg":"HS256","typ":"JWT"}}') + b"." + text(json.dumps(claims).encode())
digest = hmac.new({SECRET.encode()!r}, signed, hashlib.sha256).digest()
print((signed + b"." + text(digest)).decode())
"""


@pytest.mark.parametrize("kind", ["callable", "command"])
def test_traffic_during_re_attestation(running: Running, kind: str) -> None:
    """Section 17, case 11: up- and download go on, through a slow one and the next."""
    relay = running.relay(jitter=soon)
    options: dict[str, Any] = {"token_provider": slow_provider}
    if kind == "command":
        command = {"command": sys.executable, "args": ("-I", "-S", "-c", COMMAND)}
        options = {"attestation": {**command, "hmac_secret": None}}
    agent = running.connected(relay, target=running.service(echo).target, **options)
    user = running.user(relay)
    read_exactly(user, len(HEAD))
    talked = 0
    while len(agent.named("reauth.completed")) < 2:
        asked = len(agent.named("reauth.started")) > len(agent.named("reauth.completed"))
        data = noise(100_000)
        sender = Greenlet.spawn(user.sendall, data)
        assert read_exactly(user, len(data)) == data
        sender.get(timeout=AMPLE_S)
        talked += asked
    assert talked > 2, "while a token was being obtained"
    assert "agent.renewed" in [event for event, _ in relay.logged]  # type: ignore[attr-defined]
    assert not agent.named("session.lost")


# Sharing ---------------------------------------------------------------------------------------


def test_agents_share_by_weight(running: Running) -> None:
    """Section 14: 1 to 3, by the relay's round robin."""
    relay = running.relay()
    light = running.connected(relay, target=running.service(echo).target)
    heavy = running.connected(relay, target=running.service(echo).target, backend={"weight": 3})
    for _ in range(8):
        running.talk(relay)
    assert light.stats().streams_total == 2
    assert heavy.stats().streams_total == 6


def test_the_other_agent_takes_over(running: Running) -> None:
    """One is stopped; its users stay, and the new ones go to the other."""
    relay = running.relay()
    first = running.connected(relay, target=running.service(hold).target)
    running.user(relay)
    first.wait("stream.connected")
    second = running.connected(relay, target=running.service(echo).target)
    stopping = Greenlet.spawn(first.stop)
    first.wait("agent.stopping")
    answers = [running.talk(relay, b"x") for _ in range(4)]
    assert sorted(answers) == [b"", b"", b"x", b"x"], "until it closes, it is sent its share"
    first.stop()
    stopping.get(timeout=AMPLE_S)
    assert running.talk(relay, b"still there") == b"still there"
    assert second.stats().streams_total == 3


def test_several_relays_one_of_them_down(running: Running) -> None:
    """Section 17, case 47."""
    relay, gone = running.relay(), running.relay()
    gone.stop()
    agent = running.agent(relay, gone, target=running.service(echo).target)
    agent.wait("session.connected")
    agent.wait("session.failed")
    assert running.talk(relay, b"hello") == b"hello"
    failed = agent.named("session.failed")[0]
    assert (failed.relay, failed.code) == (gone.url, "refused")
    assert {slot.state for slot in agent.stats().sessions} == {"open", "disconnected"}


# Connect handlers ------------------------------------------------------------------------------


def answered(running: Running, handler: Any, **options: Any) -> bytes:
    """What a user reads whose stream goes to ``handler``."""
    relay = running.relay()
    running.connected(relay, connect_handler=handler, **options)
    return read_to_end(running.user(relay))


def test_a_handler_that_serves_in_memory(running: Running) -> None:
    def handler(_: ConnectRequest) -> Any:
        ours, theirs = memory_pair()
        Greenlet.spawn(serve, theirs)
        return ours

    def serve(sock: Any) -> None:
        assert read_exactly(sock, len(HEAD)) == HEAD
        sock.sendall(noise(200_000))
        sock.close()

    assert answered(running, handler) == noise(200_000)


def test_a_handler_that_returns_a_socket(running: Running) -> None:
    theirs: list[Any] = []

    def handler(_: ConnectRequest) -> Any:
        ours, other = socket.socketpair()
        theirs.append(other)
        other.sendall(b"hello")
        other.shutdown(socket.SHUT_WR)
        return ours

    assert answered(running, handler) == b"hello"
    assert read_exactly(theirs[0], 1000).startswith(b"GET /")
    theirs[0].close()


class Channel:
    """Something that can receive and send, as a paramiko channel can."""

    def __init__(self) -> None:
        self.sent = b""
        self._answers = [b"one ", b"two", b""]

    def recv(self, size: int) -> bytes:
        return self._answers.pop(0)

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        self._answers = [b""]


def test_a_handler_that_returns_any_channel(running: Running) -> None:
    channel = Channel()
    assert answered(running, lambda _: channel) == b"one two"
    assert channel.sent == HEAD


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("raises", "KeyError: 'oops'"), ("nonsense", "the connect handler returned int")],
)
def test_a_handler_that_fails(running: Running, kind: str, reason: str) -> None:
    """The user is told, the operator as well, and the next user is served."""

    def handler(_: ConnectRequest) -> Any:
        if not failed:
            failed.append(True)
            if kind == "raises":
                raise KeyError("oops")
            return 42
        raise NoRoute("somebody else, please")

    failed: list[bool] = []
    relay = running.relay()
    agent = running.connected(relay, connect_handler=handler, target=running.service(echo).target)
    assert read_to_end(running.user(relay)) == b""
    closed = agent.wait("stream.closed")
    assert (closed.reason, closed.ended_by) == ("dial_failed", "agent")
    assert reason in closed.error
    assert running.talk(relay, b"next") == b"next"


def test_handlers_stack_up_to_the_mapping(running: Running) -> None:
    """Section 13."""
    asked: list[str] = []

    def first(_: ConnectRequest) -> None:
        asked.append("first")

    def second(_: ConnectRequest) -> None:
        asked.append("second")
        raise NoRoute("not mine")

    relay = running.relay()
    running.connected(relay, connect_handler=[first, second], target=running.service(echo).target)
    assert running.talk(relay, b"hello") == b"hello"
    assert asked == ["second", "first"]


# Subscribers -----------------------------------------------------------------------------------


def test_a_subscriber_that_raises(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    def on_event(event: object) -> None:
        raise ValueError("no")

    relay = running.relay()
    running.connected(relay, target=running.service(echo).target, on_event=on_event)
    assert running.talk(relay, b"hello") == b"hello"
    assert "the event handler failed on session.connected" in caplog.messages


def test_a_subscriber_that_hangs(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue fills up, events are lost and counted, and nobody waits."""
    monkeypatch.setattr("nexusg.agent.dispatch.QUEUE_EVENTS", 4)
    monkeypatch.setattr("nexusg.agent.agent.CLEANUP_S", 20 * MS)
    gate = socket.socketpair()
    agents: list[WatchedAgent] = []

    def on_event(event: object) -> None:
        gate[0].recv(1)

    relay = running.relay()
    agents.append(running.agent(relay, target=running.service(echo).target, on_event=on_event))
    assert relay.wait_agents(1)
    for _ in range(5):
        assert running.talk(relay, b"hello") == b"hello"
    assert agents[0].stats().events_dropped > 0
    gate[1].sendall(b"x" * 1000)
    dropped = agents[0].wait("events.dropped")
    assert dropped.count == agents[0].stats().events_dropped
    for sock in gate:
        sock.close()
