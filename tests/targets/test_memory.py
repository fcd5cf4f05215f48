"""The pair in memory: the contract, and its likeness to sockets."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet
from gevent.socket import SHUT_RD, SHUT_RDWR, SHUT_WR
from hypothesis import given
from hypothesis import strategies as st

from nexusg.targets.memory import LIMIT_BYTES, MemorySocket, memory_pair
from tests.targets.conformance import TargetContract, turns


if TYPE_CHECKING:
    from collections.abc import Callable


class TestMemory(TargetContract):
    def connect(self) -> tuple[MemorySocket, MemorySocket]:
        return memory_pair()


def test_it_looks_like_a_socket() -> None:
    one, two = memory_pair()
    assert (one.fileno(), one.getpeername(), one.gettimeout()) == (-1, "memory", None)
    one.sendall(b"hello")
    buffer = bytearray(4)
    assert (two.recv_into(buffer), bytes(buffer)) == (4, b"hell")
    assert (two.recv_into(buffer, 2), bytes(buffer)) == (1, b"oell")


@pytest.mark.parametrize("limit", [1, 100])
def test_a_direction_holds_no_more_than_its_limit(limit: int) -> None:
    one, two = memory_pair(limit)
    assert one.try_send(bytes(1000)) == limit
    assert one.try_send(b"x") == 0
    assert two.recv(1) == b"\0"
    assert one.try_send(b"xy") == 1
    assert two.try_send(bytes(1000)) == limit, "the other direction has its own"


def test_the_default_limit() -> None:
    assert memory_pair()[0].try_send(bytes(2 * LIMIT_BYTES)) == LIMIT_BYTES


def test_a_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        memory_pair(0)


def test_a_timeout_of_zero_never_waits() -> None:
    one, _ = memory_pair(10)
    one.setblocking(False)
    with pytest.raises(BlockingIOError) as caught:
        one.recv(1)
    assert caught.value.errno == errno.EAGAIN
    assert one.send(bytes(20)) == 10
    with pytest.raises(BlockingIOError):
        one.send(b"x")
    one.setblocking(True)
    assert one.gettimeout() is None


def test_a_timeout_ends_a_wait() -> None:
    one, _ = memory_pair(1)
    one.settimeout(0.001)
    with pytest.raises(TimeoutError):
        one.recv(1)
    with pytest.raises(TimeoutError):
        one.sendall(b"xy")


@pytest.mark.parametrize(
    ("how", "writes", "reads"),
    [(SHUT_WR, False, True), (SHUT_RD, True, False), (SHUT_RDWR, False, False)],
)
def test_shutdown(how: int, writes: bool, reads: bool) -> None:
    one, two = memory_pair()
    one.shutdown(how)
    for sender, receiver, works in ((one, two, writes), (two, one, reads)):
        if works:
            sender.sendall(b"x")
            assert receiver.recv(9) == b"x"
        else:
            with pytest.raises(BrokenPipeError):
                sender.sendall(b"x")
            assert receiver.recv(9) == b""


def test_what_a_closed_end_has_not_read_is_lost() -> None:
    one, two = memory_pair()
    one.sendall(b"lost")
    two.sendall(b"kept")
    two.close()
    with pytest.raises(BrokenPipeError):
        one.send(b"x")
    assert one.recv(9) == b"kept"
    assert one.recv(9) == b""


def test_a_waiting_sender_learns_that_the_other_end_closed() -> None:
    one, two = memory_pair()
    sending = Greenlet.spawn(pytest.raises, BrokenPipeError, one.sendall, bytes(LIMIT_BYTES + 1))
    turns()
    two.close()
    sending.get()


def test_a_file_reads_lines_and_leaves_the_end_open() -> None:
    one, two = memory_pair()
    one.sendall(b"first\nsecond\nrest")
    one.shutdown(SHUT_WR)
    file = two.makefile("rb", -1)
    assert (file.readline(), file.read(3), file.read(), file.read(1)) == (
        b"first\n",
        b"sec",
        b"ond\nrest",
        b"",
    )
    file.close()
    two.sendall(b"still open")
    assert one.recv(10) == b"still open"


def test_a_file_waits_for_what_is_asked_of_it() -> None:
    one, two = memory_pair(4)
    file = two.makefile(buffering=2)
    reading = Greenlet.spawn(file.read, 10)
    one.sendall(b"0123456789")
    assert reading.get() == b"0123456789"


@pytest.mark.parametrize(("mode", "buffering"), [("wb", -1), ("r", -1), ("rb", 0)])
def test_other_files_are_refused(mode: str, buffering: int) -> None:
    with pytest.raises(ValueError, match="only a buffered file to read bytes"):
        memory_pair()[0].makefile(mode, buffering)


def test_sendall_of_several_greenlets_stays_apart() -> None:
    one, two = memory_pair(10)
    texts = [letter * 25 for letter in (b"a", b"b", b"c")]
    for text in texts:
        Greenlet.spawn(one.sendall, text)
    assert two.makefile().read(75) == b"".join(texts)


def test_a_killed_sendall_gives_way() -> None:
    one, two = memory_pair(10)
    first, second = (Greenlet.spawn(one.sendall, letter * 25) for letter in (b"a", b"b"))
    turns()
    first.kill()
    assert two.makefile().read(35) == b"a" * 10 + b"b" * 25
    second.get()


@pytest.mark.parametrize("end", [MemorySocket.shutdown_write, MemorySocket.close])
def test_it_says_whether_more_may_come(end: Callable[[MemorySocket], None]) -> None:
    one, two = memory_pair()
    one.sendall(b"x")
    assert not two.ended
    end(one)
    assert two.ended
    assert two.recv(1) == b"x"


operations = st.lists(st.tuples(st.sampled_from(["put", "take"]), st.integers(0, 12)), max_size=60)


@given(operations, st.integers(1, 10))
def test_bytes_come_out_as_they_went_in(steps: list[tuple[str, int]], limit: int) -> None:
    one, two = memory_pair(limit)
    counter, sent, received = 0, b"", b""
    for step, count in steps:
        if step == "put":
            data = bytes((counter + i) % 256 for i in range(count))
            taken = one.try_send(data)
            assert taken == min(count, limit - (len(sent) - len(received)))
            sent += data[:taken]
            counter += taken
        else:
            data_read: Any = two.try_read(count + 1)
            assert data_read is None or data_read
            received += data_read or b""
        assert sent.startswith(received)
        assert one._outbound.readable.is_set() == (len(sent) > len(received))
        assert one._outbound.writable.is_set() == (len(sent) - len(received) < limit)
