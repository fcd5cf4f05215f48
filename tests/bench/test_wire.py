"""Bodies that prove themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gevent import Greenlet, socket

from bench import Failed, WrongBytes, wire


if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize("size", [0, 1, wire.PERIOD_BYTES, 3 * wire.PERIOD_BYTES + 5])
def test_the_pattern_arrives(pair: Pair, size: int) -> None:
    near, far = pair
    sending = Greenlet.spawn(wire.send_pattern, near, size)
    counted: list[int] = []
    wire.Reader(far).pattern(size, counted.append)
    sending.get()
    assert sum(counted) == size


def test_a_wrong_byte_is_noticed(pair: Pair) -> None:
    near, far = pair
    wire.send_pattern(near, 5000)
    near.sendall(b"\0")
    with pytest.raises(WrongBytes, match="behind the first"):
        wire.Reader(far, 1000).pattern(5001)


def test_heads_and_bodies_take_turns(pair: Pair) -> None:
    near, far = pair
    near.sendall(wire.answer(3) + b"abc" + wire.request("host", "/up", 2) + b"de")
    near.close()
    reader = wire.Reader(far, 100)
    assert wire.length(reader.head()) == 3
    assert reader.body(3) == b"abc"
    assert wire.length(reader.head()) == 2
    assert reader.body(2) == b"de"
    assert reader.head() == b""


def test_an_early_end_is_noticed(pair: Pair) -> None:
    near, far = pair
    near.sendall(b"HTTP/1.1")
    near.close()
    with pytest.raises(Failed, match="within a head"):
        wire.Reader(far).head()
    with pytest.raises(Failed, match="within a body"):
        wire.Reader(far).body(1)


def test_requests() -> None:
    assert wire.request("a.test", "/small", close=True).split(b"\r\n") == [
        b"GET /small HTTP/1.1",
        b"Host: a.test",
        b"Connection: close",
        b"",
        b"",
    ]
    assert wire.length(b"GET / HTTP/1.1\r\nHost: a.test") == 0
