from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Greenlet, socket
from gevent.ssl import SSLContext

from nexusg.agent.tasks import Tasks
from nexusg.errors import ConfigError
from nexusg.relay import certs
from nexusg.relay.hub import server_context
from nexusg.relay.sockets import Listener, linger, peer_name
from tests.conftest import MS
from tests.support.relayed import AMPLE_S


if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tasks() -> Tasks:
    return Tasks("test", lambda name, error: None)


def connect(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), AMPLE_S)


def test_each_connection_is_served_and_closed(tasks: Tasks) -> None:
    listener = Listener(tasks, "x", ("127.0.0.1", 0), lambda sock, peer: sock.sendall(b"hi"))
    listener.start()
    for _ in range(2):
        with connect(listener) as client:
            assert client.recv(10) == b"hi"
            assert client.recv(10) == b""
    listener.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(listener)


def test_the_peer_is_named_and_the_socket_closed_after_an_error(tasks: Tasks) -> None:
    peers = []

    def serve(sock: socket.socket, peer: str) -> None:
        peers.append(peer)
        raise ValueError

    listener = Listener(tasks, "x", ("127.0.0.1", 0), serve)
    listener.start()
    with connect(listener) as client:
        assert client.recv(10) == b""
        assert peers == [f"127.0.0.1:{client.getsockname()[1]}"]
    listener.stop()


def test_ipv6(tasks: Tasks) -> None:
    listener = Listener(tasks, "x", ("::1", 0), lambda sock, peer: sock.sendall(peer.encode()))
    try:
        listener.start()
    except ConfigError:
        pytest.skip("no IPv6 here")
    with socket.create_connection(("::1", listener.port), AMPLE_S) as client:
        assert client.recv(100).startswith(b"[::1]:")
    listener.stop()


def test_a_port_in_use(tasks: Tasks) -> None:
    first = Listener(tasks, "x", ("127.0.0.1", 0), lambda sock, peer: None)
    first.start()
    second = Listener(tasks, "x", ("127.0.0.1", first.port), lambda sock, peer: None)
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:\d+: Address already in"):
        second.start()
    first.stop()
    second.stop()


def test_a_connection_whose_task_never_began_is_closed(tasks: Tasks) -> None:
    begun: list[str] = []
    listener = Listener(tasks, "x", ("127.0.0.1", 0), lambda sock, peer: begun.append(peer))
    listener.start()
    accepting = Greenlet.spawn(connect, listener)
    while not len(tasks):
        accepting.join(0)
    listener.stop()
    client = accepting.get()
    assert tasks.kill(AMPLE_S)
    listener.close_rest()
    assert client.recv(10) == b""
    client.close()


def test_linger_lets_the_last_words_arrive() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"crossing")
    ours.sendall(b"bye")
    lingering = Greenlet.spawn(linger, ours)
    assert theirs.recv(10) == b"bye"
    assert theirs.recv(10) == b""
    theirs.sendall(b"more")
    theirs.close()
    lingering.get(timeout=AMPLE_S)
    ours.close()


def test_linger_has_an_end() -> None:
    ours, theirs = socket.socketpair()
    linger(ours, 1 * MS)
    ours.close()
    theirs.close()


def test_linger_takes_a_reset() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(b"unread")
    theirs.close()
    linger(ours)
    ours.close()


class TestTls:
    """Lingering on a TLS connection between two ends that test greenlets move."""

    @pytest.fixture
    def ends(self, certificate_folder: Path) -> tuple[Any, Any]:
        ca_file, certificate_file = certs.ensure(certificate_folder)
        trusting = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(ca_file)
        ours, theirs = socket.socketpair()
        server = Greenlet.spawn(
            server_context(certificate_file).wrap_socket, ours, server_side=True
        )
        client = trusting.wrap_socket(theirs, server_hostname="localhost")
        return server.get(), client

    def test_it_says_goodbye(self, ends: tuple[Any, Any]) -> None:
        ours, theirs = ends
        theirs.suppress_ragged_eofs = False
        lingering = Greenlet.spawn(linger, ours)
        assert theirs.recv(10) == b""  # close_notify: without it this would be an error
        theirs.unwrap()
        theirs.close()
        lingering.get(timeout=AMPLE_S)
        ours.close()

    def test_data_of_the_peer_crosses_it(self, ends: tuple[Any, Any]) -> None:
        ours, theirs = ends
        theirs.sendall(b"crossing")
        lingering = Greenlet.spawn(linger, ours)
        assert theirs.recv(10) == b""
        theirs.close()
        lingering.get(timeout=AMPLE_S)
        ours.close()

    def test_a_silent_peer(self, ends: tuple[Any, Any]) -> None:
        ours, theirs = ends
        linger(ours, 1 * MS)
        ours.close()
        theirs.close()


def test_peer_name() -> None:
    assert peer_name(("192.0.2.1", 5)) == "192.0.2.1:5"
    assert peer_name(("2001:db8::1", 5, 0, 0)) == "[2001:db8::1]:5"
