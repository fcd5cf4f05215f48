"""UDP targets: the contract over each kind of socket, what a refusal costs, and dialling."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import socket

from nexusg.errors import TargetError
from nexusg.targets.udp import UdpTarget, dial_udp
from nexusg.targets.wrap import as_udp_target
from tests.conftest import MS
from tests.targets.conformance import BUFFER, DatagramContract, read_datagram
from tests.targets.pairs import udp_pair, unix_datagram_pair
from tests.transport.servers import needs_ipv6


if TYPE_CHECKING:
    from collections.abc import Iterator


class TestUdp(DatagramContract):
    def connect(self) -> tuple[UdpTarget, Any]:
        ours, theirs = udp_pair()
        return UdpTarget(ours, "127.0.0.1:53", BUFFER), theirs


@needs_ipv6
class TestUdpOverIpv6(DatagramContract):
    def connect(self) -> tuple[UdpTarget, Any]:
        ours, theirs = udp_pair("::1")
        return UdpTarget(ours, "[::1]:53", BUFFER), theirs


class TestUnix(DatagramContract):
    """What a connect handler may return to serve a flow within the process."""

    def connect(self) -> tuple[UdpTarget, Any]:
        ours, theirs = unix_datagram_pair()
        return as_udp_target(ours, "handler:dns", BUFFER), theirs


class TestNative(DatagramContract):
    """A socket of the standard library in a process that is not patched."""

    def connect(self) -> tuple[UdpTarget, Any]:
        ours, theirs = unix_datagram_pair(native=True)
        return as_udp_target(ours, "handler:dns", BUFFER), theirs


class Scripted:
    """A socket whose calls raise what a test says, or return 1."""

    def __init__(self, *answers: int | OSError) -> None:
        self.answers = list(answers)

    def settimeout(self, _: float) -> None:
        """It never waits."""

    def send(self, *_: object) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    recv_into = send

    def getsockopt(self, *_: object) -> bytes:
        return b"as no Linux answers"


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
UNREACHABLE = OSError(errno.EHOSTUNREACH, "No route to host")
FULL = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("answers", "sent", "losses"),
    [
        ([1], True, {}),
        ([REFUSED, 1], True, {"refused": 1}),
        ([UNREACHABLE, UNREACHABLE], False, {"refused": 1}),
        ([FULL], False, {"full": 1}),
        ([REFUSED, FULL], False, {"refused": 1, "full": 1}),
    ],
)
def test_sending(answers: list[int | OSError], sent: bool, losses: dict[str, int]) -> None:
    """The report of an earlier datagram does not cost the next one as well."""
    sock = Scripted(*answers)
    target = UdpTarget(sock, "x", BUFFER)
    assert target.try_send(b"x") is sent
    assert target.losses() == losses
    assert not sock.answers


def test_a_refusal_is_read_and_counted() -> None:
    target = UdpTarget(Scripted(REFUSED, 1), "x", BUFFER)
    assert target.try_read(100) is None
    assert target.try_read(100) == BUFFER[:1]
    assert target.losses() == {"refused": 1}


def test_what_somebody_else_has_closed_is_an_error() -> None:
    ours, theirs = udp_pair()
    target = UdpTarget(ours, "x", BUFFER)
    target._sock.close()
    for method, *args in ((target.try_send, b"x"), (target.try_read, 100), (target.wait_readable,)):
        with pytest.raises(OSError, match=r"closed|file descriptor"):
            method(*args)
    target.close()
    theirs.close()


@pytest.fixture
def service() -> Iterator[Any]:
    """A UDP socket that nobody serves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(1)
        yield sock


def test_dial(service: Any) -> None:
    name = f"127.0.0.1:{service.getsockname()[1]}"
    target = dial_udp(name, BUFFER)
    assert target.name == name
    assert target.try_send(b"hello")
    data, peer = service.recvfrom(100)
    service.sendto(data.upper(), peer)
    assert read_datagram(target) == b"HELLO"
    target.close()


def test_a_service_that_comes_back_is_found(service: Any) -> None:
    """Case 36, with nothing but the kernel in between."""
    address = service.getsockname()
    target = dial_udp(f"localhost:{address[1]}", BUFFER)
    service.close()
    for _ in range(3):
        target.try_send(b"anyone?")
        gevent.sleep(MS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(1)
        assert target.try_send(b"back")
        assert again.recv(100) == b"back"
    assert target.losses() == {"refused": 3}
    target.close()


def test_others_cannot_answer(service: Any) -> None:
    target = dial_udp(f"127.0.0.1:{service.getsockname()[1]}", BUFFER)
    target.try_send(b"x")
    _, address = service.recvfrom(100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"forged", address)
        service.sendto(b"true", address)
        assert read_datagram(target) == b"true"
    target.close()


@pytest.mark.parametrize(
    ("target", "text", "code"),
    [
        ("unix:/run/x.sock", "target unix:/run/x.sock: a UDP flow needs host:port", "io"),
        ("tls://127.0.0.1:53", "target tls://127.0.0.1:53: a UDP flow needs host:port", "io"),
        ("127.0.0.1:no-such", "target 127.0.0.1:no-such: the system knows no UDP service", "dns"),
        (f"{'x' * 64}.invalid:53", "target xxx", "dns"),
    ],
)
def test_bad_targets(target: str, text: str, code: str) -> None:
    with pytest.raises(TargetError) as caught:
        dial_udp(target, BUFFER)
    assert str(caught.value).startswith(text)
    assert caught.value.code == code


def test_a_system_that_does_not_tell_of_overflows() -> None:
    assert UdpTarget(Scripted(), "x", BUFFER).overflowed() == 0
