"""The memory of streams that ended: bounded in number and in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexusg.protocol.tombstones import MAX_TOMBSTONES, TOMBSTONE_S, Tombstones


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_remembered_for_a_minute() -> None:
    tombstones = Tombstones()
    assert not tombstones.holds(key(1), 100.0)
    tombstones.add(key(1), 100.0)
    assert tombstones.holds(key(1), 100.0)
    assert tombstones.holds(key(1), 100.0 + TOMBSTONE_S - 0.001)
    assert not tombstones.holds(key(1), 100.0 + TOMBSTONE_S)


def test_old_ones_make_room_by_themselves() -> None:
    tombstones = Tombstones()
    for number in range(10):
        tombstones.add(key(number), float(number))
    tombstones.add(key(99), 5.0 + TOMBSTONE_S)
    assert len(tombstones) == 5
    assert not tombstones.holds(key(5), 5.0 + TOMBSTONE_S)
    assert tombstones.holds(key(6), 5.0 + TOMBSTONE_S)


def test_adding_again_starts_anew() -> None:
    tombstones = Tombstones()
    tombstones.add(key(1), 0.0)
    tombstones.add(key(2), 1.0)
    tombstones.add(key(1), 2.0)
    assert len(tombstones) == 2
    tombstones.add(key(3), 1.0 + TOMBSTONE_S)
    assert tombstones.holds(key(1), 1.0 + TOMBSTONE_S)
    assert not tombstones.holds(key(2), 1.0 + TOMBSTONE_S)


def test_the_oldest_go_when_there_are_too_many() -> None:
    tombstones = Tombstones()
    for number in range(MAX_TOMBSTONES + 3):
        tombstones.add(key(number), 7.0)
    assert len(tombstones) == MAX_TOMBSTONES
    assert not tombstones.holds(key(2), 7.0)
    assert tombstones.holds(key(3), 7.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 50)), max_size=30))
def test_it_agrees_with_a_plain_dictionary(steps: list[tuple[int, float]]) -> None:
    tombstones, plain, now = Tombstones(), dict[bytes, float](), 0.0
    for number, pause in steps:
        now += pause
        tombstones.add(key(number), now)
        plain[key(number)] = now + TOMBSTONE_S
        for other in range(6):
            assert tombstones.holds(key(other), now) is (plain.get(key(other), 0) > now)
        assert len(tombstones) == sum(until > now for until in plain.values())
