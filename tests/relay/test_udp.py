"""UDP users of the development relay. The real relay was seen to do the same in each case."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Timeout, socket

from nexusg.errors import ConfigError
from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from nexusg.relay import udp as module
from nexusg.relay.settings import Habits
from nexusg.relay.udp import READS_PER_TURN, UdpPort
from tests.conftest import MS
from tests.support.pair import Local
from tests.support.relayed import AMPLE_S, RawAgent
from tests.transport.servers import needs_ipv6


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.protocol.stream import Stream
    from nexusg.relay.server import DevRelay
    from tests.relay.conftest import StartRelay

IDLE_S = 30


class Echo(Local):
    """A service that answers each datagram with itself."""

    def on_data(self, payload: memoryview | bytes) -> None:
        super().on_data(payload)
        self.stream.send_datagram(bytes(payload))


class Starving(Echo):
    """The same, by an agent that never grants a second window."""

    def on_data(self, payload: memoryview | bytes) -> None:
        self.takes = False
        super().on_data(payload)


def udp_user(relay: DevRelay) -> Any:
    """A user's socket, connected to the relay's first UDP port."""
    host = relay.config.public_host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, relay.public_udp_ports[0]))
    sock.settimeout(AMPLE_S)
    return sock


def udp_agent(
    relay: DevRelay, make_local: Callable[[Stream], Local] = Echo, idle_s: int | None = None
) -> RawAgent:
    """An agent that claims the relay's first UDP port; use it as a context."""
    route = {"port": relay.public_udp_ports[0]}
    if idle_s is not None:
        route["flow_idle_timeout_seconds"] = idle_s
    agent = RawAgent(relay, make_local=make_local, hostnames=None, udp_routes=[route])
    return agent.wait_accepted()


def ask(user: Any, data: bytes) -> bytes:
    """Send a datagram and return the answer. Blocks."""
    user.send(data)
    return bytes(user.recv(65536))


def silent(user: Any, seconds: float = 20 * MS) -> bool:
    """Whether the user gets no datagram for so long. Blocks."""
    user.settimeout(seconds)
    try:
        user.recv(100)
    except TimeoutError:
        return True
    finally:
        user.settimeout(AMPLE_S)
    return False


@pytest.fixture
def relay(start_relay: StartRelay) -> Any:
    return start_relay(public_udp_ports=(0,))


def port_of(relay: Any) -> Any:
    """The one UDP port's inside."""
    [port] = relay._udp
    return port


def test_datagrams_go_both_ways(relay: Any) -> None:
    """One datagram is one message, empty ones too; what the connect says (section 4.3)."""
    with udp_agent(relay) as agent, udp_user(relay) as user:
        datagrams = [b"one", b"", b"x" * 2048, b"two"]
        assert [ask(user, data) for data in datagrams] == datagrams
        local = agent.wait_local()
        assert local.frames == datagrams
        stream, port = local.stream, relay.public_udp_ports[0]
        assert (stream.is_udp, stream.is_tls, stream.conn_port) == (True, False, port)
        assert stream.hostname == f"udp:{port}"
        assert stream.client_ip == f"127.0.0.1:{user.getsockname()[1]}"
        assert stream.window.available == 64 - 4
    assert relay.config.on_log.wait("user.connected")["name"] == f"udp:{port}"


@needs_ipv6
def test_ipv6(start_relay: StartRelay) -> None:
    relay = start_relay(public_udp_ports=(0,), public_host="::1")
    with udp_agent(relay) as agent, udp_user(relay) as user:
        assert ask(user, b"x") == b"x"
        assert agent.locals[0].stream.client_ip == f"[::1]:{user.getsockname()[1]}"


def test_a_flow_stays_with_its_backend(relay: Any) -> None:
    with udp_agent(relay) as one, udp_agent(relay) as two:
        users = [udp_user(relay) for _ in range(4)]
        for user in users * 3:
            assert ask(user, b"x") == b"x"
        for agent in (one, two):
            assert [len(local.frames) for local in agent.locals] == [3, 3]
        for user in users:
            user.close()


def test_nobody_claims_the_port(relay: Any) -> None:
    with udp_user(relay) as user:
        user.send(b"x")
        assert relay.config.on_log.wait("user.no_backend")["name"].startswith("udp:")
        assert not port_of(relay).flows


def test_ports_that_may_be_claimed(start_relay: StartRelay) -> None:
    relay = start_relay(public_udp_ports=(0,), allowed_udp_ports=(53,))
    with RawAgent(relay, hostnames=None, udp_routes=[{"port": relay.public_udp_ports[0]}]) as agent:
        closed = agent.wait_end()
        assert closed is not None
        assert "is not allowed" in closed.reason


def test_a_port_that_is_taken(start_relay: StartRelay, relay: Any) -> None:
    port = relay.public_udp_ports[0]
    with pytest.raises(ConfigError, match=rf"cannot listen on UDP 127\.0\.0\.1:{port}: "):
        start_relay(public_udp_ports=(port,))


def test_too_large_from_the_user(relay: Any) -> None:
    """It is dropped, and nothing else happens."""
    with udp_agent(relay), udp_user(relay) as user:
        user.send(bytes(2049))
        assert ask(user, b"x") == b"x"


def test_too_large_for_the_user(relay: Any) -> None:
    """Section 5.7: it silences the flow, and the answer after it ends the flow."""

    class Loud(Local):
        def on_data(self, payload: memoryview | bytes) -> None:
            super().on_data(payload)
            self.stream.send_datagram(bytes(int(bytes(payload))))

    with udp_agent(relay, Loud) as agent, udp_user(relay) as user:
        assert len(ask(user, b"2048")) == 2048
        user.send(b"2049")
        user.send(b"1")
        agent.wait(lambda: agent.locals[0].cause is Cause.USER)
        user.send(b"2")  # lost with the flow
        assert ask(user, b"3") == bytes(3)
        assert [local.frames for local in agent.locals] == [[b"2048", b"2049", b"1"], [b"3"]]


def test_the_agent_ends_a_flow(relay: Any) -> None:
    """The user's next datagram is lost, and the one after opens a new flow."""
    with udp_agent(relay) as agent, udp_user(relay) as user:
        ask(user, b"1")
        agent.locals[0].stream.abort(Reason.NORMAL)
        agent.flush()
        with Timeout(AMPLE_S):
            while not port_of(relay).flows[user.getsockname()].over:
                gevent.sleep(MS)
        user.send(b"2")
        assert ask(user, b"3") == b"3"
        assert [local.frames for local in agent.locals] == [[b"1"], [b"3"]]


def test_the_session_ends(relay: Any) -> None:
    with udp_user(relay) as user:
        with udp_agent(relay):
            ask(user, b"1")
        relay.config.on_log.wait("agent.gone")
        with udp_agent(relay) as agent:
            user.send(b"2")
            assert ask(user, b"3") == b"3"
            assert [local.frames for local in agent.locals] == [[b"3"]]


def test_a_user_in_silence(relay: Any) -> None:
    """Section 6.7: the flow ends, and the next datagram opens a new one; answers do not count."""
    with udp_agent(relay) as agent, udp_user(relay) as user:
        ask(user, b"1")
        used_at = port_of(relay).flows[user.getsockname()].used_at
        port_of(relay).reap(used_at + IDLE_S - 0.1)
        assert ask(user, b"2") == b"2"
        port_of(relay).reap(used_at + IDLE_S)
        assert ask(user, b"3") == b"3"
        local = agent.wait_local()
        local.stream.send_datagram(b"unasked")
        agent.flush()
        assert user.recv(100) == b"unasked"
        port_of(relay).reap(time.monotonic() + IDLE_S)
        agent.wait(lambda: local.cause is Cause.USER)
        assert ask(user, b"4") == b"4"
        assert len(agent.locals) == 2


@pytest.mark.parametrize(("claimed", "expected"), [(1, 5), (60, 60), (9999, 300)])
def test_the_longest_claim_counts(relay: Any, claimed: int, expected: int) -> None:
    with udp_agent(relay, idle_s=claimed) as agent, udp_user(relay) as user:
        ask(user, b"x")
        used_at = port_of(relay).flows[user.getsockname()].used_at
        port_of(relay).reap(used_at + expected - 0.1)
        assert not agent.wait_local().cause
        with udp_agent(relay, idle_s=claimed + 5):
            if expected < 300:
                port_of(relay).reap(used_at + expected + 0.1)  # more than what rounding may take
                assert port_of(relay).flows
        relay.config.on_log.wait("agent.gone")
        port_of(relay).reap(used_at + expected + 0.1)  # more than what rounding may take
        assert not port_of(relay).flows


def test_reaping_is_done_by_itself(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[float] = []
    monkeypatch.setattr(module, "REAP_EVERY_S", MS)
    monkeypatch.setattr(UdpPort, "reap", lambda _, now: moments.append(now))
    start_relay(public_udp_ports=(0,))
    with Timeout(AMPLE_S):
        while len(moments) < 2:
            gevent.sleep(MS)
    assert moments[0] <= time.monotonic()


def test_without_credits_the_whole_port_waits(relay: Any) -> None:
    """Section 5.7, the real relay's defect: neither of the ends of a flow ends the wait."""
    with udp_agent(relay, Starving) as agent, udp_user(relay) as user, udp_user(relay) as other:
        assert ask(other, b"x") == b"x"
        user.send(b"first")
        assert user.recv(100) == b"first"
        stream = agent.wait_local(1).stream
        starve(relay, user)
        user.send(b"one too many")
        other.send(b"y")
        assert silent(other)
        stream.consumed(200)
        agent.flush()
        assert user.recv(100) == b"one too many"
        assert other.recv(100) == b"y"

        starve(relay, user)
        user.send(b"one too many")
        other.send(b"z")
        assert silent(other)
        stream.abort(Reason.NORMAL)
        agent.flush()
        assert silent(other)
        agent.stop()
        relay.config.on_log.wait("agent.gone")
        with udp_agent(relay):
            assert ask(other, b"back") == b"back"


def starve(relay: Any, user: Any) -> None:
    """Use up the credits of the user's flow."""
    window = port_of(relay).flows[user.getsockname()]._stream.window
    with Timeout(AMPLE_S):
        while window.unlimited or window.available:
            assert ask(user, b"x") == b"x"


def test_starved_for_too_long(start_relay: StartRelay) -> None:
    """The flow is given up, and the port goes on."""
    relay: Any = start_relay(public_udp_ports=(0,), idle_timeout_s=20 * MS)
    with udp_agent(relay, Starving) as agent, udp_user(relay) as user, udp_user(relay) as other:
        assert ask(user, b"first") == b"first"
        starve(relay, user)
        user.send(b"one too many")
        assert ask(other, b"y") == b"y"
        agent.wait(lambda: agent.locals[0].cause is Cause.USER)


def test_full_lanes(start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.4: what finds its lane full is lost, be it a whole flow or a datagram of one."""
    relay: Any = start_relay(public_udp_ports=(0,), lanes=256)
    with udp_agent(relay) as agent, udp_user(relay) as user, udp_user(relay) as other:
        ask(user, b"1")
        [link] = relay.agents
        full: list[object] = []
        monkeypatch.setattr(link.session, "send", lambda *lost: full.append(lost))
        other.send(b"never heard of")
        user.send(b"2")
        with Timeout(AMPLE_S):
            while len(full) < 3:  # a connect, a datagram, and that flow's disconnect
                gevent.sleep(MS)
        monkeypatch.undo()
        user.send(b"lost with the flow")
        assert ask(user, b"3") == b"3"
        assert ask(other, b"4") == b"4"
        assert [local.frames for local in agent.locals] == [[b"1"], [b"3"], [b"4"]]
        assert agent.locals[0].cause is None


def test_a_congested_agent_loses_datagrams(relay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with udp_agent(relay) as agent, udp_user(relay) as user:
        ask(user, b"1")
        monkeypatch.setattr("nexusg.relay.link.CONGESTED_BYTES", -1)
        user.send(b"2")
        assert silent(user)
        monkeypatch.undo()
        assert ask(user, b"3") == b"3"
        assert agent.locals[0].frames == [b"1", b"3"]


def test_bad_habits(start_relay: StartRelay) -> None:
    habits = Habits(never_grant=True, lose_first_grant=True, lose_disconnects=True)
    relay: Any = start_relay(public_udp_ports=(0,), habits=habits)
    with udp_agent(relay) as agent, udp_user(relay) as user:
        for number in range(20):
            ask(user, b"%d" % number)
        local = agent.wait_local()
        assert local.stream.window.available == 64 - 20
        flow = port_of(relay).flows[user.getsockname()]
        assert flow._stream.deaf_to_grants == 0
        port_of(relay).reap(time.monotonic() + IDLE_S)
        flow.end()
        assert agent.quiet(5 * MS)
        assert local.cause is None


def test_a_flood_lets_others_have_their_turn(relay: Any) -> None:
    with udp_agent(relay, Local) as agent, udp_user(relay) as user:
        for _ in range(4 * READS_PER_TURN):
            user.send(b"x")
        agent.wait(lambda: agent.locals and len(agent.locals[0].frames) == 4 * READS_PER_TURN)


def test_answers_to_a_port_that_is_closed_are_lost(relay: Any) -> None:
    with udp_agent(relay) as agent, udp_user(relay) as user:
        ask(user, b"x")
        port_of(relay).stop()
        port_of(relay).close_rest()
        agent.locals[0].stream.send_datagram(b"late")
        agent.flush()
        assert silent(user)
        assert agent.locals[0].cause is None


def test_ended_before_it_was_started(relay: Any) -> None:
    port = port_of(relay)
    again = UdpPort(port._shared, ("127.0.0.1", 0))
    again.stop()
    again.close_rest()
    assert again.port == 0
