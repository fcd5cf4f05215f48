"""Connections that an agent asks for, with services on real sockets (PROTOCOL.md section 11.3)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket

from nexusg.protocol.messages import NIL_ID, Control, Event
from nexusg.protocol.stream import Cause
from nexusg.relay.claims import Claims
from nexusg.relay.outbound import NotMade, check
from nexusg.relay.verify import Rules
from tests.conftest import MS
from tests.support.pair import Local
from tests.support.relayed import AMPLE_S, RawAgent, read_to_end


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.protocol.outbound import OutboundStream
    from tests.relay.conftest import StartRelay

OPEN = Rules("", allow_outbound=True)
ALLOWED = Claims(outbound_allowed=True)


# The checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("example.test:443", ("example.test", 443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[2001:db8::7]:65535", ("2001:db8::7", 65535)),
        ("a" * 255 + ":80", ("a" * 255, 80)),
    ],
)
def test_what_is_dialled(target: str, expected: tuple[str, int]) -> None:
    assert check(target, OPEN, ALLOWED) == expected


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("a" * 258 + ":80", "target address too long"),
        ("a\nb:80", "target address contains control characters"),
        ("a\x7f:80", "target address contains control characters"),
        ("", "invalid target address"),
        ("example.test", "invalid target address"),
        ("example.test:", "invalid target address"),
        (":80", "invalid target address"),
        ("::1:80", "invalid target address"),
        ("[::1]", "invalid target address"),
        ("[]:80", "invalid target address"),
        ("example.test:0", "invalid target port"),
        ("example.test:65536", "invalid target port"),
        ("example.test:http", "invalid target port"),
        ("example.test:٨٠", "invalid target port"),
    ],
)
def test_bad_addresses(target: str, reason: str) -> None:
    with pytest.raises(NotMade, match=f"^{reason}$"):
        check(target, OPEN, ALLOWED)


@pytest.mark.parametrize(
    ("rules", "claims", "reason"),
    [
        (Rules(""), ALLOWED, "outbound connections not allowed"),
        (OPEN, Claims(), "outbound connections not allowed for this backend"),
        (
            Rules("", allow_outbound=True, outbound_ports=frozenset({443})),
            ALLOWED,
            "outbound port 25 not allowed",
        ),
        (
            OPEN,
            Claims(outbound_allowed=True, outbound_ports=frozenset({443})),
            "outbound port 25 not allowed for this backend",
        ),
    ],
)
def test_what_is_not_allowed(rules: Rules, claims: Claims, reason: str) -> None:
    with pytest.raises(NotMade, match=f"^{reason}$"):
        check("example.test:25", rules, claims)


def test_the_order_of_the_checks() -> None:
    """Each target has all the faults that come later."""
    ports = frozenset({443})
    closed, opened = (
        Rules("", outbound_ports=ports),
        Rules("", frozenset(), frozenset(), True, ports),
    )
    refused, granted = (
        Claims(outbound_ports=ports),
        Claims(outbound_allowed=True, outbound_ports=ports),
    )
    worst = "a\n:x" + "a" * 300
    reasons = []
    for target, rules, claims in (
        (worst, closed, refused),
        (worst, opened, refused),
        (worst, opened, granted),
        ("a\n:x", opened, granted),
        ("a:", opened, granted),
        ("a:x", opened, granted),
        ("a:25", opened, granted),
    ):
        with pytest.raises(NotMade) as caught:
            check(target, rules, claims)
        reasons.append(str(caught.value))
    assert reasons == [
        "outbound connections not allowed",
        "outbound connections not allowed for this backend",
        "target address too long",
        "target address contains control characters",
        "invalid target address",
        "invalid target port",
        "outbound port 25 not allowed",
    ]


# Connections -------------------------------------------------------------------------------------


class Asker(RawAgent):
    """An agent that asks for connections."""

    def __init__(self, relay: Any, **claims: Any) -> None:
        super().__init__(relay, **{"outbound_allowed": True, **claims})
        self.wait_accepted()

    def __enter__(self) -> Asker:
        return self

    def ask(self, target: str, client_id: bytes | None = None) -> Local:
        """Ask; the listener of what comes of it."""
        made: list[Local] = []

        def open_stream(stream: OutboundStream) -> Local:
            made.append(Local(stream, takes=False))
            return made[0]

        new_id = client_id or uuid.uuid4().bytes
        self.session.connect_outbound(new_id, target, open_stream, 0.0)
        self.flush()
        return made[0]

    def connect(self, target: str) -> Local:
        """Ask, and wait for the success."""
        local = self.ask(target)
        self.wait(lambda: local.stream.settled)
        local.takes = True
        local.stream.dialled()
        return local

    def refusal(self, target: str) -> str:
        """Ask, and wait for the refusal."""
        local = self.ask(target)
        self.wait(lambda: local.cause)
        assert local.cause is Cause.REFUSED
        return str(getattr(local.stream, "refusal", None))

    def say(self, client_id: bytes, target: str) -> None:
        """Send an outbound_connect that the core would not send."""
        request = Control(Event.OUTBOUND_CONNECT.value, client_id, target_addr=target)
        self.session.send_control(request)
        self.flush()


class Service:
    """A service somewhere behind the relay."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> Any:
        """The next connection."""
        sock, _ = self.listener.accept()
        sock.settimeout(AMPLE_S)
        return sock


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.listener.close()


@pytest.fixture
def relay(start_relay: StartRelay) -> Any:
    return start_relay(allow_outbound=True)


def test_both_ways(relay: Any, service: Service) -> None:
    with Asker(relay) as agent:
        local = agent.connect(service.target)
        assert (local.stream.window.available, local.stream.window.unlimited) == (64, False)
        with service.accept() as far:
            local.stream.send(memoryview(b"ping"))
            agent.flush()
            assert far.recv(100) == b"ping"
            far.sendall(b"pong")
            agent.wait(lambda: local.data == b"pong")
        agent.wait(lambda: local.cause is Cause.USER)
    assert relay.config.on_log.wait("outbound.connected")["target"] == service.target
    relay.config.on_log.wait("outbound.gone")


def test_the_agents_end_is_a_half_close(relay: Any, service: Service) -> None:
    with Asker(relay) as agent:
        local = agent.connect(service.target)
        with service.accept() as far:
            local.stream.send(memoryview(b"bye"))
            local.stream.end_of_file(0)
            assert local.stream.flush(0) is None
            agent.flush()
            assert read_to_end(far) == b"bye"
            far.sendall(b"this is nobody's")
        relay.config.on_log.wait("outbound.gone")


def test_the_end_of_the_session_ends_its_connections(relay: Any, service: Service) -> None:
    with Asker(relay) as agent:
        agent.connect(service.target)
        far = service.accept()
    assert read_to_end(far) == b""
    far.close()


def test_refusals(relay: Any, service: Service) -> None:
    service.listener.close()
    with Asker(relay) as agent:
        assert agent.refusal(service.target) == "dial failed"
        assert agent.refusal("nohost") == "invalid target address"
        assert relay.config.on_log.wait("outbound.refused")["target"] == "nohost"


def test_ids(relay: Any, service: Service) -> None:
    """No ID is missing, and the first of two connections with the same one lives on."""
    with Asker(relay) as agent:
        local = agent.connect(service.target)
        with service.accept() as far:
            agent.say(NIL_ID, service.target)
            log = relay.config.on_log
            assert log.wait("outbound.refused")["reason"] == "missing client ID"
            log.entries.clear()
            agent.say(local.stream.id, service.target)
            assert str(log.wait("outbound.refused")["reason"]).endswith("already exists")
            with service.accept() as second:
                assert second.recv(1) == b""
            local.stream.send(memoryview(b"still"))
            agent.flush()
            assert far.recv(100) == b"still"


def test_limit(start_relay: StartRelay, service: Service) -> None:
    """Connections count while they are dialled, until they have ended."""
    relay: Any = start_relay(allow_outbound=True, max_outbound=2)
    with Asker(relay) as agent:
        asked = [agent.ask(service.target) for _ in range(3)]
        agent.wait(lambda: asked[2].cause)
        assert getattr(asked[2].stream, "refusal", "") == "outbound connection limit exceeded"
        agent.wait(lambda: asked[0].stream.settled and asked[1].stream.settled)
        service.accept().close()
        relay.config.on_log.wait("outbound.gone")
        agent.wait(lambda: asked[0].cause or asked[1].cause)
        agent.connect(service.target)


def test_without_limit(start_relay: StartRelay, service: Service) -> None:
    relay = start_relay(allow_outbound=True, max_outbound=-1)
    with Asker(relay) as agent:
        agent.connect(service.target)


def test_nobody_waits_for_a_dial_any_more(start_relay: StartRelay, service: Service) -> None:
    """The agent has gone: nothing is said, and the connection is closed."""
    relay: Any = start_relay(allow_outbound=True)
    agent = Asker(relay)
    [link] = relay.agents
    agent.stop()
    relay.config.on_log.wait("agent.gone")
    link._outbound.request(b"x" * 16, service.target)
    with service.accept() as far:
        assert far.recv(1) == b""
    link._outbound.request(b"x" * 16, "nohost")


def test_idle_time_counts_from_the_services_last_word(
    start_relay: StartRelay, service: Service
) -> None:
    """PROTOCOL.md section 6.7: what it is told does not count, unlike with users."""
    relay = start_relay(allow_outbound=True, outbound_idle_timeout_s=20 * MS)
    with Asker(relay) as agent:
        local = agent.connect(service.target)
        with service.accept() as far:
            local.stream.send(memoryview(b"x"))
            agent.flush()
            agent.wait(lambda: local.cause is Cause.USER)
            assert read_to_end(far) == b"x"
