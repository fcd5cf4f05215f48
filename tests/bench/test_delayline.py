"""The delay line, as a process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from gevent import Greenlet, socket

from bench import wire
from bench.processes import program


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DELAY_S = 0.03
SIZE = 2_000_000


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through a delay line."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {"delay_s": DELAY_S, "targets": [listener.getsockname()]}
    with listener, program("delayline", settings, tmp_path) as line:
        [port] = line.read_answer()["ports"]
        with socket.create_connection(("127.0.0.1", port)) as near:
            far, _ = listener.accept()
            with far:
                yield near, far


@pytest.mark.parametrize("forward", [True, False])
def test_everything_arrives_later_and_in_order(
    ends: tuple[socket.socket, socket.socket], forward: bool
) -> None:
    sender, receiver = ends if forward else reversed(ends)
    started = time.monotonic()
    sending = Greenlet.spawn(wire.send_pattern, sender, SIZE)
    first, reader = receiver.recv(1, socket.MSG_PEEK), wire.Reader(receiver)
    took_s = time.monotonic() - started
    reader.pattern(SIZE)
    sending.get()
    assert first
    assert took_s >= DELAY_S


def test_the_end_is_delayed_too(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    started = time.monotonic()
    assert far.recv(10) == b"last"
    assert far.recv(10) == b""
    far.sendall(b"answer")
    far.close()
    assert near.recv(10) == b"answer"
    assert near.recv(10) == b""
    assert time.monotonic() - started >= DELAY_S
