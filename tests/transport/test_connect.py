"""TCP, UDP and unix connections, within a time."""

from __future__ import annotations

import errno
import os
import resource
import socket as native
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, socket
from gevent.monkey import get_original

from nexusg.transport import connect as module
from nexusg.transport.connect import (
    MEETINGS,
    closed_on_error,
    connect_native,
    connect_tcp,
    connect_udp,
    connect_unix,
    join_host_port,
)
from nexusg.transport.failure import ConnectError
from nexusg.transport.resolve import SocketAddress
from tests.transport.servers import Server, answering, needs_ipv6, serving


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts addresses in the place of what a name resolves to."""

    def replace(*found: tuple[int, tuple[Any, ...]]) -> None:
        monkeypatch.setattr(module, "resolve", lambda *_: [SocketAddress(*one) for one in found])

    return replace


def test_places() -> None:
    assert join_host_port("a.test", 80) == "a.test:80"
    assert join_host_port("::1", 80) == "[::1]:80"


@pytest.mark.parametrize("near", [True, False])
def test_connecting(monkeypatch: pytest.MonkeyPatch, near: bool) -> None:
    """Whoever is on this host needs no probes to find out that the other end has gone."""
    if not near:
        monkeypatch.setattr(module, "_HOST_ITSELF", ())
    with serving(answering(b"hello")) as server:
        sock = connect_tcp("127.0.0.1", server.port, 5)
        sock.sendall(b"x\r\n\r\n")
        assert sock.recv(10) == b"hello"
        assert sock.gettimeout() is None
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is not near
        if hasattr(socket, "TCP_KEEPIDLE") and not near:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        sock.close()


def test_a_socket_of_the_standard_library() -> None:
    """Non-blocking, and connected: local services are worth no socket of gevent."""
    with serving(answering(b"hello")) as server:
        sock = connect_native("127.0.0.1", server.port, 5)
        assert type(sock) is get_original("socket", "socket")
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getpeername()[1] == server.port
        sock.close()


def test_localhost_falls_back_from_ipv6_to_ipv4() -> None:
    with serving(answering(b"")) as server:
        sock = connect_tcp("localhost", server.port, 5)
        assert sock.getpeername() == ("127.0.0.1", server.port)
        sock.close()


@needs_ipv6
def test_ipv6() -> None:
    with serving(answering(b""), host="::1") as server:
        for host in ("::1", "localhost"):
            sock = connect_tcp(host, server.port, 5)
            assert sock.getpeername()[:2] == ("::1", server.port)
            sock.close()


def test_refused(refusing: tuple[str, int]) -> None:
    with pytest.raises(ConnectError) as caught:
        connect_tcp(*refusing, 5)
    assert caught.value.code == "refused"
    assert str(caught.value) == f"cannot connect to 127.0.0.1:{refusing[1]}: Connection refused"
    assert isinstance(caught.value.__cause__, OSError)


def test_an_address_that_fails_at_once(addresses: Any) -> None:
    addresses((socket.AF_INET, ("255.255.255.255", 9)))  # broadcast is not for TCP
    with pytest.raises(ConnectError) as caught:
        connect_tcp("x.test", 9, 5)
    assert caught.value.code in ("unreachable", "io")


def test_no_address_family(addresses: Any, refusing: tuple[str, int]) -> None:
    """A kernel without IPv6: what IPv4 said counts, where there is IPv4."""
    addresses((999, ("::1", 9, 0, 0)))
    with pytest.raises(ConnectError) as caught:
        connect_tcp("x.test", 9, 5)
    assert caught.value.code == "unreachable"
    addresses((999, ("::1", 9, 0, 0)), (socket.AF_INET, refusing))
    with pytest.raises(ConnectError) as caught:
        connect_tcp("x.test", 9, 5)
    assert caught.value.code == "refused"


def test_a_refusal_starts_the_next_address_at_once(
    addresses: Any, refusing: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_START_S", 60)
    with serving(answering(b"")) as server:
        addresses(*[(socket.AF_INET, refusing)] * 3, (socket.AF_INET, (server.host, server.port)))
        sock = connect_tcp("x.test", 9, 5)
        assert sock.getpeername() == (server.host, server.port)
        sock.close()


def test_a_silent_address_has_a_head_start_only(
    addresses: Any, deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_START_S", 0.01)
    with serving(answering(b"")) as server:
        addresses((socket.AF_INET, deaf), (socket.AF_INET, (server.host, server.port)))
        sock = connect_tcp("x.test", 9, 5)
        assert sock.getpeername() == (server.host, server.port)
        sock.close()


def test_the_last_hope_is_waited_for(
    addresses: Any,
    deaf: tuple[str, int],
    refusing: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEAD_START_S", 0.001)
    addresses((socket.AF_INET, deaf), (socket.AF_INET, refusing))
    with pytest.raises(ConnectError, match="took longer"):
        connect_tcp("x.test", 9, 0.02)


def test_connecting_takes_too_long(deaf: tuple[str, int]) -> None:
    with pytest.raises(
        ConnectError, match=r"connecting to 127.0.0.1:\d+ took longer than 0.02 s"
    ) as caught:
        connect_tcp(*deaf, 0.02)
    assert caught.value.code == "timeout"


def test_looking_up_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve", lambda *_: gevent.sleep(5))
    with pytest.raises(ConnectError, match=r"looking up x.test took longer than 0.02 s") as caught:
        connect_tcp("x.test", 9, 0.02)
    assert caught.value.code == "timeout"


def test_a_killed_dial_leaves_nothing(deaf: tuple[str, int]) -> None:
    dial = Greenlet.spawn(connect_tcp, *deaf, 5)
    gevent.sleep(0.005)
    dial.kill()
    assert isinstance(dial.value, gevent.GreenletExit)


def test_many_descriptors() -> None:
    """select() ends at 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("not enough descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    null = os.open(os.devnull, os.O_RDONLY)
    copies = [os.dup(null) for _ in range(1100)]
    try:
        with serving(answering(b"")) as server:
            connect_tcp("127.0.0.1", server.port, 5).close()
    finally:
        for number in [null, *copies]:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_meeting_itself_is_a_refusal(addresses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound to the port that is dialled, as the system does by chance one time in 28,000."""

    class Bound(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.bind(("127.0.0.1", 0))

        def connect_ex(self, _: Any) -> int:
            return super().connect_ex(self.getsockname())

    monkeypatch.setattr("nexusg.transport.connect.socket.socket", Bound)
    addresses((socket.AF_INET, ("127.0.0.1", 9)))
    with pytest.raises(ConnectError) as caught:
        connect_tcp("x.test", 9, 5)
    assert caught.value.code == "refused"


def test_a_connection_that_is_gone_again_is_not_its_own_peer() -> None:
    with socket.socket() as sock:
        assert not module._meets_itself(sock)


# --- UDP -------------------------------------------------------------------------------------


def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        port = service.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with connect_udp(host, port, 5) as sock:
                assert sock.getpeername() == ("127.0.0.1", port)
                assert sock.gettimeout() is None
                sock.send(b"x")
                assert service.recvfrom(10) == (b"x", sock.getsockname())


@needs_ipv6
def test_udp_over_ipv6() -> None:
    with connect_udp("::1", 9, 5) as sock:
        assert sock.getpeername()[:2] == ("::1", 9)


def test_udp_takes_an_address_with_a_route(addresses: Any) -> None:
    addresses((999, ("::1", 9, 0, 0)), (socket.AF_INET, ("127.0.0.1", 9)))
    with connect_udp("x.test", 9, 5) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
    addresses((999, ("::1", 9, 0, 0)))
    with pytest.raises(ConnectError, match=r"cannot connect to x.test:9: Address family") as caught:
        connect_udp("x.test", 9, 5)
    assert caught.value.code == "unreachable"


def test_udp_look_up_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve", lambda *_: gevent.sleep(5))
    with pytest.raises(ConnectError, match=r"looking up x.test took longer than 0.02 s") as caught:
        connect_udp("x.test", 9, 0.02)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize("times", [1, MEETINGS])
def test_udp_does_not_meet_itself(
    addresses: Any, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A service that is down would be answered by its own requests, and kept from its port."""
    made = []

    class Bound(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.bind(("127.0.0.1", 0))
            made.append(self)

        def connect(self, address: Any) -> None:
            super().connect(self.getsockname() if len(made) <= times else address)

    monkeypatch.setattr("nexusg.transport.connect.socket.socket", Bound)
    addresses((socket.AF_INET, ("127.0.0.1", 9)))
    if times < MEETINGS:
        with connect_udp("x.test", 9, 5) as sock:
            assert sock.getpeername() == ("127.0.0.1", 9)
    else:
        with pytest.raises(ConnectError) as caught:
            connect_udp("x.test", 9, 5)
        assert caught.value.code == "refused"
    assert len(made) == min(times + 1, MEETINGS)
    assert {sock.fileno() for sock in made} == {-1}


# --- Unix sockets ----------------------------------------------------------------------------


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A unix listener with the smallest backlog there is."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        yield path, listener


def test_unix(unix: tuple[str, Any]) -> None:
    path, listener = unix
    with connect_unix(path, 5) as sock, listener.accept()[0] as accepted:
        assert sock.gettimeout() is None
        accepted.sendall(b"hello")
        assert sock.recv(10) == b"hello"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="Linux only")
def test_abstract_unix() -> None:
    name = f"nexusg-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen(1)
        connect_unix(f"@{name}", 5).close()
    with pytest.raises(ConnectError) as caught:
        connect_unix(f"@{name}", 5)
    assert caught.value.code == "refused"
    assert str(caught.value) == f"cannot connect to @{name}: Connection refused"


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("missing", "refused", "No such file or directory"),
        ("x" * 200, "io", "AF_UNIX path too long"),
    ],
)
def test_unix_failures(tmp_path: Path, name: str, code: str, why: str) -> None:
    with pytest.raises(ConnectError, match=why) as caught:
        connect_unix(str(tmp_path / name), 5)
    assert caught.value.code == code


def fill(path: str) -> list[Any]:
    """Connections until the backlog is full. Linux then says EAGAIN, which nothing can wait for."""
    fillers = []
    while True:
        sock = native.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        fillers.append(sock)
        if sock.connect_ex(path) == errno.EAGAIN:
            return fillers


def test_a_full_backlog_is_waited_for(unix: tuple[str, Any]) -> None:
    path, listener = unix
    fillers = fill(path)
    dial = Greenlet.spawn(connect_unix, path, 5)
    gevent.sleep(0)
    assert not dial.ready()
    accepted = listener.accept()[0]
    dial.get(timeout=5).close()
    for sock in [accepted, *fillers]:
        sock.close()


def test_a_full_backlog_takes_too_long(unix: tuple[str, Any]) -> None:
    path, _ = unix
    fillers = fill(path)
    with pytest.raises(ConnectError, match=r"took longer than 0.01 s") as caught:
        connect_unix(path, 0.01)
    assert caught.value.code == "timeout"
    for sock in fillers:
        sock.close()


def test_closed_on_error() -> None:
    sock = socket.socket()
    with closed_on_error(sock):
        pass
    assert sock.fileno() >= 0
    with pytest.raises(gevent.Timeout), closed_on_error(sock):
        raise gevent.Timeout
    assert sock.fileno() == -1


def test_servers_are_quiet() -> None:
    """The helper itself: what breaks a connection is recorded, not raised."""

    def breaking(_: Server, sock: Any) -> None:
        raise ConnectionResetError

    with serving(breaking) as server:
        connect_tcp("127.0.0.1", server.port, 5).close()
        gevent.sleep(0)
        server.wait()
        assert [type(error) for error in server.errors] == [ConnectionResetError]
