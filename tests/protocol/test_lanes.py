from __future__ import annotations

from nexusg.protocol.lanes import REFILL_BYTES, Lane, Lanes
from nexusg.protocol.wire import Wire
from nexusg.protocol.wsframes import BINARY, TEXT, FrameParser


def make(limit: int) -> tuple[Wire, Lanes]:
    wire = Wire(is_client=False, entropy=bytes)
    return wire, Lanes(wire, limit)


def written(wire: Wire) -> list[tuple[int, bytes]]:
    parser = FrameParser(masked=False)
    return [(opcode, bytes(payload)) for opcode, payload in parser.feed(wire.take_output())]


def test_a_full_lane_refuses_and_the_other_does_not() -> None:
    _, lanes = make(2)
    assert [lanes.put(Lane.DATA, b"%d" % n) for n in range(3)] == [True, True, False]
    assert not lanes.room(Lane.DATA)
    assert lanes.put(Lane.CONTROL, "text")
    assert len(lanes) == 3


def test_refill_takes_turns_and_keeps_the_order_within_a_lane() -> None:
    wire, lanes = make(8)
    for n in range(3):
        lanes.put(Lane.DATA, b"d%d" % n)
    lanes.put(Lane.CONTROL, b"c0")
    lanes.put(Lane.CONTROL, "c1")
    lanes.refill()
    assert written(wire) == [
        (BINARY, b"d0"),
        (BINARY, b"c0"),
        (BINARY, b"d1"),
        (TEXT, b"c1"),
        (BINARY, b"d2"),
    ]
    assert not lanes


def test_refill_stops_while_the_output_is_not_written() -> None:
    wire, lanes = make(8)
    for _ in range(4):
        lanes.put(Lane.DATA, bytes(REFILL_BYTES // 2))
    lanes.refill()
    lanes.refill()
    assert len(lanes) == 2
    assert len(written(wire)) == 2
    lanes.refill()
    assert len(lanes) == 0


def test_clear_forgets() -> None:
    wire, lanes = make(8)
    lanes.put(Lane.DATA, b"d")
    lanes.put(Lane.CONTROL, b"c")
    lanes.clear()
    lanes.refill()
    assert not wire.pending_bytes
