"""The socket of a session: reading, coalesced writing, room, and every way it ends."""

from __future__ import annotations

import errno
import os
import random
import socket as stdlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket, ssl
from hypothesis import given
from hypothesis import strategies as st

from nexusg.errors import SessionLost
from nexusg.transport import wslink
from nexusg.transport.channel import Channel, TlsChannel
from nexusg.transport.wslink import BATCH_BYTES, READ_COST_BYTES, TURN_BYTES, WsLink
from tests.conftest import MS
from tests.support.clock import FakeClock
from tests.transport.pairs import AMPLE_S, CLOG_BYTES, tcp_pair


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.certs import Authority


class FakeOutput:
    """Bytes to write, in the order they were added."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.taken: list[int] = []

    @property
    def pending_bytes(self) -> int:
        return len(self.data)

    def take_output(self) -> bytes:
        part = bytes(self.data[:BATCH_BYTES])
        del self.data[:BATCH_BYTES]
        if part:
            self.taken.append(len(part))
        return part


class Linked:
    """A link, the socket at its other end, and the greenlets that a session would have."""

    def __init__(self, ours: Channel, theirs: Any) -> None:
        theirs.settimeout(AMPLE_S)
        self.peer = theirs
        self.output = FakeOutput()
        self.clock = FakeClock()
        self.link = WsLink(ours, self.output, self.clock)
        self.greenlets: list[Any] = []

    def spawn(self, function: Callable[..., Any], *args: Any) -> Any:
        """A greenlet whose SessionLost is its value."""

        def run() -> Any:
            try:
                return function(*args)
            except SessionLost as lost:
                return lost

        self.greenlets.append(Greenlet.spawn(run))
        return self.greenlets[-1]

    def watch(self) -> Any:
        """Wait for the end of writing, as a session does."""
        watcher = self.spawn(self.link.wait_broken)
        gevent.sleep(0)
        return watcher

    def read(self, size: int = 65536) -> bytes:
        """One read."""
        buffer = bytearray(size)
        return bytes(buffer[: self.link.read_into(memoryview(buffer))])

    def add(self, data: bytes) -> None:
        """More output, and the flush that belongs to it."""
        self.output.data += data
        self.link.flush()

    def clog(self) -> int:
        """Write until the kernel takes nothing more; how much that was."""
        self.add(bytes(CLOG_BYTES))
        seen = [-1, -2, -3]
        while len(set(seen[-3:])) > 1:
            gevent.sleep(MS)
            seen.append(self.link.bytes_out)
        return seen[-1]

    def until(self, condition: Callable[[], object]) -> None:
        """Let the others run until ``condition()`` holds. Blocks."""
        with gevent.Timeout(AMPLE_S, AssertionError("never came true")):
            while not condition():
                gevent.sleep(0)

    def received(self, size: int) -> bytes:
        """``size`` bytes at the other end."""
        data = b""
        while len(data) < size:
            piece = self.peer.recv(size - len(data))
            assert piece, "the end came too early"
            data += piece
        return data

    def stop(self) -> None:
        """End everything."""
        gevent.killall(self.greenlets)
        self.link.close()
        self.peer.close()


@contextmanager
def plain_link() -> Iterator[Linked]:
    """A link over a plain TCP connection."""
    ours, theirs = tcp_pair()
    linked = Linked(Channel(ours), theirs)
    yield linked
    linked.stop()


@contextmanager
def tls_link(authority: Authority) -> Iterator[Linked]:
    """A link over TLS."""
    ours, theirs = socket.socketpair()
    server = Greenlet.spawn(authority.server_context().wrap_socket, theirs, server_side=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca_file)
    channel = TlsChannel(ours, context, "localhost")
    channel.handshake()
    linked = Linked(channel, server.get())
    yield linked
    linked.stop()


@pytest.fixture(params=["plain", "tls"])
def linked(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Linked]:
    """A link over each kind of connection."""
    with plain_link() if request.param == "plain" else tls_link(authority) as linked:
        yield linked


@pytest.fixture
def plain() -> Iterator[Linked]:
    """A link over a plain connection."""
    with plain_link() as linked:
        yield linked


# Reading ---------------------------------------------------------------------------------------


def test_what_comes_is_read_and_counted(linked: Linked) -> None:
    linked.peer.sendall(b"hello")
    assert linked.read() == b"hello"
    linked.peer.sendall(b"again")
    assert linked.read(2) == b"ag"
    assert linked.read() == b"ain"
    assert linked.link.bytes_in == 10


def test_reading_waits_for_something_to_read(linked: Linked) -> None:
    reader = linked.spawn(linked.read)
    gevent.sleep(MS)
    assert not reader.ready()
    linked.peer.sendall(b"at last")
    assert reader.get(timeout=AMPLE_S) == b"at last"


def test_reading_does_not_ask_in_vain(linked: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that there is nothing costs more than a turn of the loop."""
    tried: list[int] = []
    read_into = linked.link._channel.read_into
    kind = type(linked.link._channel)

    def counted(_: Channel, buffer: memoryview) -> int:
        tried.append(len(buffer))
        return read_into(buffer)

    monkeypatch.setattr(kind, "read_into", counted)
    linked.peer.sendall(b"hello")
    assert linked.read() == b"hello"
    reader = linked.spawn(linked.read)
    gevent.sleep(MS)
    assert not reader.ready()
    linked.peer.sendall(b"again")
    assert reader.get(timeout=AMPLE_S) == b"again"
    assert len(tried) <= 3, "twice for the answers, and once if the first one was not there yet"


def test_the_end_of_file_is_a_loss(linked: Linked) -> None:
    """Section 1.4: most sessions end without a close frame."""
    linked.peer.close()
    with pytest.raises(SessionLost, match="without a close frame") as caught:
        linked.read()
    assert caught.value.code == "eof"


def test_a_reset_is_a_loss(plain: Linked) -> None:
    plain.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.peer.close()
    with pytest.raises(SessionLost, match="was reset") as caught:
        plain.read()
    assert caught.value.code == "reset"


def test_broken_tls_is_a_loss(authority: Authority) -> None:
    """Section 1.4: a relay whose write deadline has passed leaves half a record behind."""
    with tls_link(authority) as linked:
        raw = stdlib.socket(fileno=os.dup(linked.peer.fileno()))
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        raw.close()
        with pytest.raises(SessionLost, match="TLS with the relay failed") as caught:
            linked.read()
        assert caught.value.code == "tls"


def test_a_busy_reader_lets_others_have_a_turn(plain: Linked) -> None:
    """gevent's recv never switches while there is something to read."""
    plain.peer.sendall(bytes(100))
    other = Greenlet.spawn(str)
    for _ in range(TURN_BYTES // (1 + READ_COST_BYTES) + 1):
        plain.read(1)
    assert not other.ready()
    plain.read(1)
    assert other.ready()


# Writing ---------------------------------------------------------------------------------------


def test_output_is_written(linked: Linked) -> None:
    linked.add(b"hello")
    assert linked.received(5) == b"hello"
    linked.add(b"again")
    assert linked.received(5) == b"again"
    assert linked.link.bytes_out == 10


def test_the_output_of_one_turn_leaves_in_one_write(linked: Linked) -> None:
    """HOTPATH.md: coalescing is the whole story for small messages."""
    for _ in range(100):
        linked.add(b"0123456789")
    assert linked.output.taken == []
    assert linked.received(1000) == b"0123456789" * 100
    assert linked.output.taken == [1000]


def test_a_full_batch_leaves_at_once(linked: Linked) -> None:
    """More output would make no better batch; what is above it waits for the end of the turn."""
    linked.add(bytes(BATCH_BYTES - 1))
    assert linked.output.taken == []
    linked.add(bytes(3))
    assert linked.output.taken == [BATCH_BYTES]
    linked.received(BATCH_BYTES + 2)
    assert linked.output.taken == [BATCH_BYTES, 2]


def test_flushing_nothing_wakes_nobody(plain: Linked) -> None:
    plain.link.flush()
    gevent.sleep(0)
    assert plain.output.taken == []
    plain.add(b"x")
    assert plain.received(1) == b"x"


def test_more_than_the_kernel_takes(linked: Linked) -> None:
    """Over TLS a blocked write is repeated with the same bytes; nothing may come before them."""
    data = random.Random(7).randbytes(3_000_000)
    for start in range(0, len(data), 50_000):
        linked.add(data[start : start + 50_000])
        gevent.sleep(0)
    assert linked.received(len(data)) == data


def test_progress_is_stamped(plain: Linked) -> None:
    """What the session judges a stalled relay by."""
    link = plain.link
    assert link.writing_since is None
    written = plain.clog()
    since = link.writing_since
    assert since == plain.clock()
    plain.clock.advance(7)
    gevent.sleep(2 * MS)
    assert link.writing_since == since, "nothing has moved"
    plain.received(CLOG_BYTES // 2)
    plain.until(lambda: link.bytes_out > written)
    assert link.writing_since == plain.clock(), "something has"
    plain.received(CLOG_BYTES // 2)
    assert link.wait_flushed(AMPLE_S)
    assert link.writing_since is None


def test_a_broken_connection_ends_the_writing(plain: Linked) -> None:
    writer = plain.watch()
    plain.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.peer.close()
    plain.add(b"x")
    lost = writer.get(timeout=AMPLE_S)
    assert isinstance(lost, SessionLost)
    assert lost.code == "reset"
    plain.add(b"nobody writes this")
    assert not plain.link.wait_flushed(AMPLE_S)
    assert plain.link.full


def test_a_connection_that_breaks_while_the_kernel_is_full(plain: Linked) -> None:
    writer = plain.watch()
    plain.clog()
    plain.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.peer.close()
    lost = writer.get(timeout=AMPLE_S)
    assert isinstance(lost, SessionLost)
    assert lost.code == "reset"
    assert plain.link.writing_since is None


# Room ------------------------------------------------------------------------------------------


def test_full_until_the_turn_is_over(linked: Linked) -> None:
    """While the kernel takes everything, nothing else would let others have a turn."""
    while not linked.link.full:
        linked.add(bytes(BATCH_BYTES))
    linked.received(sum(linked.output.taken))
    linked.until(lambda: not linked.link.full)


def test_full_while_the_kernel_takes_nothing(plain: Linked) -> None:
    plain.clog()
    assert plain.link.full
    plain.received(CLOG_BYTES)
    plain.until(lambda: not plain.link.full)


def test_waiters_are_let_in_one_at_a_time_and_in_order(linked: Linked) -> None:
    """Fairness: each adds at most a batch, so each waits behind one of these."""
    turns: list[int] = []

    def stream(number: int) -> None:
        for _ in range(3):
            linked.link.wait_for_room()
            turns.append(number)
            linked.add(bytes(BATCH_BYTES))

    linked.add(bytes(TURN_BYTES))
    streams = [linked.spawn(stream, number) for number in range(4)]
    linked.received(TURN_BYTES + 12 * BATCH_BYTES)
    gevent.joinall(streams, timeout=AMPLE_S)
    assert turns == [0, 1, 2, 3] * 3


def test_waiting_for_room_that_is_there(plain: Linked) -> None:
    waiter = plain.spawn(plain.link.wait_for_room)
    waiter.get(timeout=AMPLE_S)


def test_who_is_let_in_need_not_add_anything(plain: Linked) -> None:
    """The stream may have ended while it waited: the next one must not wait for it."""
    plain.add(bytes(TURN_BYTES))
    waiters = [plain.spawn(plain.link.wait_for_room) for _ in range(5)]
    gevent.sleep(0)
    assert len(gevent.joinall(waiters, timeout=AMPLE_S)) == 5


@pytest.mark.parametrize("killed", [False, True])
def test_nobody_comes_before_those_who_are_let_in(plain: Linked, killed: bool) -> None:
    """Each may add a batch whatever the link is then, so a third one would be one too many for
    what a control message waits behind."""
    waiters = [plain.spawn(plain.link.wait_for_room) for _ in range(2)]
    gevent.sleep(0)
    plain.link._turn()
    assert not plain.link._waiting
    assert plain.link.full
    if killed:
        gevent.killall(waiters, block=False)
    gevent.joinall(waiters, timeout=AMPLE_S)
    assert not plain.link.full


def test_a_killed_waiter_holds_nobody_up(plain: Linked) -> None:
    plain.clog()
    waiters = [plain.spawn(plain.link.wait_for_room) for _ in range(3)]
    gevent.sleep(0)
    waiters[0].kill()
    plain.received(CLOG_BYTES)
    assert len(gevent.joinall(waiters, timeout=AMPLE_S)) == 3


def test_a_closed_link_has_room_for_everybody(plain: Linked) -> None:
    """Whoever waits for a link that is gone would wait for ever."""
    plain.clog()
    waiter = plain.spawn(plain.link.wait_for_room)
    gevent.sleep(0)
    plain.link.close()
    waiter.get(timeout=AMPLE_S)
    plain.link.wait_for_room()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100_000)), max_size=20))
def test_no_wake_up_is_lost(steps: list[tuple[int, int]]) -> None:
    """Whatever the order of additions, flushes, waits and switches, all output leaves."""
    with plain_link() as plain:
        total = 0
        sink = plain.spawn(_drain, plain.peer)
        for kind, size in steps:
            if kind == 0:
                plain.add(bytes(size))
                total += size
            elif kind == 1:
                plain.link.flush()
                gevent.sleep(0)
            elif kind == 2:
                with gevent.Timeout(AMPLE_S, AssertionError("a lost wake-up")):
                    plain.link.wait_for_room()
            else:
                assert plain.link.wait_flushed(AMPLE_S)
        assert plain.link.wait_flushed(AMPLE_S)
        assert plain.link.bytes_out == total
        plain.link.close()
        assert sink.get(timeout=AMPLE_S) == total


def _drain(sock: Any) -> int:
    total = 0
    while piece := sock.recv(65536):
        total += len(piece)
    return total


# Flushing --------------------------------------------------------------------------------------


def test_flushed_when_there_is_nothing(linked: Linked) -> None:
    assert linked.link.wait_flushed(0)


def test_flushed_when_the_kernel_has_it(linked: Linked) -> None:
    linked.output.data += b"the last words"
    assert linked.link.wait_flushed(AMPLE_S)
    assert linked.received(14) == b"the last words"


def test_not_flushed_while_the_last_write_is_blocked(plain: Linked) -> None:
    """Nothing is pending any more, and still the kernel has not got it."""
    plain.clog()
    plain.output.data.clear()
    assert not plain.link.wait_flushed(2 * MS)


def test_closing_ends_the_wait(plain: Linked) -> None:
    plain.clog()
    waiter = plain.spawn(plain.link.wait_flushed, AMPLE_S)
    gevent.sleep(0)
    plain.link.close()
    assert waiter.get(timeout=AMPLE_S) is False


# The end ---------------------------------------------------------------------------------------


def test_the_reader_is_stopped_and_the_writer_goes_on(linked: Linked) -> None:
    """How a session ends whose last word, the close frame, is still to be written."""
    reader = linked.spawn(linked.read)
    gevent.sleep(MS)
    linked.link.stop_reading()
    assert isinstance(reader.get(timeout=AMPLE_S), SessionLost)
    linked.add(b"goodbye")
    assert linked.received(7) == b"goodbye"


def test_a_reader_that_is_not_waiting_is_stopped_as_well(linked: Linked) -> None:
    linked.link.stop_reading()
    with pytest.raises(SessionLost):
        linked.read()


def test_close_wakes_the_reader(linked: Linked) -> None:
    reader = linked.spawn(linked.read)
    gevent.sleep(MS)
    linked.link.close()
    assert isinstance(reader.get(timeout=AMPLE_S), SessionLost)
    with pytest.raises(SessionLost):
        linked.read()


@pytest.mark.parametrize("state", ["idle", "blocked"])
def test_close_ends_the_writing(linked: Linked, state: str) -> None:
    writer = linked.watch()
    if state == "blocked":
        linked.clog()
    linked.add(b"too late to leave")
    linked.link.close()
    linked.link.close()
    assert writer.get(timeout=AMPLE_S) is None
    gevent.sleep(0)
    linked.link.flush()
    assert linked.output.data.endswith(b"too late to leave")


def test_the_peer_sees_the_end_at_once(linked: Linked) -> None:
    """Also while reader and writer wait on the socket."""
    linked.spawn(linked.read)
    gevent.sleep(MS)
    linked.link.close()
    assert linked.peer.recv(1) == b""


def test_a_disowned_link_leads_nowhere(linked: Linked) -> None:
    """In a child of fork. The connection is the parent's, which has its own descriptor."""
    parents = os.dup(linked.link._channel.fileno())
    try:
        writer = linked.watch()
        linked.link.disown()
        linked.add(b"from the child")
        with pytest.raises(SessionLost):
            linked.read()
        linked.link.close()
        linked.link.disown()
        writer.get(timeout=AMPLE_S)
        linked.peer.settimeout(MS)
        with pytest.raises(TimeoutError):
            linked.peer.recv(1)
    finally:
        os.close(parents)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "reset", "by peer"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "reset", "Broken pipe"),
        (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), "reset", "aborted"),
        (ssl.SSLError(1, "bad record mac"), "tls", "bad record mac"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "io", "timed out"),
        (OSError("without a number"), "io", "without a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_the_system_says(error: OSError, code: str, text: str) -> None:
    lost = wslink.lost(error)
    assert lost.code == code
    assert text in str(lost)
