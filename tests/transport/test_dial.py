"""The whole dial, against real servers: independent ones where it succeeds."""

from __future__ import annotations

import os
import sys
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import gevent
import pytest
import wsproto
import wsproto.events
from gevent import Greenlet, socket, subprocess
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from nexusg.errors import DialFailed, UpgradeRefused
from nexusg.transport.dial import UNSENT_BYTES, open_link
from nexusg.transport.tls import TlsOptions
from tests.support.certs import LOOPBACK
from tests.transport.servers import (
    Server,
    accepting,
    answering,
    hanging,
    headers_of,
    needs_ipv6,
    serving,
)


if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.certs import Authority

pytestmark = pytest.mark.usefixtures("no_socket_left")

TEXT = b"\x81\x85\0\0\0\0hello"  # masked with a key of zeros
ECHO = b"\x81\x05hello"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy the machine has is no part of these tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def trust(authority: Authority) -> TlsOptions:
    return TlsOptions(ca_file=str(authority.ca_file))


def failure(url: str, **options: Any) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        open_link(url, **options)
    return caught.value


# --- Success ---------------------------------------------------------------------------------


def test_a_websockets_server_with_tls(authority: Authority, trust: TlsOptions) -> None:
    def handler(server: Server, sock: Any) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(server.read_request(sock))
        [request] = protocol.events_received()
        assert isinstance(request, Request)
        response = protocol.accept(request)
        assert response.status_code == 101
        protocol.send_response(response)
        sock.sendall(b"".join(protocol.data_to_send()))
        protocol.receive_data(sock.recv(100))
        [frame] = protocol.events_received()
        assert isinstance(frame, Frame)
        protocol.send_text(bytes(frame.data).upper())
        sock.sendall(b"".join(protocol.data_to_send()))

    with serving(handler, context=authority.server_context()) as server:
        link = open_link(f"wss://localhost:{server.port}/connect", tls=trust)
        assert (link.leftover, link.peer, link.tls_version, link.via_proxy) == (
            b"",
            server.place,
            "TLSv1.3",
            False,
        )
        link.channel.sendall(TEXT)
        assert link.channel.recv(100) == b"\x81\x05HELLO"
        link.channel.close()


def test_a_wsproto_server_that_speaks_at_once() -> None:
    def handler(server: Server, sock: Any) -> None:
        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        connection.receive_data(server.read_request(sock))
        [request] = connection.events()
        assert isinstance(request, wsproto.events.Request)
        assert (request.target, request.extensions, request.subprotocols) == ("/connect", [], [])
        sock.sendall(
            connection.send(wsproto.events.AcceptConnection())
            + connection.send(wsproto.events.TextMessage("early"))
        )
        connection.receive_data(sock.recv(100))
        [message] = connection.events()
        assert isinstance(message, wsproto.events.TextMessage)
        sock.sendall(message.data.upper().encode())

    with serving(handler) as server:
        link = open_link(server.url())
        assert link.leftover == b"\x81\x05early"
        assert link.tls_version is None
        link.channel.sendall(TEXT)
        assert link.channel.recv(100) == b"HELLO"
        link.channel.close()


def test_the_socket_is_ready_for_use() -> None:
    with serving(accepting()) as server, open_link(server.url()).channel._sock as sock:
        assert sock.gettimeout() is None
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
        with socket.socket() as untouched:
            untouched.connect((server.host, server.port))
            size = untouched.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size


def test_without_notsent_lowat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("nexusg.transport.dial.socket.TCP_NOTSENT_LOWAT", raising=False)
    with serving(accepting()) as server:
        open_link(server.url()).channel.close()


@needs_ipv6
def test_ipv6(authority: Authority, trust: TlsOptions) -> None:
    with serving(accepting(), context=authority.server_context(), host="::1") as server:
        link = open_link(server.url(), tls=trust)
        assert link.peer == server.place
        link.channel.close()
    assert headers_of(server.requests[0])["host"] == server.place


def test_an_early_frame_over_tls(authority: Authority, trust: TlsOptions) -> None:
    with serving(accepting(ECHO), context=authority.server_context()) as server:
        link = open_link(server.url(), tls=trust)
        assert link.leftover == ECHO
        link.channel.close()


def test_server_name(authority: Authority) -> None:
    options = TlsOptions(ca_file=str(authority.ca_file), server_name="inside.test")
    with serving(accepting(), context=authority.server_context(["inside.test"])) as server:
        open_link(server.url(), tls=options).channel.close()
        assert headers_of(server.requests[0])["host"] == server.place


# --- Failures, each at its step --------------------------------------------------------------


def test_addresses() -> None:
    error = failure("https://relay.test/connect")
    assert error.code == "address"
    assert "write wss://" in str(error)


def test_files_are_read_before_anything_is_dialled(tmp_path: Path) -> None:
    error = failure("wss://relay.test/", tls=TlsOptions(ca_file=str(tmp_path / "missing.pem")))
    assert error.code == "tls"
    assert "missing.pem" in str(error)


def test_an_unknown_name() -> None:
    error = failure(f"ws://{'a' * 70}.test/connect")
    assert error.code == "dns"
    assert error.__cause__ is not None


def test_refused(refusing: tuple[str, int]) -> None:
    error = failure(f"ws://127.0.0.1:{refusing[1]}/connect?token=hunter2")
    assert error.code == "refused"
    assert str(error) == f"cannot connect to 127.0.0.1:{refusing[1]}: Connection refused"


@pytest.mark.parametrize("defect", ["expired", "other name", "other authority"])
def test_no_request_reaches_a_server_without_a_valid_certificate(
    authority: Authority, stranger: Authority, trust: TlsOptions, defect: str
) -> None:
    issuer = stranger if defect == "other authority" else authority
    context = issuer.server_context(
        ["elsewhere.test"] if defect == "other name" else LOOPBACK,
        days=(-10, -1) if defect == "expired" else (-10, 10),
    )
    with serving(accepting(), context=context) as server:
        error = failure(server.url(), tls=trust)
        server.wait()
        assert server.requests == []
        assert server.errors, "the server is told"
    assert error.code == "tls"
    assert "certificate" in str(error)


def test_a_demanded_client_certificate(authority: Authority, trust: TlsOptions) -> None:
    context = authority.server_context(clients=authority)
    with serving(accepting(), context=context) as server:
        error = failure(server.url(), tls=trust)
    assert error.code in ("tls", "upgrade"), "the request may meet a closed connection first"


def closing(server: Server, sock: Any) -> None:
    server.read_request(sock)
    sock.close()


@pytest.mark.parametrize(
    "handler",
    [
        answering(b"SSH-2.0-x\r\n"),
        answering(b"HTTP/1.1 101 x\r\n\r\n"),
        closing,
    ],
)
def test_no_upgrade(authority: Authority, trust: TlsOptions, handler: Any) -> None:
    for context, options in ((None, {}), (authority.server_context(), {"tls": trust})):
        with serving(handler, context=context) as server:
            assert failure(server.url(), **options).code == "upgrade"


def test_a_refused_upgrade(authority: Authority, trust: TlsOptions) -> None:
    handler = answering(b"HTTP/1.1 503 x\r\nRetry-After: 7\r\n\r\n")
    context = authority.server_context()
    with serving(handler, context=context) as server, pytest.raises(UpgradeRefused) as caught:
        open_link(server.url(), tls=trust)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 7)


def test_a_connection_that_is_gone_right_after_the_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    def resetting(server: Server, sock: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.read_request(sock)
        sock.close()

    def upgrading(sock: Any, _: Any) -> bytes:
        sock.sendall(b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        return b""

    monkeypatch.setattr("nexusg.transport.dial.upgrade", upgrading)
    with serving(resetting) as server:
        error = failure(server.url())
    assert error.code == "upgrade"
    assert "broke: " in str(error)


# --- One time for everything -----------------------------------------------------------------


def test_the_tcp_connection_hangs(deaf: tuple[str, int]) -> None:
    error = failure(f"ws://127.0.0.1:{deaf[1]}/", timeout_s=0.02)
    assert error.code == "timeout"
    assert str(error) == f"connecting to 127.0.0.1:{deaf[1]} took longer than 0.02 s"


def test_the_tls_handshake_hangs() -> None:
    with serving(hanging) as server:
        error = failure(f"wss://127.0.0.1:{server.port}/", timeout_s=0.1)
    assert error.code == "timeout"
    assert str(error) == (
        f"{server.place} did not finish the TLS handshake within the 0.1 s of the whole dial"
    )


def test_the_upgrade_hangs() -> None:
    with serving(hanging) as server:
        error = failure(server.url(), timeout_s=0.1)
    assert error.code == "timeout"
    assert str(error) == (
        f"{server.place} did not answer the upgrade within the 0.1 s of the whole dial"
    )


def test_no_byte_prolongs_the_time(authority: Authority, trust: TlsOptions) -> None:
    def dripping(server: Server, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 101 x\r\nX: ")
        while True:
            sock.sendall(b"x")
            gevent.sleep(0.01)

    with serving(dripping, context=authority.server_context()) as server:
        assert failure(server.url(), tls=trust, timeout_s=0.1).code == "timeout"


def test_a_killed_dial_leaves_nothing() -> None:
    with serving(hanging) as server:
        for scheme in ("ws", "wss"):
            dial = Greenlet.spawn(open_link, f"{scheme}://{server.place}/")
            gevent.sleep(0.03)
            dial.kill()


# --- Through a proxy -------------------------------------------------------------------------


@pytest.fixture
def proxying() -> Iterator[Callable[[Server], Server]]:
    """Starts an HTTP proxy through which every name leads to the same server."""
    with ExitStack() as running:

        def start(target: Server) -> Server:
            def handler(server: Server, sock: Any) -> None:
                server.read_request(sock)
                with socket.create_connection((target.host, target.port)) as upstream:
                    sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = Greenlet.spawn(pump, upstream, sock)
                    try:
                        pump(sock, upstream)
                    finally:
                        back.kill()

            return running.enter_context(serving(handler))

        yield start


def pump(source: Any, sink: Any) -> None:
    while data := source.recv(4096):
        sink.sendall(data)


@pytest.mark.parametrize("secure", [True, False])
def test_through_a_proxy(
    authority: Authority, trust: TlsOptions, proxying: Callable[[Server], Server], secure: bool
) -> None:
    context: ssl.SSLContext | None = authority.server_context(["relay.test"]) if secure else None
    with serving(accepting(ECHO), context=context) as relay:
        proxy = proxying(relay)
        environ = {"ALL_PROXY": f"http://me:hunter2@{proxy.place}"}
        url = f"{'wss' if secure else 'ws'}://relay.test:8443/connect"
        link = open_link(url, tls=trust, environ=environ)
        assert (link.via_proxy, link.peer, link.leftover) == (True, proxy.place, ECHO)
        link.channel.close()
        assert proxy.requests[0].startswith(b"CONNECT relay.test:8443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6aHVudGVyMg==\r\n" in proxy.requests[0]
        assert b"roxy" not in relay.requests[0]
        assert headers_of(relay.requests[0])["host"] == "relay.test:8443"


def test_a_proxy_that_refuses() -> None:
    with serving(answering(b"HTTP/1.1 407 x\r\n\r\n")) as proxy:
        environ = {"HTTPS_PROXY": f"http://me:hunter2@{proxy.place}"}
        error = failure("wss://relay.test/", environ=environ)
    assert error.code == "proxy"
    assert "407" in str(error)
    assert "hunter2" not in str(error)


def test_a_proxy_that_cannot_be_reached(refusing: tuple[str, int], deaf: tuple[str, int]) -> None:
    error = failure("ws://relay.test/", environ={"HTTP_PROXY": f"http://127.0.0.1:{refusing[1]}"})
    assert error.code == "proxy"
    assert str(error) == (
        f"the proxy 127.0.0.1:{refusing[1]} cannot be reached:"
        f" cannot connect to 127.0.0.1:{refusing[1]}: Connection refused"
    )
    environ = {"HTTP_PROXY": f"http://127.0.0.1:{deaf[1]}"}
    assert failure("ws://relay.test/", environ=environ, timeout_s=0.02).code == "timeout"


def test_a_proxy_that_hangs() -> None:
    with serving(hanging) as proxy:
        environ = {"HTTP_PROXY": f"http://{proxy.place}"}
        error = failure("ws://relay.test/", environ=environ, timeout_s=0.1)
    assert error.code == "timeout"
    assert "did not open a tunnel to relay.test:80 in time" in str(error)


def test_the_environment_of_the_process_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test")
    assert failure("wss://relay.test/").code == "proxy"


# --- In a process that nobody patched --------------------------------------------------------

UNPATCHED = """
    import sys
    from gevent import monkey, ssl
    from nexusg.transport.dial import open_link
    from nexusg.transport.tls import TlsOptions
    from tests.transport.servers import accepting, serving

    certificate, authority = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(accepting(b"early"), context=context) as server:
        link = open_link(server.url(), tls=TlsOptions(ca_file=authority))
        print(link.leftover, link.tls_version, monkey.is_anything_patched())
        link.channel.close()
"""


def test_an_unpatched_process_dials_cooperatively(authority: Authority) -> None:
    """The server is a greenlet of the same process: it could not answer a dial that blocks."""
    arguments = [textwrap.dedent(UNPATCHED), str(authority.issue()), str(authority.ca_file)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", *arguments],
        capture_output=True,
        check=False,
        timeout=20,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == b""
    assert done.stdout == b"b'early' TLSv1.3 False\n"
