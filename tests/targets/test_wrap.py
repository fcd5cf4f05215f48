"""What connect handlers may return."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket
from gevent.monkey import get_original

from nexusg.errors import TargetError
from nexusg.targets.blocking import BlockingTarget
from nexusg.targets.memory import memory_pair
from nexusg.targets.sockets import SocketTarget, TlsSocketTarget
from nexusg.targets.udp import UdpTarget
from nexusg.targets.wrap import as_target, as_udp_target
from tests.targets.conformance import BUFFER, TargetContract
from tests.targets.pairs import native_pair, tls_pair, udp_pair, unix_datagram_pair, unix_pair
from tests.targets.test_blocking import Channel


if TYPE_CHECKING:
    from nexusg.targets.base import Target
    from tests.targets.pairs import Contexts


class TestNative(TargetContract):
    """A socket of the standard library in a process that is not patched."""

    def connect(self) -> tuple[Target, Any]:
        ours, theirs = native_pair()
        return as_target(ours, "handler:app", BUFFER), theirs


def test_gevent_sockets() -> None:
    ours, theirs = unix_pair()
    target = as_target(ours, "handler:app", BUFFER)
    assert type(target) is SocketTarget
    assert target.name == "handler:app"
    target.close()
    theirs.close()


def test_gevent_tls_sockets(contexts: Contexts) -> None:
    ours, theirs = tls_pair(contexts)
    target = as_target(ours, "handler:app", BUFFER)
    assert type(target) is TlsSocketTarget
    target.close()
    theirs.close()


def test_native_sockets_are_adopted() -> None:
    ours, theirs = native_pair()
    number = ours.fileno()
    target = as_target(ours, "handler:app", BUFFER)
    assert type(target) is SocketTarget
    assert (ours.fileno(), target._sock.fileno()) == (-1, number)
    target.close()
    theirs.close()


def test_targets_come_back_as_they_are() -> None:
    ours, theirs = unix_pair()
    target = SocketTarget(ours, "its own name", BUFFER)
    assert as_target(target, "x", BUFFER) is target
    assert target.name == "its own name"
    one, _ = memory_pair()
    assert as_target(one, "x", BUFFER) is one
    target.close()
    theirs.close()


def test_other_objects_are_wrapped() -> None:
    ours, theirs = unix_pair()
    target = as_target(Channel(ours), "handler:ssh", BUFFER)
    assert type(target) is BlockingTarget
    assert target.name == "handler:ssh"
    target.close()
    theirs.close()


def test_native_tls_sockets_are_refused() -> None:
    """With what a patched process has for them; the last test does it with a real one."""

    class NativeTls(get_original("socket", "socket")):  # type: ignore[misc]
        def do_handshake(self) -> None:
            pass

    with (
        NativeTls() as sock,
        pytest.raises(TargetError, match=r"make it with gevent\.ssl") as caught,
    ):
        as_target(sock, "x", BUFFER)
    assert caught.value.code == "handler"


@pytest.mark.parametrize("pair", [unix_pair, native_pair])
def test_closed_sockets_are_refused(pair: Any) -> None:
    ours, theirs = pair()
    ours.close()
    theirs.close()
    with pytest.raises(TargetError, match="a closed socket"):
        as_target(ours, "x", BUFFER)


class NoClose:
    recv = send = bool
    close = "not a method"


@pytest.mark.parametrize("thing", ["127.0.0.1:80", ("127.0.0.1", 80), 5, NoClose(), lambda: None])
def test_anything_else_is_refused(thing: object) -> None:
    with pytest.raises(TargetError) as caught:
        as_target(thing, "x", BUFFER)
    assert str(caught.value) == (
        f"the connect handler returned {type(thing).__name__}, and a connected socket, or an "
        "object with recv(), send() and close() is wanted"
    )
    assert caught.value.code == "handler"


@pytest.mark.parametrize("native", [False, True])
def test_datagram_sockets(native: bool) -> None:
    ours, theirs = unix_datagram_pair(native=native)
    target = as_udp_target(ours, "handler:dns", BUFFER)
    assert type(target) is UdpTarget
    assert target.name == "handler:dns"
    assert as_udp_target(target, "x", BUFFER) is target
    target.close()
    theirs.close()


def test_tcp_and_udp_are_not_mixed_up() -> None:
    """And what was handed over by mistake is closed."""
    for pair, wrap, text in (
        (udp_pair, as_target, "a datagram socket for a TCP stream"),
        (unix_pair, as_udp_target, "another kind of socket for a UDP flow, and a connected"),
    ):
        ours, theirs = pair()
        with pytest.raises(TargetError, match=text) as caught:
            wrap(ours, "x", BUFFER)
        assert caught.value.code == "handler"
        assert ours.fileno() == -1
        theirs.close()


def test_a_datagram_socket_must_be_connected() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(TargetError, match="another kind of socket for a UDP flow"),
    ):
        as_udp_target(sock, "x", BUFFER)


@pytest.mark.parametrize("thing", [("127.0.0.1", 53), None, memory_pair()[0]])
def test_a_flow_wants_a_datagram_socket(thing: object) -> None:
    with pytest.raises(TargetError, match="and a connected datagram socket is wanted"):
        as_udp_target(thing, "x", BUFFER)


UNPATCHED = """
import socket, ssl, sys
from gevent import Greenlet, monkey
from nexusg.errors import TargetError
from nexusg.targets.memory import memory_pair
from nexusg.targets.wrap import as_target

assert not monkey.is_module_patched("socket")
buffer = bytearray(1024)

def read(target):
    while (data := target.try_read(100)) is None:
        target.wait_readable()
    return bytes(data)

def check(target, peer_send):
    reading = Greenlet.spawn(read, target)
    Greenlet.spawn(peer_send, b"hello").join()
    assert reading.get() == b"hello"
    target.close()

ours, theirs = socket.socketpair()
check(as_target(ours, "native", buffer), theirs.sendall)
theirs.close()
one, two = memory_pair()
check(as_target(one, "memory", buffer), two.sendall)
try:
    as_target(ssl.SSLSocket.__new__(ssl.SSLSocket), "tls", buffer)
except TargetError as error:
    assert "gevent.ssl" in str(error)
else:
    sys.exit("a blocking TLS socket was accepted")
print("fine")
"""


def test_in_an_unpatched_process() -> None:
    command = [sys.executable, "-W", "error", "-c", UNPATCHED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
