"""A flow of the development relay by itself: over a pair of protocol cores, with no socket.

What it does at a port is in ``test_udp.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from gevent import Greenlet, sleep

from nexusg.protocol.messages import Reason
from nexusg.protocol.stream import Cause
from nexusg.relay.flow import Flow
from nexusg.relay.settings import Habits, RelayConfig
from nexusg.relay.shared import Shared
from tests.conftest import MS
from tests.support.pair import Local, Pair


if TYPE_CHECKING:
    from nexusg.relay.link import Link


class Bench:
    """A flow between a pair's agent and a list of answers. It is also the flow's link."""

    def __init__(self, *, lanes: int | None = None, **config: Any) -> None:
        self.pair = Pair.established(lanes=lanes)
        self.session = self.pair.relay
        self.peer = "agent"
        self.congested = False
        self.answers: list[bytes] = []
        self.shared = Shared(RelayConfig(secret="", on_log=lambda *_: None, **config))
        self.flow = Flow(self.shared, cast("Link", self), self.answer)

    def open(self) -> Local:
        """Open the flow, and let its first datagram pass."""
        assert self.flow.open(self.pair.connect(transport="udp", hostname="udp:53"))
        self.flow.forward(b"first")
        self.pair.pump()
        [local] = self.pair.locals.values()
        assert local.frames == [b"first"]
        return local

    def flush(self) -> None:
        """A test pumps."""

    def answer(self, datagram: memoryview) -> None:
        if datagram == b"kernel full":
            raise BlockingIOError
        self.answers.append(bytes(datagram))


def test_answers() -> None:
    bench = Bench()
    local = bench.open()
    for datagram in (b"", b"one", b"kernel full", bytes(2048)):
        local.stream.send_datagram(datagram)
    bench.pair.pump()
    assert bench.answers == [b"", b"one", bytes(2048)]
    for _ in range(4):
        local.stream.send_datagram(b"x")
    bench.pair.pump()
    assert local.stream.window.available == 64, "each costs a credit, which comes back"


def test_too_large_an_answer() -> None:
    bench = Bench(udp_max_datagram_bytes=100)
    local = bench.open()
    local.stream.send_datagram(bytes(101))
    bench.pair.pump()
    assert (bench.flow.over, local.cause) == (False, None)
    local.stream.send_datagram(b"x")
    bench.pair.pump()
    assert (bench.flow.over, local.cause) == (True, Cause.USER)
    assert bench.answers == []


def starve(bench: Bench) -> Greenlet[..., None]:
    """Send without the agent ever granting more; the datagram that waits."""
    bench.pair.agent.streams[next(iter(bench.pair.locals))].granter.held = True
    stream = bench.flow._stream
    while stream.window.available:
        bench.flow.forward(b"x")
    waiting = Greenlet.spawn(bench.flow.forward, b"one too many")
    sleep(0)
    assert not waiting.ready()
    return waiting


def test_a_credit_ends_the_wait() -> None:
    bench = Bench()
    local = bench.open()
    waiting = starve(bench)
    bench.flow._stream.granted(8)
    waiting.get(timeout=1)
    bench.pair.pump()
    assert local.frames[-1] == b"one too many"


def test_the_agents_disconnect_does_not_end_the_wait() -> None:
    bench = Bench()
    local = bench.open()
    waiting = starve(bench)
    local.stream.abort(Reason.NORMAL)
    bench.pair.pump()
    sleep(2 * MS)
    assert bench.flow.over
    assert not waiting.ready()
    bench.pair.relay.lost()
    waiting.get(timeout=1)


def test_the_end_of_the_session_ends_the_wait() -> None:
    bench = Bench()
    bench.open()
    waiting = starve(bench)
    bench.pair.relay.lost()
    waiting.get(timeout=1)
    assert bench.flow.over


def test_waiting_too_long_ends_the_flow() -> None:
    bench = Bench(idle_timeout_s=5 * MS)
    local = bench.open()
    starve(bench).get(timeout=1)
    bench.pair.pump()
    assert (bench.flow.over, local.cause) == (True, Cause.USER)
    bench.flow.end()
    bench.flow.forward(b"lost")


def test_congestion() -> None:
    bench = Bench()
    local = bench.open()
    bench.congested = True
    bench.flow.forward(b"lost")
    bench.congested = False
    bench.flow.forward(b"second")
    bench.pair.pump()
    assert local.frames == [b"first", b"second"]


def test_full_lanes() -> None:
    bench = Bench(lanes=1)
    bench.pair.collect()
    connect = bench.pair.connect(transport="udp")
    assert bench.flow.open(connect)
    bench.flow.forward(b"lost, and so is the news")
    assert bench.flow.over
    assert not Flow(bench.shared, cast("Link", bench), bench.answer).open(connect)


@pytest.mark.parametrize("loses", [False, True])
def test_disconnects_can_be_lost(loses: bool) -> None:
    bench = Bench(habits=Habits(lose_disconnects=loses))
    local = bench.open()
    bench.flow.end()
    bench.pair.pump()
    assert (local.cause is None) is loses
