"""What every kind of target promises (targets/base.py), checked over each of them.

    class TestTcp(TargetContract):
        def connect(self):
            return SocketTarget(ours, …), theirs

``connect`` returns a target and its peer, the service: something like a blocking socket. A kind
that cannot do something says so in the flags.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.socket import SHUT_WR


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.targets.base import Target
    from nexusg.targets.udp import UdpTarget

MIB = 1024 * 1024
PAYLOAD = random.Random(1).randbytes(MIB)
BUFFER = bytearray(64 * 1024)


def read(target: Target, limit: int = 64 * 1024) -> bytes:
    """The next bytes, empty at the end of file, as a stream reads them. Blocks."""
    while (data := target.try_read(limit)) is None:
        target.wait_readable()
    return bytes(data)


def read_exactly(target: Target, count: int) -> bytes:
    """``count`` bytes. Blocks."""
    found = b""
    while len(found) < count:
        data = read(target, count - len(found))
        assert data, "the end of file came early"
        found += data
    return found


def send_now(target: Target, data: bytes) -> bytes:
    """Send what fits at once; return the rest."""
    while data and (sent := target.try_send(data)):
        data = data[sent:]
    return data


def send_all(target: Target, data: bytes) -> OSError | None:
    """Send everything, as a stream does. Blocks."""
    try:
        rest = memoryview(send_now(target, data))
        while len(rest):
            sent = target.send(rest)
            assert sent > 0
            rest = rest[sent:]
    except OSError as error:
        return error
    return None


def clog(target: Target, data: bytes) -> tuple[Greenlet[..., int], bytes]:
    """Send as much as is taken; return a greenlet that waits in `send`, and what it sends."""
    rest = send_now(target, data)
    while True:
        sending = Greenlet.spawn(target.send, rest)
        turns()
        if not sending.ready():
            return sending, rest
        rest = rest[sending.get() :]


def read_datagram(target: UdpTarget, limit: int = 2048) -> bytes:
    """The next datagram, as a flow reads it. Blocks."""
    while (data := target.try_read(limit)) is None:
        target.wait_readable()
    return bytes(data)


def receive(peer: Any, count: int) -> bytes:
    """``count`` bytes at the other end. Blocks."""
    found = bytearray()
    while len(found) < count and (data := peer.recv(count - len(found))):
        found += data
    return bytes(found)


def echo(peer: Any) -> None:
    """Send back all there is. Blocks."""
    while data := peer.recv(64 * 1024):
        peer.sendall(data)


def turns() -> None:
    """Let the other greenlets run as far as they can. Blocks."""
    for _ in range(5):
        gevent.sleep(0)


class TargetContract:
    """Subclass it as ``Test…`` for each kind."""

    takes_at_once = True  #: `try_send` takes something
    half_closes = True  #: `shutdown_write` reaches the service

    def connect(self) -> tuple[Target, Any]:
        """A connected target, and its other end."""
        raise NotImplementedError

    @pytest.fixture
    def ends(self) -> Iterator[tuple[Target, Any]]:
        target, peer = self.connect()
        yield target, peer
        target.close()
        peer.close()

    def test_has_a_name(self, ends: Any) -> None:
        target, _ = ends
        assert isinstance(target.name, str)
        assert target.name in repr(target)

    def test_nothing_yet(self, ends: Any) -> None:
        target, _ = ends
        assert target.try_read(100) is None
        assert target.try_read(100) is None

    def test_early_data(self, ends: Any) -> None:
        target, peer = ends
        peer.sendall(b"220 ready")
        assert read_exactly(target, 9) == b"220 ready"
        assert target.try_read(100) is None

    def test_data_that_comes_while_it_is_waited_for(self, ends: Any) -> None:
        target, peer = ends
        reading = Greenlet.spawn(read, target)
        turns()
        assert not reading.ready()
        peer.sendall(b"hello")
        assert reading.get() == b"hello"

    @pytest.mark.parametrize("limit", [1, 7, 100, 1000])
    def test_limit(self, ends: Any, limit: int) -> None:
        """What is left is found without waiting for more."""
        target, peer = ends
        peer.sendall(bytes(range(100)))
        found = b""
        while len(found) < 100:
            target.wait_readable()
            data = target.try_read(limit)
            assert data is None or 0 < len(data) <= limit
            found += data or b""
        assert found == bytes(range(100))

    def test_a_view_is_valid_until_the_next_switch(self, ends: Any) -> None:
        target, peer = ends
        peer.sendall(b"look")
        while (view := target.try_read(100)) is None:
            target.wait_readable()
        target.try_send(b"reply")
        assert view == b"look"

    def test_a_mebibyte_each_way(self, ends: Any) -> None:
        target, peer = ends
        echoing = Greenlet.spawn(echo, peer)
        sending = Greenlet.spawn(send_all, target, PAYLOAD)
        assert read_exactly(target, MIB) == PAYLOAD
        assert sending.get() is None
        echoing.kill()

    def test_clogged_send(self, ends: Any) -> None:
        target, peer = ends
        sending = Greenlet.spawn(send_all, target, PAYLOAD)
        turns()
        assert not sending.ready()
        assert target.try_read(100) is None, "reading goes on"
        assert receive(peer, MIB) == PAYLOAD
        assert sending.get() is None

    def test_partial_send(self, ends: Any) -> None:
        target, peer = ends
        sent = target.try_send(PAYLOAD)
        assert (0 < sent < MIB) if self.takes_at_once else sent == 0
        rest = send_now(target, PAYLOAD[sent:])
        assert target.try_send(rest) == 0, "full"
        finishing = Greenlet.spawn(send_all, target, rest)
        assert receive(peer, MIB) == PAYLOAD
        assert finishing.get() is None

    def test_nothing_is_sent_at_once(self, ends: Any) -> None:
        target, _ = ends
        assert target.try_send(b"") == 0
        assert target.send(b"") == 0

    def test_many_small_sends(self, ends: Any) -> None:
        target, peer = ends
        pieces = [b"%02d" % number for number in range(100)]
        sending = Greenlet.spawn(lambda: [send_all(target, piece) for piece in pieces])
        assert receive(peer, 200) == b"".join(pieces)
        assert not any(sending.get())

    def test_half_close(self, ends: Any) -> None:
        target, peer = ends
        assert send_all(target, b"question") is None
        target.shutdown_write()
        target.shutdown_write()
        assert receive(peer, 8) == b"question"
        if self.half_closes:
            assert peer.recv(1) == b""
        peer.sendall(b"answer")
        assert read_exactly(target, 6) == b"answer"

    def test_half_close_of_the_service(self, ends: Any) -> None:
        target, peer = ends
        if not self.half_closes:
            pytest.skip("this kind has no half-close")
        peer.sendall(b"all")
        peer.shutdown(SHUT_WR)
        assert read_exactly(target, 3) == b"all"
        assert read(target) == b""
        assert send_all(target, b"more") is None
        assert receive(peer, 4) == b"more"

    def test_end_of_file(self, ends: Any) -> None:
        target, peer = ends
        peer.sendall(b"bye")
        peer.close()
        assert read_exactly(target, 3) == b"bye"
        assert read(target) == b""
        assert read(target) == b"", "and it stays so"

    def test_end_of_file_while_waiting(self, ends: Any) -> None:
        target, peer = ends
        reading = Greenlet.spawn(read, target)
        turns()
        peer.close()
        assert reading.get() == b""

    def test_reset(self, ends: Any) -> None:
        """A service that closes with unread input resets the connection, where there are resets."""
        target, peer = ends
        assert send_all(target, b"unread") is None
        turns()
        peer.close()
        try:
            assert read(target) == b""
        except OSError:
            pass
        errors = [send_all(target, b"into the void") for _ in range(3)]
        assert errors[-1], "sending must fail in the end"

    def test_close(self, ends: Any) -> None:
        target, peer = ends
        assert send_all(target, b"last words") is None
        target.close()
        assert receive(peer, 100) == b"last words"

    def test_closed(self, ends: Any) -> None:
        target, _ = ends
        target.close()
        target.close()
        target.shutdown_write()
        assert target.unsent_bytes() == 0
        with pytest.raises(OSError, match=r"."):
            target.try_send(b"x")
        with pytest.raises(OSError, match=r"."):
            target.send(b"x")
        with pytest.raises(OSError, match=r"."):
            target.try_read(1)
        with pytest.raises(OSError, match=r"."):
            read(target)

    def test_close_while_reading(self, ends: Any) -> None:
        target, _ = ends
        reading = Greenlet.spawn(_error_of, read, target)
        turns()
        target.close()
        assert isinstance(reading.get(), OSError)

    def test_close_while_sending(self, ends: Any) -> None:
        target, _ = ends
        sending = Greenlet.spawn(send_all, target, PAYLOAD)
        turns()
        target.close()
        assert isinstance(sending.get(), OSError)

    def test_close_while_reading_and_sending(self, ends: Any) -> None:
        target, _ = ends
        reading = Greenlet.spawn(_error_of, read, target)
        sending = Greenlet.spawn(send_all, target, PAYLOAD)
        turns()
        target.close()
        target.close()
        assert isinstance(reading.get(), OSError)
        assert isinstance(sending.get(), OSError)

    def test_a_killed_reader_leaves_it_usable(self, ends: Any) -> None:
        target, peer = ends
        reading = Greenlet.spawn(read, target)
        turns()
        reading.kill()
        peer.sendall(b"for the next one")
        assert read_exactly(target, 16) == b"for the next one"

    def test_a_killed_sender_leaves_it_usable(self, ends: Any) -> None:
        target, peer = ends
        sending, rest = clog(target, PAYLOAD)
        sending.kill()
        finishing = Greenlet.spawn(send_all, target, rest)
        assert receive(peer, MIB) == PAYLOAD
        assert finishing.get() is None

    def test_unsent_bytes(self, ends: Any) -> None:
        target, peer = ends
        assert target.unsent_bytes() == 0
        assert send_all(target, b"abc") is None
        assert receive(peer, 3) == b"abc"
        turns()
        assert target.unsent_bytes() == 0


class DatagramContract:
    """What `UdpTarget` promises over each kind of socket. Subclass it as ``Test…``."""

    def connect(self) -> tuple[UdpTarget, Any]:
        """A connected target, and its other end, also connected."""
        raise NotImplementedError

    @pytest.fixture
    def ends(self) -> Iterator[tuple[UdpTarget, Any]]:
        target, peer = self.connect()
        peer.settimeout(1)
        yield target, peer
        target.close()
        peer.close()

    def test_has_a_name(self, ends: Any) -> None:
        target, _ = ends
        assert isinstance(target.name, str)
        assert target.name in repr(target)

    def test_nothing_yet(self, ends: Any) -> None:
        target, _ = ends
        assert target.try_read(100) is None
        assert target.try_read(100) is None

    def test_boundaries_are_kept_both_ways(self, ends: Any) -> None:
        target, peer = ends
        datagrams = [b"", b"one", b"", PAYLOAD[:2048], b"x", PAYLOAD[:9000], b""]
        for datagram in datagrams:
            assert target.try_send(datagram)
            assert target.try_send(memoryview(datagram))
            peer.send(datagram)
        assert [peer.recv(65536) for _ in 2 * datagrams] == [one for one in datagrams for _ in "12"]
        assert [read_datagram(target, 9000) for _ in datagrams] == datagrams
        assert not target.losses()

    def test_a_datagram_that_is_waited_for(self, ends: Any) -> None:
        target, peer = ends
        reading = Greenlet.spawn(read_datagram, target)
        turns()
        assert not reading.ready()
        peer.send(b"")
        assert reading.get() == b""

    def test_oversize_is_dropped_and_counted(self, ends: Any) -> None:
        """Case 37: also with an exact fit on both sides of it."""
        target, peer = ends
        for size in (100, 101, 100, 65, 9000, 1):
            peer.send(PAYLOAD[:size])
        assert [len(read_datagram(target, 100)) for _ in range(4)] == [100, 100, 65, 1]
        assert target.losses() == {"oversize": 2}

    def test_what_overflows_is_counted(self, ends: Any) -> None:
        """Nothing waits for a service or a user: the kernel keeps some, and drops the rest."""
        target, peer = ends
        peer.settimeout(0)
        sent = refused = 0
        for _ in range(2000):
            try:
                peer.send(bytes(1000))
                sent += 1
            except BlockingIOError:  # as unix sockets do it
                refused += 1
        kept = 0
        while target.try_read(1000) is not None:
            kept += 1
        assert 0 < kept < 2000
        assert kept + target.losses().get("overflow", 0) == sent

    def test_sending_never_waits(self, ends: Any) -> None:
        target, peer = ends
        taken = sum(target.try_send(bytes(1000)) for _ in range(2000))
        assert taken + target.losses().get("full", 0) == 2000
        assert peer.recv(65536) == bytes(1000)

    def test_a_view_is_valid_until_the_next_switch(self, ends: Any) -> None:
        target, peer = ends
        peer.send(b"look")
        target.wait_readable()
        view = target.try_read(100)
        assert target.try_send(b"reply")
        assert view == b"look"

    def test_closed(self, ends: Any) -> None:
        target, peer = ends
        peer.send(PAYLOAD[:200])
        assert target.try_read(100) is None
        target.close()
        target.close()
        with pytest.raises(OSError, match=r"."):
            target.try_send(b"x")
        with pytest.raises(OSError, match=r"."):
            target.try_read(1)
        with pytest.raises(OSError, match=r"."):
            target.wait_readable()
        assert target.losses() == {"oversize": 1}, "that stays"

    def test_close_while_reading(self, ends: Any) -> None:
        target, _ = ends
        reading = Greenlet.spawn(_error_of, read_datagram, target)
        turns()
        target.close()
        assert isinstance(reading.get(), OSError)

    def test_a_killed_reader_leaves_it_usable(self, ends: Any) -> None:
        target, peer = ends
        reading = Greenlet.spawn(read_datagram, target)
        turns()
        reading.kill()
        peer.send(b"for the next one")
        assert read_datagram(target) == b"for the next one"

    def test_a_service_that_is_gone_is_survived(self, ends: Any) -> None:
        """Case 36: what is sent to it is lost, and that is all."""
        target, peer = ends
        peer.close()
        for _ in range(4):
            target.try_send(b"into the void")
            turns()
        assert target.try_read(100) is None
        assert 3 <= target.losses()["refused"] <= 4


def _error_of(function: Any, *args: Any) -> OSError | None:
    try:
        function(*args)
    except OSError as error:
        return error
    return None
