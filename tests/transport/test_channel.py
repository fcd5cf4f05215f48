"""The bytes of a connection to a relay: the same over plain TCP and over TLS."""

from __future__ import annotations

import os
import random
import socket as stdlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket, ssl
from hypothesis import given
from hypothesis import strategies as st

from nexusg.transport.channel import READ_BYTES, RECORD_BYTES, Channel, TlsChannel
from tests.transport.pairs import AMPLE_S, CLOG_BYTES, tcp_pair


if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.certs import Authority

pytestmark = pytest.mark.usefixtures("no_socket_left")


def trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca_file)
    return context


class Ends:
    """A channel, and what is at its other end."""

    def __init__(self, channel: Channel, peer: Any) -> None:
        self.channel, self.peer = channel, peer

    def read(self, size: int = 65536) -> bytes:
        """One read."""
        buffer = bytearray(size)
        return bytes(buffer[: self.channel.read_into(memoryview(buffer))])

    def read_all(self, size: int, chunk: int = 65536) -> bytes:
        """``size`` bytes from a channel that does not block, waiting as long as it takes."""
        data = b""
        with gevent.Timeout(AMPLE_S):
            while len(data) < size:
                try:
                    data += self.read(chunk)
                except BlockingIOError:
                    gevent.sleep(0)
        return data


class TlsServer:
    """The other end in TLS, without a socket: what it says is written when the test wants it to."""

    def __init__(self, authority: Authority, sock: Any, version: ssl.TLSVersion) -> None:
        context = authority.server_context()
        context.maximum_version = version
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake(self) -> None:
        """Shake hands. Blocks."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                data = self.sock.recv(65536)
                self.incoming.write(data) if data else self.incoming.write_eof()
        self.sock.sendall(self.outgoing.read())

    def seal(self, *parts: bytes) -> bytes:
        """What is on the wire for them, each in records of its own."""
        for part in parts:
            self.tls.write(part)
        return self.outgoing.read()


@pytest.fixture
def plain() -> Iterator[Ends]:
    """A plain channel."""
    ours, theirs = tcp_pair()
    with closing(Channel(ours)) as channel, theirs:
        yield Ends(channel, theirs)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def sealed(
    request: pytest.FixtureRequest, authority: Authority
) -> Iterator[tuple[Ends, TlsServer]]:
    """A channel in TLS, whose other end writes when it is told to."""
    ours, theirs = tcp_pair()
    with theirs:
        server = TlsServer(authority, theirs, request.param)
        shaking = Greenlet.spawn(server.shake)
        with closing(TlsChannel(ours, trusting(authority), "localhost")) as channel:
            channel.handshake()
            shaking.get(timeout=AMPLE_S)
            yield Ends(channel, theirs), server


@pytest.fixture(params=["plain", "tls"])
def ends(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Ends]:
    """A channel of each kind, with a socket at the other end."""
    if request.param == "plain":
        yield request.getfixturevalue("plain")
        return
    ours, theirs = tcp_pair()
    server = Greenlet.spawn(authority.server_context().wrap_socket, theirs, server_side=True)
    with closing(TlsChannel(ours, trusting(authority), "localhost")) as channel:
        channel.handshake()
        with server.get(timeout=AMPLE_S) as peer:
            yield Ends(channel, peer)


# Both kinds ------------------------------------------------------------------------------------


def test_what_is_said_on_either_side(ends: Ends) -> None:
    ends.channel.sendall(b"hello")
    assert ends.peer.recv(100) == b"hello"
    ends.peer.sendall(b"good day")
    assert ends.channel.recv(4) == b"good"
    assert ends.channel.recv(100) == b" day"


def test_reading_waits_at_first(ends: Ends) -> None:
    reader = Greenlet.spawn(ends.read)
    gevent.sleep(0)
    assert not reader.ready()
    ends.peer.sendall(b"at last")
    assert reader.get(timeout=AMPLE_S) == b"at last"


def test_writing_waits_at_first(ends: Ends) -> None:
    """During the dial all must have gone when a step ends."""
    data = random.Random(3).randbytes(CLOG_BYTES)
    writer = Greenlet.spawn(ends.channel.sendall, data)
    gevent.sleep(0)
    assert not writer.ready()
    received = b""
    while len(received) < len(data):
        received += ends.peer.recv(65536)
    writer.get(timeout=AMPLE_S)
    assert received == data
    assert not ends.channel.unsent


def test_reading_without_waiting(ends: Ends) -> None:
    ends.channel.unblock()
    with pytest.raises(BlockingIOError):
        ends.read()
    ends.peer.sendall(b"x")
    assert ends.read_all(1) == b"x"
    with pytest.raises(BlockingIOError):
        ends.read()


def test_a_read_that_took_all_there_was(ends: Ends) -> None:
    """Whoever reads may wait for more then, instead of asking in vain."""
    assert not ends.channel.drained
    ends.peer.sendall(b"abcdef")
    assert ends.read(4) == b"abcd"
    assert not ends.channel.drained
    assert ends.read(4) == b"ef"
    assert ends.channel.drained


def test_writing_without_waiting(ends: Ends) -> None:
    """What the kernel does not take is kept, and goes on where it stopped."""
    channel = ends.channel
    channel.unblock()
    data = random.Random(4).randbytes(CLOG_BYTES)
    assert not channel.write(data)
    rest = channel.unsent
    assert 0 < rest < len(data) + 4096, "TLS adds a little"
    assert not channel.flush()
    received = b""
    with gevent.Timeout(AMPLE_S):
        while channel.unsent:
            received += ends.peer.recv(65536)
            channel.flush()
        assert channel.unsent == 0
        while len(received) < len(data):
            received += ends.peer.recv(65536)
    assert received == data
    assert channel.write(b"more")
    assert ends.peer.recv(100) == b"more"


@given(st.lists(st.integers(1, 3 * RECORD_BYTES), min_size=1, max_size=12), st.integers(1, 99_999))
def test_whatever_the_sizes(sizes: list[int], chunk: int) -> None:
    """All bytes arrive in order, however they were cut on either side."""
    authority = test_whatever_the_sizes.authority  # type: ignore[attr-defined]
    ours, theirs = socket.socketpair()
    server = Greenlet.spawn(authority.server_context().wrap_socket, theirs, server_side=True)
    with closing(TlsChannel(ours, trusting(authority), "localhost")) as channel:
        channel.handshake()
        with server.get(timeout=AMPLE_S) as peer:
            channel.unblock()
            parts = [random.Random(size).randbytes(size) for size in sizes]
            writer = Greenlet.spawn(lambda: [peer.sendall(part) for part in parts])
            assert Ends(channel, peer).read_all(sum(sizes), chunk) == b"".join(parts)
            writer.get(timeout=AMPLE_S)


@pytest.fixture(autouse=True)
def _lend(authority: Authority) -> None:
    # hypothesis takes no fixtures of the narrower scope
    test_whatever_the_sizes.authority = authority  # type: ignore[attr-defined]


def test_the_end(ends: Ends) -> None:
    ends.peer.close()
    assert ends.read() == b""
    assert ends.read() == b""


def test_a_reset(plain: Ends) -> None:
    plain.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    plain.peer.close()
    with pytest.raises(ConnectionResetError):
        plain.read()


def test_closing(ends: Ends) -> None:
    assert ends.channel.fileno() > 0
    ends.channel.close()
    ends.channel.close()
    assert ends.channel.fileno() == -1
    assert ends.peer.recv(1) == b""


def test_closing_with_something_unread(plain: Ends) -> None:
    """The end of file, not a reset, which might destroy what is under way to the peer."""
    plain.peer.sendall(b"nobody reads this")
    plain.channel.sendall(b"the last word")
    plain.channel.close()
    assert plain.peer.recv(100) == b"the last word"
    assert plain.peer.recv(100) == b""


def test_versions(plain: Ends, sealed: tuple[Ends, TlsServer]) -> None:
    assert plain.channel.tls_version is None
    assert sealed[0].channel.tls_version == sealed[1].tls.version()


# TLS -------------------------------------------------------------------------------------------


def test_what_is_there_is_read_in_one_go(sealed: tuple[Ends, TlsServer]) -> None:
    """HOTPATH.md: OpenSSL itself gives at most one record a call."""
    ends, server = sealed
    ends.peer.sendall(server.seal(b"one", b"two", b"three"))
    assert ends.read() == b"onetwothree"


def test_a_buffer_gets_whole_records_only_after_the_first(sealed: tuple[Ends, TlsServer]) -> None:
    """A small rest of a buffer would cut records for nothing."""
    ends, server = sealed
    ends.peer.sendall(server.seal(b"a" * 100, b"b" * 100))
    assert ends.read(150) == b"a" * 100
    assert ends.read(60) == b"b" * 60
    assert ends.read() == b"b" * 40


def test_a_part_of_a_record_waits_for_its_rest(sealed: tuple[Ends, TlsServer]) -> None:
    ends, server = sealed
    ends.channel.unblock()
    whole, other = server.seal(b"whole"), server.seal(b"in two parts")
    ends.peer.sendall(whole + other[:9])
    assert ends.read_all(5) == b"whole"
    with pytest.raises(BlockingIOError):
        ends.read()
    ends.peer.sendall(other[9:])
    assert ends.read_all(12) == b"in two parts"


def test_more_than_one_read_takes(sealed: tuple[Ends, TlsServer]) -> None:
    ends, server = sealed
    data = random.Random(5).randbytes(3 * READ_BYTES)
    writer = Greenlet.spawn(ends.peer.sendall, server.seal(data))
    ends.channel.unblock()
    assert ends.read_all(len(data), 128 * 1024) == data
    writer.get(timeout=AMPLE_S)


def test_the_end_in_words_of_tls(sealed: tuple[Ends, TlsServer]) -> None:
    """It counts at once, though the connection stays."""
    ends, server = sealed
    data = server.seal(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    ends.peer.sendall(data + server.outgoing.read())
    assert ends.read() == b"last"
    assert not ends.channel.drained
    assert ends.read() == b""
    assert ends.read() == b""


def test_the_end_in_the_midst_of_a_record(sealed: tuple[Ends, TlsServer]) -> None:
    """PROTOCOL.md section 1.4: a relay whose write deadline has passed leaves that behind."""
    ends, server = sealed
    ends.peer.sendall(server.seal(b"whole") + server.seal(b"half")[:-3])
    ends.peer.close()
    assert ends.read() == b"whole"
    assert ends.read() == b""


def test_a_broken_record(sealed: tuple[Ends, TlsServer]) -> None:
    """What came before it is not lost, for it may say why."""
    ends, server = sealed
    broken = bytearray(server.seal(b"good", b"bad"))
    broken[-1] ^= 1
    ends.peer.sendall(broken)
    assert ends.read() == b"good"
    assert not ends.channel.drained
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            ends.read()


def test_what_tls_answers_on_its_own(sealed: tuple[Ends, TlsServer]) -> None:
    """The alert for a broken record; in TLS 1.3 the answer to a key update is of the same kind."""
    ends, server = sealed
    broken = bytearray(server.seal(b"bad"))
    broken[-1] ^= 1
    ends.peer.sendall(broken)
    with pytest.raises(ssl.SSLError):
        ends.read()
    server.incoming.write(ends.peer.recv(65536))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.bad.record.mac"):
        server.tls.read()


def test_a_refused_certificate_is_said_to_the_peer(
    stranger: Authority, authority: Authority
) -> None:
    ours, theirs = tcp_pair()
    with theirs, closing(TlsChannel(ours, trusting(authority), "localhost")) as channel:
        server = TlsServer(stranger, theirs, ssl.TLSVersion.TLSv1_3)
        shaking = Greenlet.spawn(_failing, server.shake)
        with pytest.raises(ssl.SSLCertVerificationError):
            channel.handshake()
        assert "UNKNOWN_CA" in str(shaking.get(timeout=AMPLE_S)).upper()


def test_a_peer_that_goes_during_the_handshake(authority: Authority) -> None:
    ours, theirs = tcp_pair()
    theirs.shutdown(socket.SHUT_WR)
    channel = TlsChannel(ours, trusting(authority), "localhost")
    with theirs, closing(channel), pytest.raises(ssl.SSLEOFError):
        channel.handshake()


def test_a_refusal_that_nobody_hears(
    stranger: Authority, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that counts is TLS's own, not that of the alert."""
    ours, theirs = tcp_pair()
    with theirs, closing(TlsChannel(ours, trusting(authority), "localhost")) as channel:
        server = TlsServer(stranger, theirs, ssl.TLSVersion.TLSv1_3)
        receive = channel._receive

        def receive_and_go() -> int:
            count = receive()
            stdlib.socket.shutdown(ours, socket.SHUT_WR)
            return count

        monkeypatch.setattr(TlsChannel, "_receive", lambda _: receive_and_go())
        shaking = Greenlet.spawn(_failing, server.shake)
        with pytest.raises(ssl.SSLCertVerificationError):
            channel.handshake()
        shaking.get(timeout=AMPLE_S)


def test_a_reset_in_tls(sealed: tuple[Ends, TlsServer]) -> None:
    ends, _ = sealed
    ends.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.peer.close()
    with pytest.raises(ConnectionResetError):
        ends.read()


def test_a_duplicate_keeps_the_connection(plain: Ends) -> None:
    """In a child of fork the descriptor is made to lead nowhere; ours must be the only one."""
    plain.channel.unblock()
    number = plain.channel.fileno()
    spare = os.dup(number)
    plain.channel.close()
    with stdlib.socket(fileno=spare) as left:
        assert left.fileno() == spare
    assert plain.channel.fileno() == -1


def _failing(function: Any) -> Exception:
    try:
        function()
    except (OSError, ssl.SSLError) as error:
        return error
    raise AssertionError("it did not fail")
