"""UDP flows: real ones, over a pair of protocol cores, with datagram sockets for services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket

from nexusg.agent.flows import EARLY_DATAGRAMS
from nexusg.config.model import Limits
from nexusg.errors import NoRoute, TargetError
from nexusg.protocol.credit import UDP_WINDOW
from nexusg.protocol.messages import Reason
from nexusg.protocol.states import StreamState
from nexusg.targets.udp import UdpTarget, dial_udp
from tests.conftest import MS
from tests.support.pair import User
from tests.support.rig import Rig


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and ends them after the test."""
    rigs = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def received(local: Any) -> list[bytes]:
    """All datagrams that a local service has been sent."""
    found = []
    try:
        while True:
            found.append(local.recv(65536))
    except BlockingIOError:
        return found


# Life --------------------------------------------------------------------------------------------


def test_datagrams_go_both_ways(rig: Rig) -> None:
    """One datagram is one message, both ways, empty ones too."""
    user, flow, local = rig.open_flow(b"first")
    datagrams = [b"", b"one", bytes(2048), b""]
    for datagram in datagrams:
        assert user.stream.send(datagram)
        local.send(datagram)
    rig.run()
    assert received(local) == [b"first", *datagrams]
    assert user.frames == datagrams
    (connected,) = rig.named("stream.connected")
    assert (connected.transport, connected.hostname) == ("udp", "udp:53")
    assert connected.target == flow.target_name == "service:53"
    user.stream.end()
    rig.run()
    closed = rig.closed()
    assert (closed.reason, closed.ended_by, closed.error) == ("normal", "user", "")
    assert (closed.bytes_in, closed.bytes_out) == (5 + 2051, 2051)
    assert (closed.datagrams_in, closed.datagrams_out) == (5, 4)
    assert (closed.dropped, closed.dropped_by) == (0, "")


def test_the_users_end_closes_the_socket_at_once(rig: Rig) -> None:
    """Section 12: no half-close, nothing to wait for."""
    user, flow, local = rig.open_flow()
    user.stream.end()
    rig.run()
    assert flow.done
    assert flow.stream.state is StreamState.CLOSED
    with pytest.raises(OSError, match=r"."):
        local.send(b"nobody there")


def test_the_end_of_the_session(rig: Rig) -> None:
    _, flow, _ = rig.open_flow()
    rig.pair.agent.lost()
    assert flow.done
    assert rig.closed().reason == "session_ended"


def test_an_idle_flow_is_asked_for(rig: Rig) -> None:
    """Section 7: when the relay has forgotten it, it ends."""
    user, flow, _ = rig.open_flow()
    user.stream.forget()
    rig.advance(80)
    assert flow.done
    assert rig.closed().reason == "timeout"


@pytest.mark.parametrize("error", [TargetError("no such name", "dns"), NoRoute("no mapping")])
def test_no_service(rig: Rig, error: Exception) -> None:
    user, flow, local = rig.open_flow(b"x", answer=error)
    assert flow.done
    assert user.reason == "dial_failed"
    local.close()
    assert (rig.closed().error, rig.closed().dropped) == (str(error), 0)
    assert rig.context.counters.dial_failures == 1


def test_ended_during_the_dial(rig: Rig) -> None:
    """The socket that comes too late is closed; nothing stays behind."""
    rig.connector.gate.clear()
    user, flow, local = rig.open_flow(b"early")
    assert flow.buffered_bytes == 5
    user.stream.end()
    rig.run()
    assert (flow.done, flow.buffered_bytes) == (True, 0)
    assert not rig.context.tasks
    local.close()


def test_a_dial_that_cannot_be_stopped(rig: Rig) -> None:
    """A connect handler may swallow the kill and return a socket all the same."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def stubborn(_: object) -> UdpTarget:
        try:
            gevent.sleep(5)
        except gevent.GreenletExit:
            pass
        return UdpTarget(ours, "late", rig.context.buffer)

    rig.connector.connect_flow = stubborn  # type: ignore[method-assign, assignment]
    user, flow, _ = rig.open_flow()
    user.stream.end()
    rig.run()
    assert flow.done
    assert ours.fileno() == -1
    theirs.close()
    assert not rig.named("stream.connected")


def test_a_socket_that_somebody_else_closes(rig: Rig) -> None:
    """What a connect handler has returned, and closed: the flow ends, in either direction."""
    for send in (True, False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        target = UdpTarget(ours, "handler", rig.context.buffer)
        user, flow, _ = rig.open_flow(answer=target)
        target.close()
        if send:
            user.stream.send(b"x")
            rig.pair.pump()
            assert flow.done
        rig.run()
        assert flow.done
        assert user.reason == "local_error"
        theirs.close()
        assert rig.events.pop().error == "the connection to the target was closed"


# Forward -----------------------------------------------------------------------------------------


def test_early_datagrams_are_kept_some_of_them(rig: Rig) -> None:
    """Section 12: 64 of them, and the credits come back all the same."""
    rig.connector.gate.clear()
    user, flow, local = rig.open_flow(b"0")
    for number in range(1, EARLY_DATAGRAMS + 50):
        assert user.stream.send(b"%d" % number)
    rig.run()
    assert flow.losses() == {"early": 50}
    assert user.stream.window.available >= UDP_WINDOW - 16
    rig.connector.gate.set()
    rig.run()
    assert received(local) == [b"%d" % number for number in range(EARLY_DATAGRAMS)]
    assert flow.buffered_bytes == 0
    assert user.stream.send(b"late")
    rig.run()
    assert received(local) == [b"late"]


def test_early_datagrams_count_against_the_budget(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(limits=Limits(agent_buffer_bytes=100))
    rig.connector.gate.clear()
    user, flow, local = rig.open_flow(bytes(101))
    user.stream.send(b"one too many")
    rig.run()
    assert flow.losses() == {"early": 1}
    rig.connector.gate.set()
    rig.run()
    assert received(local) == [bytes(101)]
    assert rig.context.budget.used_bytes == 0


def test_a_flow_never_runs_out_of_credits(rig: Rig) -> None:
    """Case 35: whatever becomes of the datagrams; here the service reads next to none."""
    user, flow, local = rig.open_flow()
    for _ in range(10 * UDP_WINDOW):
        assert user.stream.sendable
        assert user.stream.send(b"x")
        rig.pair.pump()
    lost = flow.losses()["full"]
    assert 0 < lost < 10 * UDP_WINDOW
    assert len(received(local)) == 10 * UDP_WINDOW + 1 - lost
    assert not flow.done
    flow.finish(Reason.SHUTDOWN, "agent", "")
    assert (rig.closed().dropped, rig.closed().dropped_by) == (lost, f"full {lost}")
    assert rig.context.counters.datagrams_dropped == {"full": lost}


def test_a_service_that_is_down_costs_datagrams_only(rig: Rig) -> None:
    """Case 36: refusals are survived, and the service is found when it is back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        address = service.getsockname()
    target = dial_udp(f"127.0.0.1:{address[1]}", rig.context.buffer)
    user, flow, _ = rig.open_flow(b"anyone?", answer=target)
    for _ in range(3):
        gevent.sleep(MS)
        assert user.stream.send(b"anyone?")
        rig.run()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(address)
        service.settimeout(1)
        assert user.stream.send(b"back")
        rig.run()
        data, peer = service.recvfrom(100)
        assert data == b"back"
        service.sendto(b"here", peer)
        gevent.sleep(MS)
        rig.run()
    assert user.frames == [b"here"]
    assert flow.losses() == {"refused": 4}
    assert not flow.done


# Reverse -----------------------------------------------------------------------------------------


def test_oversize_is_dropped_and_counted(make_rig: Callable[..., Rig]) -> None:
    """Case 37: the relay would end the flow for it (section 5.7)."""
    rig = make_rig(limits=Limits(udp_datagram_bytes=100))
    user, flow, local = rig.open_flow()
    for size in (101, 100, 30_000, 1):
        local.send(bytes(size))
    rig.run()
    assert [len(frame) for frame in user.frames] == [100, 1]
    assert flow.losses() == {"oversize": 2}
    assert user.reason is None


def test_reverse_datagrams_cost_credits(rig: Rig) -> None:
    """Without one the kernel keeps them; nothing is sent that is not paid for, or in vain."""
    user = User(takes=False)
    _, flow, local = rig.open_flow(user=user, credits=3)
    for number in range(5):
        local.send(b"%d" % number)
    rig.run()
    assert user.frames == [b"0", b"1", b"2"]
    flow.stream.granted(1)
    rig.run()
    assert user.frames == [b"0", b"1", b"2", b"3"]
    user.stream.end()
    rig.run()
    assert flow.done
    assert flow.losses() == {}


def test_a_full_link_is_waited_for(rig: Rig) -> None:
    rig.link.full = True
    user, _, local = rig.open_flow()
    local.send(b"x")
    rig.run()
    assert user.frames == []
    rig.link.room.set()
    rig.run()
    assert user.frames == [b"x"], "it was its turn, full or not"


def test_what_the_kernel_dropped_is_counted(rig: Rig) -> None:
    """Nobody reads while there are no credits; what then overflows is known at the end."""
    service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    service.bind(("127.0.0.1", 0))
    target = dial_udp(f"127.0.0.1:{service.getsockname()[1]}", rig.context.buffer)
    _, flow, _ = rig.open_flow(b"x", answer=target, user=User(takes=False), credits=1)
    _, peer = service.recvfrom(100)
    for _ in range(2000):
        service.sendto(bytes(1000), peer)
    rig.run()
    lost = flow.losses()["overflow"]
    assert 0 < lost < 2000
    flow.finish(Reason.SHUTDOWN, "agent", "")
    assert rig.closed().dropped == lost
    assert rig.context.counters.datagrams_dropped["overflow"] == lost
    service.close()


# Too many ----------------------------------------------------------------------------------------


def test_the_longest_unused_flow_makes_room(make_rig: Callable[..., Rig]) -> None:
    """Both directions count as use."""
    rig = make_rig(limits=Limits(udp_flows=3))
    flows = [rig.open_flow() for _ in range(3)]
    flows[0][0].stream.send(b"used")
    rig.run()
    flows[1][2].send(b"used")
    rig.run()
    flows.append(rig.open_flow())
    assert [flow.done for _, flow, _ in flows] == [False, False, True, False]
    closed = rig.closed()
    assert (closed.reason, closed.ended_by) == ("buffer_full", "agent")
    assert closed.error == "the longest unused of 3 flows"
    assert rig.context.counters.flows_evicted == 1
    assert flows[2][0].reason == "buffer_full"


def test_a_flow_may_be_evicted_before_it_has_begun(make_rig: Callable[..., Rig]) -> None:
    """A burst of new users in one read of the session."""
    rig = make_rig(limits=Limits(udp_flows=1))
    users = []
    for _ in range(3):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        rig.sockets.append(theirs)
        rig.connector.answers.append(UdpTarget(ours, "x", rig.context.buffer))
        users.append(User())
        connect = rig.pair.connect(transport="udp", hostname="udp:53")
        stream = rig.pair.relay.open(connect, users[-1])
        assert stream is not None
        users[-1].stream = stream
        stream.send(b"first")
    rig.pair.pump()
    rig.run()
    assert [user.reason for user in users] == ["buffer_full", "buffer_full", None]
    assert [flow.done for flow in rig.pumps] == [True, True, False]
