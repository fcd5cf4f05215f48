"""Targets over foreign objects: the contract, and objects that behave badly."""

from __future__ import annotations

from typing import Any

import pytest
from gevent import Greenlet
from gevent.event import Event

from nexusg.targets.blocking import BlockingTarget
from tests.targets.conformance import TargetContract, read, turns
from tests.targets.pairs import unix_pair


class Channel:
    """Something like a paramiko channel: bytes only, and nothing but these methods."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def recv(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        return data

    def send(self, data: bytes) -> int:
        assert isinstance(data, bytes)
        sent: int = self._sock.send(data)
        return sent

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()


class TestChannel(TargetContract):
    takes_at_once = False

    def connect(self) -> tuple[BlockingTarget, Any]:
        ours, theirs = unix_pair()
        return BlockingTarget(Channel(ours), "handler:ssh"), theirs


class Odd:
    """Returns what it is told to, raises it, or waits for ever."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.closed = 0

    def recv(self, size: int) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is Event:
            Event().wait()
        return self.answer

    def send(self, data: bytes) -> Any:
        return self.recv(0)

    def close(self) -> None:
        self.closed += 1
        if isinstance(self.answer, Exception):
            raise self.answer


def test_what_was_received_stays_for_the_next_read() -> None:
    target = BlockingTarget(Odd(bytearray(b"hello")), "x")
    assert target.try_read(100) is None
    target.wait_readable()
    target.wait_readable()
    found: list[Any] = [target.try_read(limit) for limit in (3, 100, 100)]
    assert found == [b"hel", b"lo", None]
    target.close()


def test_the_end_of_file_is_kept() -> None:
    target = BlockingTarget(Odd(b""), "x")
    target.wait_readable()
    found: list[Any] = [target.try_read(100), target.try_read(100)]
    assert found == [b"", b""]
    target.close()


@pytest.mark.parametrize("answer", [None, 0, -1, b"x"])
def test_a_send_that_makes_no_progress_is_an_error(answer: Any) -> None:
    target = BlockingTarget(Odd(answer), "x")
    with pytest.raises(OSError, match=r"send\(\) of Odd returned") as caught:
        target.send(b"data")
    assert repr(answer) in str(caught.value)


@pytest.mark.parametrize("answer", [None, "text", 5])
def test_a_receive_without_bytes_is_an_error(answer: Any) -> None:
    target = BlockingTarget(Odd(answer), "x")
    with pytest.raises(OSError, match=rf"recv\(\) of Odd returned {type(answer).__name__}"):
        target.wait_readable()


def test_what_is_raised_becomes_an_os_error() -> None:
    target = BlockingTarget(Odd(EOFError("channel is gone")), "x")
    with pytest.raises(OSError, match=r"recv\(\) of Odd failed: EOFError: channel is gone"):
        target.wait_readable()
    with pytest.raises(OSError, match=r"send\(\) of Odd failed"):
        target.send(b"x")


def test_an_os_error_stays_what_it_is() -> None:
    target = BlockingTarget(Odd(ConnectionResetError(104, "reset")), "x")
    with pytest.raises(ConnectionResetError, match="reset"):
        target.wait_readable()


@pytest.mark.parametrize("error", [OSError("no"), ValueError("no")])
def test_close_never_fails_and_happens_once(error: Exception) -> None:
    odd = Odd(error)
    target = BlockingTarget(odd, "x")
    target.close()
    target.close()
    assert odd.closed == 1


def test_without_shutdown_nothing_is_half_closed() -> None:
    target = BlockingTarget(Odd(b""), "x")
    target.shutdown_write()
    assert target.unsent_bytes() == 0


def test_close_releases_whoever_the_object_leaves_waiting() -> None:
    target = BlockingTarget(Odd(Event), "x")
    waiting: list[Any] = [
        Greenlet.spawn(pytest.raises, OSError, read, target),
        Greenlet.spawn(pytest.raises, OSError, target.send, b"x"),
    ]
    turns()
    target.close()
    for greenlet in waiting:
        assert "was closed" in str(greenlet.get().value)
