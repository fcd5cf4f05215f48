"""Waiting for sockets that are not gevent's, and being told when they are closed."""

from __future__ import annotations

import errno
import socket as stdlib

import gevent
import pytest
from gevent import Greenlet

from nexusg.transport.waiting import READ, WRITE, release, rouse, wait, watcher
from tests.conftest import MS


AMPLE_S = 5.0


def test_it_waits_until_there_is_something_to_read() -> None:
    ours, theirs = stdlib.socketpair()
    with ours, theirs:
        reading = watcher(ours, READ, "closed")
        waiting = Greenlet.spawn(wait, reading)
        gevent.sleep(MS)
        assert not waiting.ready()
        theirs.send(b"x")
        waiting.get(timeout=AMPLE_S)
        wait(reading)  # again, with the same watcher, and at once
        release(reading, "closed")


def test_a_socket_that_can_be_written() -> None:
    ours, theirs = stdlib.socketpair()
    with ours, theirs:
        writing = watcher(ours, WRITE, "closed")
        wait(writing)
        release(writing, "closed")


def test_a_release_ends_the_wait() -> None:
    ours, theirs = stdlib.socketpair()
    with ours, theirs:
        reading = watcher(ours, READ, "unused")
        waiting = Greenlet.spawn(_caught, reading)
        gevent.sleep(0)
        release(reading, "it was closed")
        error = waiting.get(timeout=AMPLE_S)
        assert (error.errno, error.strerror) == (errno.EBADF, "it was closed")


def test_a_wait_can_be_ended_without_an_error() -> None:
    ours, theirs = stdlib.socketpair()
    with ours, theirs:
        reading = watcher(ours, READ, "unused")
        rouse(reading)  # nobody waits
        waiting = Greenlet.spawn(wait, reading)
        gevent.sleep(0)
        rouse(reading)
        rouse(reading)
        waiting.get(timeout=AMPLE_S)
        waiting = Greenlet.spawn(wait, reading)
        gevent.sleep(MS)
        assert not waiting.ready(), "the second was for the wait before"
        theirs.send(b"x")
        waiting.get(timeout=AMPLE_S)
        release(reading, "unused")


def test_a_closed_socket_cannot_be_waited_for() -> None:
    sock = stdlib.socket()
    sock.close()
    with pytest.raises(OSError, match="it was closed"):
        watcher(sock, READ, "it was closed")


def _caught(reading: object) -> OSError:
    with pytest.raises(OSError, match=r"\.*") as caught:
        wait(reading)  # type: ignore[arg-type]  # a watcher
    return caught.value
