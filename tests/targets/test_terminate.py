"""TLS that ends at the agent: the contract over each kind of target, and what TLS adds to it."""

from __future__ import annotations

import errno
import os
import ssl as standard_ssl
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, ssl
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexusg.config.destination import TlsTerminate
from nexusg.errors import TargetError
from nexusg.targets.base import READ_BYTES
from nexusg.targets.blocking import BlockingTarget
from nexusg.targets.certificates import Certificates
from nexusg.targets.memory import memory_pair
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from nexusg.targets.terminate import TerminatedTarget, terminate
from tests.targets.conformance import (
    BUFFER,
    PAYLOAD,
    TargetContract,
    read,
    read_exactly,
    receive,
    send_all,
    turns,
)
from tests.targets.pairs import tcp_pair, tls_pair, unix_pair
from tests.targets.test_blocking import Channel
from tests.targets.users import TlsUser


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.targets.base import Target
    from tests.support.certs import Authority
    from tests.targets.pairs import Contexts

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="session")
def how(authority: Authority) -> TlsTerminate:
    return TlsTerminate(str(authority.issue()))


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


def client(authority: Authority, version: Any = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca_file)
    if version:
        context.minimum_version = context.maximum_version = version
    return context


class TerminatedContract(TargetContract):
    """The contract through a user's TLS and the agent's."""

    version: Any = ssl.TLSVersion.TLSv1_3

    @pytest.fixture(autouse=True)
    def with_certificate(
        self, authority: Authority, how: TlsTerminate, certificates: Certificates
    ) -> None:
        self.authority, self.how, self.certificates = authority, how, certificates

    def connect(self) -> tuple[Target, Any]:
        target, peer = self.service()
        terminated = terminate(target, self.how, self.certificates)
        user = TlsUser(terminated, client(self.authority, self.version)).shake_hands()
        assert user.tls.version() == self.version.name.replace("_", ".")
        return user, peer

    def service(self) -> tuple[Target, Any]:
        raise NotImplementedError


class TestOverTcp(TerminatedContract):
    def service(self) -> tuple[Target, Any]:
        ours, theirs = tcp_pair()
        return SocketTarget(ours, "127.0.0.1:80", BUFFER), theirs


class TestOverTcpWithTls12(TestOverTcp):
    version = ssl.TLSVersion.TLSv1_2


class TestOverUnix(TerminatedContract):
    def service(self) -> tuple[Target, Any]:
        ours, theirs = unix_pair()
        return SocketTarget(ours, "unix:/run/app.sock", BUFFER), theirs


class TestOverMemory(TerminatedContract):
    def service(self) -> tuple[Target, Any]:
        return memory_pair()


class TestOverBlocking(TerminatedContract):
    def service(self) -> tuple[Target, Any]:
        ours, theirs = unix_pair()
        return BlockingTarget(Channel(ours), "handler:ssh"), theirs


class TestOverTls(TerminatedContract):
    """Ended, looked at, and encrypted again."""

    half_closes = False

    @pytest.fixture(autouse=True)
    def with_contexts(self, contexts: Contexts) -> None:
        self.contexts = contexts

    def service(self) -> tuple[Target, Any]:
        ours, theirs = tls_pair(self.contexts)
        return TlsSocketTarget(ours, "tls://localhost:443", BUFFER), theirs


class Rig:
    """A terminated target over memory, and what is at both of its ends."""

    def __init__(self, authority: Authority, how: TlsTerminate, certificates: Certificates) -> None:
        self.authority = authority
        inner, self.service = memory_pair()
        self.target = terminate(inner, how, certificates)

    def user(self, version: Any = None, context: ssl.SSLContext | None = None) -> TlsUser:
        """A user who has not begun."""
        return TlsUser(self.target, context or client(self.authority, version))

    def begun(self, version: Any = None) -> TlsUser:
        """A user whose handshake is done."""
        return self.user(version).shake_hands()


@pytest.fixture
def rig(authority: Authority, how: TlsTerminate, certificates: Certificates) -> Iterator[Rig]:
    rig = Rig(authority, how, certificates)
    yield rig
    rig.target.close()


def first_flight(context: ssl.SSLContext) -> tuple[Any, Any, bytes]:
    """A user's TLS and its incoming side, and the ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return tls, incoming, outgoing.read()


def error_of(function: Any, *args: Any) -> OSError:
    with pytest.raises(OSError, match=r".") as caught:
        function(*args)
    return caught.value


# --- The handshake ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_service_that_speaks_first(rig: Rig, version: Any) -> None:
    """SMTP over implicit TLS: the greeting waits until it can be encrypted."""
    rig.service.sendall(b"220 ready")
    assert rig.target.try_read(100) is None
    waiting = Greenlet.spawn(rig.target.wait_readable)
    turns()
    assert not waiting.ready()
    waiting.kill()
    assert read_exactly(rig.begun(version), 9) == b"220 ready"


def test_the_answer_wakes_up_the_reader(rig: Rig) -> None:
    """The service has said nothing, and is not going to."""
    _, _, hello = first_flight(client(rig.authority))
    reading = Greenlet.spawn(read, rig.target)
    turns()
    assert rig.target.try_send(hello[:10]) == 10
    turns()
    assert not reading.ready()
    assert rig.target.try_send(hello[10:]) == len(hello) - 10
    assert reading.get()[:1] == b"\x16", "a handshake record"
    assert rig.service.try_read(1) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_split_anywhere(rig: Rig, version: Any, size: int) -> None:
    """Neither direction may depend on where the relay cuts."""
    user = rig.user(version)

    class Slicing:
        name = "slicing"

        def try_send(self, data: Any) -> int:
            return rig.target.try_send(data[:size])

        send = try_send

        def try_read(self, limit: int) -> Any:
            return rig.target.try_read(size)

        def wait_readable(self) -> None:
            rig.target.wait_readable()

    user.target = Slicing()  # type: ignore[assignment]
    user.shake_hands()
    assert send_all(user, b"question" * 100) is None
    assert receive(rig.service, 800) == b"question" * 100
    rig.service.sendall(b"answer" * 100)
    assert read_exactly(user, 600) == b"answer" * 100


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "the user speaks plain HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "the user does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", "the TLS handshake with the user failed: "),
    ],
)
def test_what_is_no_handshake(rig: Rig, sent: bytes, text: str) -> None:
    reading = Greenlet.spawn(error_of, consume, rig.target)
    turns()
    error = error_of(rig.target.try_send, sent)
    assert (error.strerror or "").startswith(text)
    assert error.errno == errno.EPROTO
    assert reading.get() is error
    assert error_of(rig.target.try_send, b"more") is error
    assert rig.service.recv(1) == b"", "it is told that nothing comes"


def consume(target: Target) -> None:
    while read(target):
        pass


def test_an_old_version(rig: Rig, authority: Authority, certificates: Certificates) -> None:
    """And the user is told before the stream ends."""
    how = TlsTerminate(str(authority.issue()), min_version="1.3")
    inner, _ = memory_pair()
    target = terminate(inner, how, certificates)
    tls, incoming, hello = first_flight(client(authority, ssl.TLSVersion.TLSv1_2))
    error = error_of(target.try_send, hello)
    assert error.strerror == "the user speaks no version of TLS that minVersion allows"
    target.wait_readable()
    alert = target.try_read(100)
    assert alert
    incoming.write(alert)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
        tls.do_handshake()
    target.wait_readable()
    assert error_of(target.try_read, 100) is error
    target.close()


def test_a_user_who_does_not_trust_the_certificate(rig: Rig, stranger: Authority) -> None:
    user = rig.user(context=client(stranger))
    with pytest.raises(ssl.SSLCertVerificationError):
        user.shake_hands()
    error = error_of(user.flush)
    assert error.strerror == "the user does not accept the certificate: unknown ca"


def test_resumption(rig: Rig, how: TlsTerminate, certificates: Certificates) -> None:
    """A context that is shared by the streams of a route saves users half of the handshake."""
    context = client(rig.authority, ssl.TLSVersion.TLSv1_2)
    first = rig.user(context=context).shake_hands()
    inner, _ = memory_pair()
    target = terminate(inner, how, certificates)
    second = TlsUser(target, context)
    second.tls = context.wrap_bio(
        second._incoming, second._outgoing, server_hostname="localhost", session=first.tls.session
    )
    assert second.shake_hands().tls.session_reused
    target.close()


def test_alpn(rig: Rig) -> None:
    context = client(rig.authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert rig.user(context=context).shake_hands().tls.selected_alpn_protocol() == "http/1.1"


def test_without_a_certificate(certificates: Certificates, tmp_path: Any) -> None:
    inner, service = memory_pair()
    with pytest.raises(TargetError, match="tlsTerminate: cannot read certFile") as caught:
        terminate(inner, TlsTerminate(str(tmp_path / "missing.pem")), certificates)
    assert caught.value.code == "tls"
    assert service.recv(1) == b"", "the target was closed"


def test_it_is_called_what_the_service_is_called(rig: Rig) -> None:
    assert rig.target.name == "memory"
    assert repr(rig.target) == "<TerminatedTarget memory>"


# --- What is taken ---------------------------------------------------------------------------


class Slow:
    """A service that takes ``room`` bytes and has ``said`` something."""

    name = "slow"

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.taken = b""
        self.said: list[Any] = []
        self.ended = False
        self.closed = 0
        self.limits: list[int] = []

    def try_send(self, data: Any) -> int:
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)

    def send(self, data: Any) -> int:
        self.taken += bytes(data[:1000])
        return len(data[:1000])

    def try_read(self, limit: int) -> Any:
        self.limits.append(limit)
        found = self.said.pop(0) if self.said else None
        if isinstance(found, Exception):
            raise found
        return found if found is None else found[:limit]

    def wait_readable(self) -> None:
        if not self.said:
            Event().wait()

    def unsent_bytes(self) -> int:
        return 5

    def shutdown_write(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def slow(how: TlsTerminate, certificates: Certificates, authority: Authority) -> Any:
    """A slow service, the target in front of it, and a user whose handshake is done."""
    service = Slow()
    target = terminate(service, how, certificates)
    user = TlsUser(target, client(authority)).shake_hands()
    assert user.try_read(1) is None, "now it has its session tickets, too"
    service.limits.clear()
    return service, target, user


def encrypted(user: TlsUser, data: bytes) -> bytes:
    user.tls.write(data)
    return user._outgoing.read()


def test_nothing_is_reported_as_taken_before_the_service_has_it(slow: Any) -> None:
    service, target, user = slow
    data = encrypted(user, b"0123456789")
    service.room = 4
    assert target.try_send(data) == len(data) - 1
    assert service.taken == b"0123"
    for _ in "12":
        assert target.try_send(data[-1:]) == 0
    service.room = 6
    assert target.try_send(data[-1:]) == 1
    assert service.taken == b"0123456789"


def test_the_end_of_a_user_waits_for_what_was_said_before(slow: Any) -> None:
    service, target, user = slow
    data = encrypted(user, b"the end")
    with pytest.raises(ssl.SSLWantReadError):
        user.tls.unwrap()
    data += user._outgoing.read()
    assert target.try_send(data) == len(data) - 1
    assert not service.ended
    assert target.send(data[-1:]) == 1
    assert service.taken == b"the end"
    assert service.ended
    assert target.try_send(b"what comes behind it is ignored") == 31
    assert target.send(b"this too") == 8


def test_what_is_held_is_bounded(slow: Any) -> None:
    """However much is offered: as much as one call feeds, and no record more."""
    service, target, user = slow
    data = b"".join(encrypted(user, PAYLOAD[at : at + 16384]) for at in range(0, 1 << 20, 16384))
    taken = target.try_send(data)
    assert taken == READ_BYTES - 1
    assert target.try_send(data[taken:]) == 0
    assert len(target._plain) + target._incoming.pending <= READ_BYTES
    while taken < len(data):
        taken += target.send(data[taken:])
    assert service.taken == PAYLOAD


def test_a_busy_service_fills_whole_frames(slow: Any) -> None:
    service, target, _ = slow
    service.said = [PAYLOAD] * 10
    sizes = [len(target.try_read(65536)) for _ in range(10)]
    assert sizes == [65536] * 10
    assert target._outgoing.pending < 4096
    assert service.limits[0] == 65536
    assert all(60_000 < limit <= 65536 for limit in service.limits)


def test_a_limit_is_kept(slow: Any) -> None:
    service, target, _ = slow
    service.said = [b"x" * 100]
    found = b""
    while (data := target.try_read(7)) is not None:
        assert 0 < len(data) <= 7
        found += data
    assert len(found) > 7


def test_a_failure_comes_after_what_was_said_before(slow: Any) -> None:
    service, target, user = slow
    gone = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    service.said = [b"last words", gone]
    first = target.try_read(10)
    assert len(first) == 10
    target.wait_readable()
    user._incoming.write(first + target.try_read(100))
    assert user.tls.read(100) == b"last words"
    target.wait_readable()
    assert error_of(target.try_read, 100) is gone
    assert error_of(target.try_read, 100) is gone


def test_unsent_bytes_are_the_service_s(slow: Any) -> None:
    assert slow[1].unsent_bytes() == 5


def test_a_user_who_goes_without_a_word(slow: Any) -> None:
    """As most servers do: the service decides by its own protocol whether that was all."""
    service, target, _ = slow
    target.shutdown_write()
    assert service.ended


# --- The ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_under_way_at_the_end_of_the_service(rig: Rig, version: Any) -> None:
    """The end is told in one direction; in the midst of a record, and with more behind it."""
    user = rig.begun(version)
    data = encrypted(user, b"under way") + encrypted(user, b", and more")
    assert rig.target.try_send(data[:10]) == 10
    rig.service.shutdown_write()
    assert read(user) == b""
    assert rig.target.try_send(data[10:]) == len(data) - 10
    assert receive(rig.service, 19) == b"under way, and more"
    assert read(rig.target) == b""
    user.shutdown_write()
    assert rig.service.recv(1) == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_service_ends_while_the_user_waits_for_room(
    version: Any, authority: Authority, how: TlsTerminate, certificates: Certificates
) -> None:
    service = Slow()
    target = terminate(service, how, certificates)
    user = TlsUser(target, client(authority, version)).shake_hands()
    data = encrypted(user, b"one") + encrypted(user, b"two")
    assert target.try_send(data) == len(data) - 1
    service.said = [b""]
    assert read(user) == b""
    assert target.send(data[-1:]) == 1
    assert service.taken == b"onetwo"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_user_ends_first(rig: Rig, version: Any) -> None:
    user = rig.begun(version)
    assert send_all(user, b"question") is None
    user.shutdown_write()
    assert rig.service.recv(100) == b"question"
    assert rig.service.recv(1) == b""
    rig.service.sendall(b"answer")
    rig.service.shutdown_write()
    assert read_exactly(user, 6) == b"answer"
    assert read(user) == b""


def test_broken_records_end_the_stream(rig: Rig) -> None:
    user = rig.begun()
    reading = Greenlet.spawn(error_of, consume, rig.target)
    turns()
    data = bytearray(encrypted(user, b"data"))
    data[-1] ^= 1
    error = error_of(rig.target.try_send, bytes(data))
    assert (error.strerror or "").startswith("the TLS of the user is broken: ")
    assert reading.get() is error
    assert rig.service.recv(1) == b""


def test_broken_records_wake_up_who_waits_for_a_socket(
    authority: Authority, how: TlsTerminate, certificates: Certificates
) -> None:
    ours, theirs = unix_pair()
    target = terminate(SocketTarget(ours, "x", BUFFER), how, certificates)
    user = TlsUser(target, client(authority)).shake_hands()
    reading = Greenlet.spawn(error_of, consume, target)
    turns()
    error = error_of(target.try_send, bytes(len(encrypted(user, b"data"))))
    assert reading.get() is error
    assert theirs.recv(1) == b""
    theirs.close()


def test_an_alert_goes_out_when_records_are_broken(rig: Rig) -> None:
    user = rig.begun()
    assert user.try_read(1) is None
    data = bytearray(encrypted(user, b"data"))
    data[-1] ^= 1
    error_of(rig.target.try_send, bytes(data))
    rig.target.wait_readable()
    user._incoming.write(rig.target.try_read(100) or b"")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        user.tls.read(100)


def test_no_renegotiation(rig: Rig) -> None:
    """What Python cannot begin OpenSSL must not answer: the option is set."""
    target = rig.target
    assert isinstance(target, TerminatedTarget)
    assert target._tls.context.options & standard_ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize("secured", [False, True])
def test_close_wakes_up_the_reader(rig: Rig, secured: bool) -> None:
    if secured:
        rig.begun()
    reading = Greenlet.spawn(error_of, consume, rig.target)
    turns()
    assert not reading.ready()
    rig.target.close()
    rig.target.close()
    assert reading.get().errno == errno.EBADF
    assert error_of(rig.target.try_send, b"").errno == errno.EBADF


def test_a_service_that_fails_while_it_is_waited_for(slow: Any) -> None:
    service, target, _ = slow

    def fail() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    service.wait_readable = fail
    assert isinstance(error_of(target.wait_readable), ConnectionResetError)


steps = st.lists(
    st.tuples(st.sampled_from(["user", "service", "room"]), st.integers(1, 40_000)), max_size=12
)


@given(steps, st.sampled_from(VERSIONS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_bytes_come_out_as_they_went_in(
    authority: Authority,
    how: TlsTerminate,
    certificates: Certificates,
    steps: list[tuple[str, int]],
    version: Any,
) -> None:
    service = Slow()
    target = terminate(service, how, certificates)
    user = TlsUser(target, client(authority, version)).shake_hands()
    said, heard, asked = b"", b"", b""
    rest = b""
    for step, count in steps:
        if step == "user":
            rest += PAYLOAD[:count]
            asked += PAYLOAD[:count]
        elif step == "room":
            service.room = count
        else:
            service.said.append(PAYLOAD[:count])
            said += PAYLOAD[:count]
        rest = rest[user.try_send(rest) :]
        while data := user.try_read(65536):
            heard += data
        assert asked.startswith(service.taken)
    service.room = len(asked)
    assert send_all(user, rest) is None
    while data := user.try_read(65536):
        heard += data
    assert (service.taken, heard) == (asked, said)
