"""Reading the head of a response, and never more than is allowed."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import DialFailed
from nexusg.transport.httphead import READ_BYTES, ResponseHead, read_head


if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_socket_left")

HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
LINES = ["HTTP/1.1 200 OK", "A: b"]


class Pieces:
    """A socket that has these pieces to give, and then the end."""

    def __init__(self, *pieces: bytes) -> None:
        self.left = list(pieces)
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        return self.left.pop(0) if self.left else b""


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def read(sock: Any, limit_bytes: int = 1000) -> ResponseHead:
    return read_head(sock, limit_bytes, place="a.test:80", code="proxy")


@pytest.mark.parametrize("at", range(1, len(HEAD)))
def test_split_anywhere(at: int) -> None:
    assert read(Pieces(HEAD[:at], HEAD[at:] + b"rest")) == (200, LINES, b"rest")


def test_byte_by_byte() -> None:
    assert read(Pieces(*(bytes([byte]) for byte in HEAD))) == (200, LINES, b"")


@given(
    lines=st.lists(st.binary(min_size=1, max_size=8).map(lambda x: x.replace(b"\n", b"."))),
    end=st.sampled_from([b"\r\n", b"\n"]),
    rest=st.binary(max_size=20),
    cuts=st.lists(st.integers(1, 60), max_size=5),
)
def test_nothing_is_lost(lines: list[bytes], end: bytes, rest: bytes, cuts: list[int]) -> None:
    lines = [b"HTTP/1.1 200", *(line for line in lines if line != b"\r")]
    data = end.join([*lines, b"", b""]) + rest
    pieces = [data[a:b] for a, b in pairwise([0, *sorted(set(cuts)), len(data)])]
    head = read(Pieces(*(piece for piece in pieces if piece)))
    stripped = [line.decode("latin-1").strip() for line in lines]
    assert head.lines == [line for line in stripped if line]
    assert head.rest == rest[: len(head.rest)], "in order, as far as it was read"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 101 Switching Protocols", 101),
        (b"HTTP/1.0 200", 200),
        (b"HTTP/2.0 599 x y", 599),
        (b"HTTP/1.1 404  ", 404),
    ],
)
def test_statuses(line: bytes, status: int) -> None:
    assert read(Pieces(line + b"\r\n\r\n")).status == status


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 abc",
        b"HTTP/1.1 42 x",
        b"HTTP/1.1 1011 x",
        b"HTTP/1.1 -50 x",
        b"HTTP/1.1 600 x",
        b"HTTP/1.1 1_1 x",
        b"HTTP/1.1 " + "١٠١".encode(),
        b"HTTP/ 101 x",
        b"HTTP/1.1\t101 x",
        b"HTTP/1.1 " + b"9" * 500,
    ],
)
def test_status_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(DialFailed, match="which is not HTTP"):
        read(Pieces(line + b"\r\n\r\n"))


def test_the_end_before_an_answer() -> None:
    with pytest.raises(
        DialFailed, match=r"a\.test:80 closed the connection without an answer"
    ) as at:
        read(Pieces())
    assert at.value.code == "proxy"


def test_the_end_in_an_answer() -> None:
    with pytest.raises(DialFailed, match="closed the connection in the middle of its answer"):
        read(Pieces(HEAD[:-1]))


@pytest.mark.parametrize("data", [b"SSH-2.0-x", b"\x15\x03\x01\x00\x02", b"HTTQ", b"\r\n"])
def test_something_else_is_noticed_at_once(data: bytes) -> None:
    pieces = Pieces(data)
    with pytest.raises(DialFailed, match="which is not HTTP"):
        read(pieces)
    assert len(pieces.asked) == 1


def test_little_of_something_else_is_quoted() -> None:
    with pytest.raises(DialFailed) as caught:
        read(Pieces(b"x" * 500))
    assert len(str(caught.value)) < 100


def test_the_limit_is_exact() -> None:
    assert read(Pieces(HEAD), len(HEAD)) == (200, LINES, b"")
    with pytest.raises(DialFailed, match=f"sent more than {len(HEAD) - 1} bytes of header"):
        read(Pieces(HEAD[:-1], HEAD[-1:]), len(HEAD) - 1)


def test_no_more_is_asked_for_than_the_limit_allows() -> None:
    pieces = Pieces(b"HTTP/" + b"x" * (READ_BYTES - 5), b"x" * 100)
    with pytest.raises(DialFailed):
        read(pieces, READ_BYTES + 100)
    assert pieces.asked == [READ_BYTES, 100]


def test_an_endless_head_leaves_turns_to_others(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    endless = Greenlet.spawn(theirs.sendall, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000_000)
    ticking = Greenlet.spawn(others)
    gevent.sleep(0)
    with pytest.raises(DialFailed, match="bytes of header"):
        read(ours, 64 * 1024)
    assert turns >= 10
    gevent.killall([endless, ticking])
