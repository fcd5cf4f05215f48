"""Whole ports: UDP flows and TCP port claims from a user through a relay to a local service."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket

from nexusg.config.model import Limits, PortMapping, UdpRoute
from nexusg.protocol.credit import UDP_WINDOW
from tests.conftest import MS
from tests.support.relayed import AMPLE_S, read_to_end


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.relay.server import DevRelay
    from tests.support.running import Running, WatchedAgent


class UdpService:
    """Answers each datagram with what ``reply`` makes of it. Use as a context."""

    def __init__(
        self, reply: Callable[[bytes], list[bytes]] = lambda data: [data], port: int = 0
    ) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self._reply = reply
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", port))
        self.port: int = self.sock.getsockname()[1]
        self.target = f"127.0.0.1:{self.port}"
        self._serving = Greenlet.spawn(self._serve)

    def __enter__(self) -> UdpService:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go down. Blocks."""
        self._serving.kill()
        self.sock.close()

    def _serve(self) -> None:
        while True:
            data, peer = self.sock.recvfrom(65536)
            self.received.append((data, peer))
            for answer in self._reply(data):
                self.sock.sendto(answer, peer)


class Setting:
    """A relay with a UDP port, an agent that claims it, and users."""

    def __init__(self, running: Running, stack: ExitStack) -> None:
        self.running = running
        self.stack = stack
        self.relay: DevRelay
        self.agent: WatchedAgent

    def start(
        self,
        target: str,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        connect_handler: Any = None,
        **relay: Any,
    ) -> None:
        """Start relay and agent, and wait until they are connected. Blocks."""
        self.relay = self.running.relay(public_udp_ports=(0,), **relay)
        [port] = self.relay.public_udp_ports
        backend = {
            "hostnames": (),
            "udp_routes": (UdpRoute(port),),
            "port_mappings": {port: PortMapping(default=target)},
        }
        options = {"connect_handler": connect_handler} if connect_handler else {}
        self.agent = self.running.connected(
            self.relay, backend=backend, settings={"limits": limits}, **options
        )

    def service(self, *args: Any, **options: Any) -> UdpService:
        """A local service."""
        return self.stack.enter_context(UdpService(*args, **options))

    def user(self) -> Any:
        """A user's socket."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.stack.callback(sock.close)
        sock.connect(("127.0.0.1", self.relay.public_udp_ports[0]))
        sock.settimeout(AMPLE_S)
        return sock


@pytest.fixture
def udp(running: Running) -> Iterator[Setting]:
    with ExitStack() as stack:
        yield Setting(running, stack)


def ask(user: Any, data: bytes) -> bytes:
    """Send a datagram and return the answer. Blocks."""
    user.send(data)
    return bytes(user.recv(65536))


def test_datagrams_keep_their_boundaries(udp: Setting) -> None:
    """And each flow is a peer of its own for the service (sections 5.7, 12)."""
    service = udp.service()
    udp.start(service.target)
    one, other = udp.user(), udp.user()
    datagrams = [b"one", b"", bytes(2048), b"x", b""]
    for user in (one, other):
        assert [ask(user, data) for data in datagrams] == datagrams
    assert [data for data, _ in service.received] == datagrams * 2
    assert len({peer for _, peer in service.received}) == 2
    (first, second) = udp.agent.named("stream.connected")
    assert (first.transport, first.target) == ("udp", service.target)
    assert first.client == f"127.0.0.1:{one.getsockname()[1]}"
    assert first.stream != second.stream
    stats = udp.agent.stats(streams=True)
    assert (stats.streams_active, stats.datagrams_dropped) == (2, {})
    assert [one.is_udp for one in stats.streams] == [True, True]


def test_ten_thousand_datagrams_on_one_flow(udp: Setting) -> None:
    """Case 35: the reference agent stalls after 65, and the whole port with it."""
    udp.start(udp.service().target)
    user, other = udp.user(), udp.user()
    total, window = 10_000, 32
    slowest_s = 0.0
    for first in range(0, total, window):
        numbers = [b"%d" % number for number in range(first, min(first + window, total))]
        for number in numbers:
            user.send(number)
        if first % (window * 32) == 0:
            asked = time.monotonic()
            assert ask(other, b"still there?") == b"still there?"
            slowest_s = max(slowest_s, time.monotonic() - asked)
        assert [user.recv(100) for _ in numbers] == numbers
    assert slowest_s < 0.5
    assert udp.agent.stats().datagrams_dropped == {}
    assert not udp.agent.named("stream.closed")


def test_a_service_that_is_down_and_comes_back(udp: Setting) -> None:
    """Case 36: the flow stays, and so does everybody else's."""
    service = udp.service()
    port = service.port
    udp.start(service.target)
    user = udp.user()
    assert ask(user, b"there") == b"there"
    service.stop()
    for _ in range(3):
        user.send(b"anyone?")
        gevent.sleep(2 * MS)
    udp.service(port=port)
    assert ask(user, b"back") == b"back"
    assert len(udp.agent.named("stream.connected")) == 1
    assert not udp.agent.named("stream.closed")
    assert udp.agent.stats().datagrams_dropped == {"refused": 3}


def test_answers_that_are_too_large(udp: Setting) -> None:
    """Case 37: dropped and counted, where the relay would have ended the flow."""
    service = udp.service(lambda data: [bytes(int(data)), b"next"])
    udp.start(service.target)
    user = udp.user()
    for size in (2049, 9000, 40_000):
        assert ask(user, b"%d" % size) == b"next"
    assert udp.agent.stats().datagrams_dropped == {"oversize": 3}
    udp.agent.stop(0)
    closed = udp.agent.wait("stream.closed")
    assert (closed.dropped, closed.dropped_by) == (3, "oversize 3")
    assert (closed.datagrams_in, closed.datagrams_out) == (3, 3)


def test_a_larger_limit(udp: Setting) -> None:
    service = udp.service(lambda data: [data * 2])
    limits = Limits(udp_datagram_bytes=20_000)
    udp.start(service.target, limits=limits, udp_max_datagram_bytes=20_000)
    assert ask(udp.user(), bytes(9000)) == bytes(18_000)


def test_too_many_flows(udp: Setting) -> None:
    """The longest unused one goes, and its user may come back in its turn."""
    udp.start(udp.service().target, limits=Limits(udp_flows=2))
    users = [udp.user() for _ in range(3)]
    for user in users:
        assert ask(user, b"x") == b"x"
    closed = udp.agent.wait("stream.closed")
    assert (closed.reason, closed.client) == (
        "buffer_full",
        f"127.0.0.1:{users[0].getsockname()[1]}",
    )
    assert ask(users[1], b"used") == b"used"
    users[0].send(b"lost with the old flow")
    assert ask(users[0], b"again") == b"again"
    assert udp.agent.stats().flows_evicted == 2
    assert udp.agent.stats().streams_active == 2


def test_a_flood_does_not_stop_the_agent(udp: Setting) -> None:
    """What the service cannot take is lost; everything else goes on, and nothing piles up."""
    service = udp.service(lambda _: [])
    udp.start(service.target)
    flooding, other = udp.user(), udp.user()
    flooding.send(b"first")
    other.send(b"first")
    udp.agent.wait("stream.connected", 2)
    longest_s = 0.0
    for _ in range(20):
        for _ in range(UDP_WINDOW):
            flooding.send(bytes(1000))
        since = time.thread_time()  # of work: how busy the machine is does not count
        gevent.sleep(MS)
        longest_s = max(longest_s, time.thread_time() - since)

    def heard() -> bool:
        other.send(b"still here")
        return any(data == b"still here" for data, _ in service.received)

    udp.agent.wait_until(heard)
    assert longest_s < 0.25
    assert udp.agent.stats().buffered_bytes == 0
    assert not udp.agent.named("stream.closed")


def test_a_connect_handler_serves_a_flow(udp: Setting) -> None:
    """With one end of a pair of datagram sockets; the other end is the program's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    requests = []

    def handler(request: Any) -> Any:
        requests.append(request)
        return ours

    udp.start("127.0.0.1:9", connect_handler=handler)
    user = udp.user()
    user.send(b"question")
    assert theirs.recv(100) == b"question"
    theirs.send(b"answer")
    assert user.recv(100) == b"answer"
    (request,) = requests
    [port] = udp.relay.public_udp_ports
    assert (request.transport, request.port, request.hostname) == ("udp", port, f"udp:{port}")
    theirs.close()


def test_the_relay_ends_an_idle_flow(udp: Setting) -> None:
    service = udp.service()
    udp.start(service.target)
    user = udp.user()
    assert ask(user, b"x") == b"x"
    [port] = udp.relay._udp
    port.reap(time.monotonic() + 30)
    closed = udp.agent.wait("stream.closed")
    assert (closed.reason, closed.ended_by) == ("normal", "user")
    assert ask(user, b"y") == b"y"
    assert len({peer for _, peer in service.received}) == 2


def test_a_graceful_stop_does_not_wait_for_idle_flows(udp: Setting) -> None:
    udp.start(udp.service().target)
    assert ask(udp.user(), b"x") == b"x"
    before = time.monotonic()
    udp.agent.stop(0)
    assert time.monotonic() - before < 2
    assert udp.agent.wait("stream.closed").reason == "shutdown"


def test_a_service_that_speaks_first(running: Running) -> None:
    """A TCP port claim, whose users say nothing: the banner is never lost (section 5.4)."""
    banner = b"220 mail.example.com ESMTP\r\n"
    relay = running.relay(sniff_timeout_s=5 * MS)
    [port] = relay.public_ports
    service = running.service(lambda sock: sock.sendall(banner))
    backend = {"hostnames": (), "tcp_ports": (port,)}
    agent = running.connected(relay, target=service.target, backend=backend)
    for _ in range(4):
        users = [running.raw_user(relay) for _ in range(25)]
        assert [read_to_end(user) for user in users] == [banner] * 25
    assert {event.hostname for event in agent.named("stream.connected")} == {f"tcp:{port}"}
