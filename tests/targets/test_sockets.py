"""Socket targets: the contract over each kind of socket, and what is peculiar to sockets."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket, ssl
from gevent.event import Event
from gevent.monkey import get_original

from nexusg.targets.sockets import CROSSED_S, RECORD_BYTES, SocketTarget, TlsSocketTarget
from tests.conftest import MS
from tests.targets.conformance import (
    BUFFER,
    PAYLOAD,
    TargetContract,
    read,
    read_exactly,
    receive,
    send_all,
    send_now,
    turns,
)
from tests.targets.pairs import tcp_pair, tls_pair, unix_pair


if TYPE_CHECKING:
    from tests.targets.pairs import Contexts


class TestTcp(TargetContract):
    def connect(self) -> tuple[SocketTarget, Any]:
        ours, theirs = tcp_pair()
        return SocketTarget(ours, "127.0.0.1:80", BUFFER), theirs


class TestUnix(TargetContract):
    def connect(self) -> tuple[SocketTarget, Any]:
        ours, theirs = unix_pair()
        return SocketTarget(ours, "unix:/run/app.sock", BUFFER), theirs


class TestTls(TargetContract):
    half_closes = False

    @pytest.fixture(autouse=True)
    def with_contexts(self, contexts: Contexts) -> None:
        self.contexts = contexts

    def connect(self) -> tuple[SocketTarget, Any]:
        ours, theirs = tls_pair(self.contexts)
        return TlsSocketTarget(ours, "localhost:443", BUFFER), theirs


def test_reads_share_one_buffer() -> None:
    buffer = bytearray(1024)
    pairs = [unix_pair(), unix_pair()]
    first, second = (SocketTarget(ours, "x", buffer) for ours, _ in pairs)
    for number, (_, theirs) in enumerate(pairs):
        theirs.sendall(b"%d" % number * 2000)
    view = first.try_read(4096)
    assert view is not None
    assert view == b"0" * 1024, "never more than the buffer holds"
    second.try_read(4096)
    assert view == b"1" * 1024
    for target, (_, theirs) in zip((first, second), pairs, strict=True):
        target.close()
        theirs.close()


def test_a_tcp_reset_is_an_error() -> None:
    ours, theirs = tcp_pair()
    target = SocketTarget(ours, "x", BUFFER)
    reading = Greenlet.spawn(pytest.raises, ConnectionResetError, read, target)
    turns()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    reading.get()
    target.shutdown_write()
    target.close()


def test_unsent_bytes_are_what_the_kernel_holds() -> None:
    ours, theirs = unix_pair()
    target = SocketTarget(ours, "x", BUFFER)
    send_all(target, b"x" * 1000)
    assert target.unsent_bytes() >= 1000
    receive(theirs, 1000)
    assert target.unsent_bytes() == 0
    target.close()
    theirs.close()


def test_watchers_are_made_once_and_closed() -> None:
    """One wait must not cost a new watcher, and an idle target none it does not need."""
    ours, theirs = unix_pair()
    target = SocketTarget(ours, "x", BUFFER)
    assert target._readable is None
    theirs.sendall(b"xx")
    target.wait_readable()
    watcher = target._readable
    target.wait_readable()
    assert target._readable is watcher
    assert target._writable is None
    target.close()
    theirs.close()
    assert target._readable is None


def test_closed_sockets_are_not_kept() -> None:
    ours, theirs = unix_pair()
    target = SocketTarget(ours, "x", BUFFER)
    reading = Greenlet.spawn(pytest.raises, OSError, read, target)
    turns()
    fate = weakref.ref(target._sock)
    target.close()
    reading.join()
    del ours
    gc.collect()
    assert fate() is None
    theirs.close()


def test_the_hub_waits_in_place_of_a_greenlet() -> None:
    ours, theirs = tcp_pair()
    target = SocketTarget(ours, "x", BUFFER)
    target.rouse()  # nobody waits
    called: list[bytes] = []
    read = Event()

    def readable() -> None:
        called.append(bytes(target.try_read(100) or b""))
        read.set()

    target.when_readable(readable)
    gevent.sleep(MS)
    assert called == []
    theirs.sendall(b"one")
    assert read.wait(5)
    theirs.sendall(b"two")
    gevent.sleep(MS)
    assert called == [b"one"], "once"
    read.clear()
    target.when_readable(readable)
    assert read.wait(5)
    assert called == [b"one", b"two"]
    target.when_readable(readable)
    target.close()
    theirs.close()
    gevent.sleep(MS)
    assert called == [b"one", b"two"]
    with pytest.raises(OSError, match="was closed"):
        target.when_readable(readable)


def test_a_waiting_greenlet_is_roused() -> None:
    ours, theirs = tcp_pair()
    target = SocketTarget(ours, "x", BUFFER)
    waiting = Greenlet.spawn(target.wait_readable)
    gevent.sleep(0)
    target.rouse()
    target.rouse()
    waiting.get(timeout=5)
    target.close()
    theirs.close()


def test_a_descriptor_used_again_belongs_to_the_new_target() -> None:
    """The waiter of a closed target must not see the traffic of the next one."""
    ours, theirs = unix_pair()
    number = ours.fileno()
    old = SocketTarget(ours, "old", BUFFER)
    reading = Greenlet.spawn(pytest.raises, OSError, read, old)
    turns()
    old.close()
    reading.join()
    theirs.close()
    gevent.sleep(MS)  # gevent closes a descriptor that is waited for in the next turn of its loop
    pair = unix_pair()
    assert number in [sock.fileno() for sock in pair]
    ours, theirs = sorted(pair, key=lambda sock: int(sock.fileno() != number))
    target = SocketTarget(ours, "new", BUFFER)
    waiting = Greenlet.spawn(lambda: read(target))
    turns()
    assert not waiting.ready()
    theirs.sendall(b"new")
    assert waiting.get() == b"new"
    target.close()
    theirs.close()


def test_what_is_handed_over_cannot_be_closed_behind_its_back() -> None:
    """The target has the descriptor; the object that it came in is empty."""
    ours, theirs = unix_pair()
    target = SocketTarget(ours, "x", BUFFER)
    assert ours.fileno() == -1
    ours.close()
    theirs.sendall(b"still open")
    assert read(target) == b"still open"
    target.close()
    theirs.close()


def test_a_native_socket_closed_before_the_first_wait_is_an_error() -> None:
    ours, theirs = unix_pair()
    native = get_original("socket", "socket")(fileno=ours.detach())
    target = SocketTarget(native, "x", BUFFER)
    native.close()
    with pytest.raises(OSError, match="was closed"):
        target.wait_readable()
    target.close()
    theirs.close()


def test_an_error_at_closing_is_ignored() -> None:
    class Broken:
        def settimeout(self, timeout: float) -> None:
            pass

        def close(self) -> None:
            raise ConnectionResetError

    SocketTarget(Broken(), "x", BUFFER).close()  # type: ignore[arg-type]


def test_tls_closes_with_close_notify(contexts: Contexts) -> None:
    """A service can tell the end from a connection that was cut."""
    ours, theirs = tls_pair(contexts, suppress_ragged_eofs=False)
    target = TlsSocketTarget(ours, "x", BUFFER)
    send_all(target, b"all of it")
    theirs.sendall(b"unread")
    turns()
    target.close()
    assert receive(theirs, 9) == b"all of it"
    assert theirs.recv(1) == b""
    theirs.close()


def test_tls_socket_that_has_been_unwrapped_is_closed_all_the_same(contexts: Contexts) -> None:
    ours, theirs = tls_pair(contexts)
    unwrapping = Greenlet.spawn(theirs.unwrap)
    ours.unwrap()
    unwrapping.get()
    TlsSocketTarget(ours, "x", BUFFER).close()
    assert theirs.recv(1) == b""
    theirs.close()


def test_tls_goes_on_record_by_record(contexts: Contexts) -> None:
    """Progress is told, and the head of a backlog is taken again, also with more behind it."""
    ours, theirs = tls_pair(contexts)
    target = TlsSocketTarget(ours, "x", BUFFER)
    head, tail = PAYLOAD[:40_000], PAYLOAD[40_000:]
    rest = head
    while (sent := target.try_send(rest)) == len(rest):
        pass
    assert sent % RECORD_BYTES == 0
    sending = Greenlet.spawn(send_all, target, rest[sent:] + tail)
    turns()
    received = theirs.recv(10_000)
    while not received.endswith(tail[-1000:]):
        received += theirs.recv(100_000)
    assert received.endswith(rest + tail)
    assert sending.get() is None
    target.close()
    theirs.close()


def test_tls_finds_what_is_decrypted_already(contexts: Contexts) -> None:
    ours, theirs = tls_pair(contexts)
    target = TlsSocketTarget(ours, "x", BUFFER)
    theirs.sendall(b"one record")
    assert read(target, 4) == b"one "
    target.wait_readable()
    assert target._readable is None, "the kernel was not asked"
    assert bytes(target.try_read(100) or b"") == b"record"
    target.close()
    theirs.close()


class Renegotiating:
    """A TLS socket in the middle of a renegotiation, which Python cannot be made to begin."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def settimeout(self, timeout: float) -> None:
        pass

    def write(self, data: memoryview) -> int:
        self.calls.append("write")
        if len(self.calls) == 1:
            raise ssl.SSLWantReadError
        return len(data)

    def recv_into(self, buffer: bytearray, limit: int) -> int:
        self.calls.append("recv_into")
        if len(self.calls) == 1:
            raise ssl.SSLWantWriteError
        return 0


def test_a_write_that_must_read_first_is_tried_again_soon() -> None:
    sock: Any = Renegotiating()
    target = TlsSocketTarget(sock, "x", BUFFER)
    with gevent.Timeout(100 * CROSSED_S):
        assert target.send(b"data") == 4
    assert sock.calls == ["write", "write"]


def test_a_write_that_must_read_first_takes_nothing_at_once() -> None:
    target = TlsSocketTarget(Renegotiating(), "x", BUFFER)  # type: ignore[arg-type]
    assert send_now(target, b"data") == b"data"
    assert send_now(target, b"data") == b""


def test_a_read_that_must_write_first_is_tried_again_soon() -> None:
    sock: Any = Renegotiating()
    target = TlsSocketTarget(sock, "x", BUFFER)
    assert target.try_read(100) is None
    with gevent.Timeout(100 * CROSSED_S):
        target.wait_readable()
    assert target.try_read(100) is not None


def test_bytes_arrive_while_the_other_direction_is_clogged(contexts: Contexts) -> None:
    ours, theirs = tls_pair(contexts)
    target = TlsSocketTarget(ours, "x", BUFFER)
    sending = Greenlet.spawn(send_all, target, PAYLOAD)
    turns()
    theirs.sendall(b"still here")
    assert read_exactly(target, 10) == b"still here"
    assert receive(theirs, len(PAYLOAD)) == PAYLOAD
    assert sending.get() is None
    target.close()
    theirs.close()


def test_a_fork_does_not_end_the_tls_connection(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is the parent's: closing a copy of its descriptor must send nothing."""
    ours, theirs = tls_pair(contexts, suppress_ragged_eofs=False)
    target = TlsSocketTarget(ours, "x", BUFFER)
    monkeypatch.setattr("os.getpid", lambda: target._pid + 1)
    target.close()
    try:
        with pytest.raises(OSError):  # noqa: PT011 - EOF or reset, but no close_notify
            theirs.recv(1)
    finally:
        theirs.close()
