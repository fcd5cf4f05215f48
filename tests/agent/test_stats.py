"""The figures of a running agent (PROTOCOL.md section 13)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.agent.stats import Counters, DeviceStats, SessionStats, Stats, stream_stats, totals
from nexusg.config.model import Limits
from nexusg.protocol.messages import Reason
from tests.support.rig import Rig


if TYPE_CHECKING:
    from tests.support.peer import Bench


def snapshot(bench: Bench, slots: tuple[SessionStats, ...] = (), **options: Any) -> Stats:
    """The totals of the bench's one session."""
    context = bench.context
    live = [bench.session] if bench.session.opened else []
    usual: dict[str, Any] = {
        "streams": (),
        "buffered_bytes": context.budget.used_bytes,
        "events_dropped": 0,
    }
    return totals(context.counters, context.pumps, live, slots, **{**usual, **options})


def test_before_anything_has_happened(bench: Bench) -> None:
    stats = snapshot(bench)
    assert stats.at == pytest.approx(time.time(), abs=60)
    figures = {name: getattr(stats, name) for name in Stats.__slots__ if name != "at"}
    assert not any(figures.values()), figures


def test_streams_are_counted_by_their_state(bench: Bench) -> None:
    bench.connect()
    bench.open(b"one")
    bench.wait("stream.connected")
    bench.connector.gate.clear()
    bench.open(b"waits")
    bench.until(lambda: bench.context.counters.streams_opened == 2)
    bench.until(lambda: bench.context.budget.used_bytes)
    stats = snapshot(bench)
    assert (stats.streams_active, stats.streams_pending, stats.streams_total) == (1, 1, 2)
    assert (stats.streams_queued, stats.buffered_bytes) == (1, 5)
    assert (stats.streams_paused, stats.streams_dropped) == (0, 0)
    for pump in list(bench.context.pumps):
        pump.finish(Reason.SHUTDOWN, "agent", "")
    bench.connector.gate.set()


def test_ends_are_counted_by_reason(bench: Bench) -> None:
    counters = bench.context.counters
    counters.closed.update(normal=3, timeout=2, dial_failed=1)
    counters.dial_failures += 1
    stats = snapshot(bench, events_dropped=7)
    assert stats.streams_closed == {"normal": 3, "timeout": 2, "dial_failed": 1}
    assert (stats.streams_dropped, stats.dial_failures, stats.events_dropped) == (3, 1, 7)


def test_bytes_of_live_and_ended_sessions_add_up(bench: Bench) -> None:
    """Nothing is counted twice, nor lost, when a session ends."""
    session = bench.connect()
    bench.context.counters.bytes_received = 1_000_000
    before = snapshot(bench)
    assert before.bytes_received == 1_000_000 + session.link.bytes_in
    assert before.bytes_sent == session.link.bytes_out > 0
    assert before.messages_sent == 2
    session.core.wire.send_binary(b"unsent")
    assert snapshot(bench).unsent_bytes == session.core.wire.pending_bytes > 0
    bench.peer.hang_up()
    bench.end()
    after = snapshot(bench)
    assert after.bytes_received == 1_000_000 + session.link.bytes_in
    assert after.messages_received == session.core.messages_in
    assert after.bytes_sent >= before.bytes_sent
    assert after.unsent_bytes == 0


def test_connects_are_counted_and_dated() -> None:
    counters = Counters()
    counters.connected()
    counters.connected()
    assert counters.connects == 2
    assert counters.last_connected_at == pytest.approx(time.time(), abs=60)


def test_one_stream(bench: Bench) -> None:
    bench.connect()
    _, local = bench.open(b"hello")
    bench.wait("stream.connected")
    local.send(b"hi")
    (pump,) = bench.context.pumps
    bench.until(lambda: pump.stream.bytes_out)
    stats = stream_stats(pump, bench.context.clock() + 10)
    assert stats.client_id == "00000000-0000-0000-0000-000000000001"
    assert (stats.backend, stats.session) == ("web", "s1")
    assert (stats.hostname, stats.client) == ("app.example.com", "192.0.2.7:50000")
    assert (stats.target, stats.state) == ("memory", "open")
    assert (stats.bytes_in, stats.bytes_out, stats.buffered_bytes) == (5, 2, 0)
    assert not stats.paused
    assert not stats.is_udp
    assert stats.connected_for_s >= 10
    assert stats.idle_for_s >= 10
    assert snapshot(bench, streams=(stats,)).streams == (stats,)
    local.close()
    bench.wait("stream.closed")


def test_lost_datagrams_of_live_and_ended_flows_add_up() -> None:
    rig = Rig(Limits(udp_datagram_bytes=10, udp_flows=2))
    flows = []
    for _ in range(3):  # the first one has to go
        _, flow, local = rig.open_flow()
        local.send(bytes(11))
        rig.run()
        flows.append(flow)
    totals_now = totals(
        rig.context.counters,
        rig.context.pumps,
        [],
        (),
        streams=(),
        buffered_bytes=0,
        events_dropped=0,
    )
    assert totals_now.datagrams_dropped == {"oversize": 3}
    assert totals_now.flows_evicted == 1
    stats = stream_stats(flows[-1], rig.context.clock())
    assert (stats.is_udp, stats.datagrams_dropped, stats.target) == (True, 1, "service:53")
    rig.stop()


def test_slots_are_listed(bench: Bench) -> None:
    slot = SessionStats("web", "wss://r", "", "disconnected", 0.0, 0, 0)
    assert snapshot(bench, (slot,)).sessions == (slot,)


def test_devices_are_listed(bench: Bench) -> None:
    device = DeviceStats("web", "id", "slug.test", "verified", 1, 0.1, 2, 3.0, "")
    assert snapshot(bench, devices=(device,)).devices == (device,)
