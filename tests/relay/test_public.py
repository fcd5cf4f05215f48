from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket

from nexusg.relay import public
from nexusg.relay.sniff import MAX_PRELUDE_BYTES
from tests.conftest import MS
from tests.relay.test_sniff import client_hello
from tests.support.relayed import HOST, RawAgent, http_get, read_to_end, user


if TYPE_CHECKING:
    from nexusg.protocol.stream import Stream
    from nexusg.relay.server import DevRelay
    from tests.relay.conftest import StartRelay

#: A patience that a passing test never uses up.
LONG_S = 20.0


def opened(relay: DevRelay, first: bytes, **claims: Any) -> tuple[Stream, bytes]:
    """The stream of a user who sends ``first``, and its first data message."""
    with RawAgent(relay, **claims) as agent:
        agent.wait_accepted()
        with user(relay, first):
            local = agent.wait_local()
            if first:
                agent.wait(lambda: local.frames)
            return local.stream, local.data


def test_http_is_routed_by_host(start_relay: StartRelay) -> None:
    relay = start_relay(sniff_timeout_s=LONG_S)
    request = http_get("APP.Example.com.:8080") + b"early body"
    stream, data = opened(relay, request)
    assert data == request, "handed on as it was"
    assert (stream.hostname, stream.is_tls, stream.is_udp) == (HOST, False, False)
    assert stream.conn_port == relay.public_ports[0]
    assert stream.client_ip.startswith("127.0.0.1:")
    assert stream.window.available == 64
    assert stream.id[6] >> 4 == 4, "a random UUID"


def test_a_request_in_pieces_is_one_prelude(start_relay: StartRelay) -> None:
    relay = start_relay(sniff_timeout_s=LONG_S)
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        with user(relay) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (http_get()[:7], http_get()[7:-1], http_get()[-1:]):
                sock.sendall(piece)
                assert agent.quiet(2 * MS) or piece == http_get()[-1:]
            local = agent.wait_local()
            agent.wait(lambda: local.frames)
            assert local.frames == [http_get()]


def test_tls_is_routed_by_server_name(start_relay: StartRelay) -> None:
    hello = client_hello("App.Example.com")
    stream, data = opened(start_relay(sniff_timeout_s=LONG_S), hello)
    assert data == hello
    assert (stream.hostname, stream.is_tls) == (HOST, True)


@pytest.mark.parametrize(
    ("first", "is_tls"),
    [(b"SSH-2.0-x\r\n", False), (client_hello(None), True), (b"GET / HTTP/1.1\r\n\r\n", False)],
)
def test_the_rest_belongs_to_the_ports_claim(
    start_relay: StartRelay, first: bytes, is_tls: bool
) -> None:
    relay = start_relay(sniff_timeout_s=LONG_S)
    port = relay.public_ports[0]
    stream, data = opened(relay, first, hostnames=None, tcp_ports=[port])
    assert data == first
    assert (stream.hostname, stream.is_tls) == (f"tcp:{port}", is_tls)


def test_a_server_that_speaks_first_waits_for_the_sniffing(start_relay: StartRelay) -> None:
    relay = start_relay(sniff_timeout_s=0.03)
    begin = time.monotonic()
    stream, data = opened(relay, b"", hostnames=None, tcp_ports=[relay.public_ports[0]])
    assert time.monotonic() - begin >= 0.03
    assert data == b""
    assert stream.hostname.startswith("tcp:")


def test_half_a_line_waits_for_a_share_of_that(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public, "UNDECIDED_SHARE", 0.03 / LONG_S)
    relay = start_relay(sniff_timeout_s=LONG_S)
    begin = time.monotonic()
    claims = {"hostnames": None, "tcp_ports": [relay.public_ports[0]]}
    _, data = opened(relay, b"\0\0\0\x08\x04\xd2\x16\x2f", **claims)
    assert time.monotonic() - begin >= 0.03
    assert data == b"\0\0\0\x08\x04\xd2\x16\x2f"


def test_a_prelude_of_64_kib(start_relay: StartRelay) -> None:
    head = http_get()[:-2] + b"X: "
    request = head + b"x" * (MAX_PRELUDE_BYTES - len(head) - 4) + b"\r\n\r\n"
    _, data = opened(start_relay(sniff_timeout_s=LONG_S), request)
    assert data == request


def test_more_than_that_is_dropped(start_relay: StartRelay) -> None:
    relay = start_relay(sniff_timeout_s=LONG_S)
    with user(relay, b"\0" * MAX_PRELUDE_BYTES) as sock:
        assert read_to_end(sock) == b""


def test_a_user_who_leaves_before_saying_anything(start_relay: StartRelay) -> None:
    relay: Any = start_relay(sniff_timeout_s=LONG_S)
    with user(relay) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b""
    assert relay.config.on_log.events == ["relay.started"]


def test_an_unknown_host_does_not_fall_back_to_the_port(start_relay: StartRelay) -> None:
    relay: Any = start_relay(sniff_timeout_s=LONG_S)
    with RawAgent(relay, tcp_ports=[relay.public_ports[0]]) as agent:
        agent.wait_accepted()
        with user(relay, http_get("other.example.com")) as sock:
            assert read_to_end(sock) == b""
        fields = relay.config.on_log.wait("user.no_backend")
        assert fields["name"] == "other.example.com"
        assert agent.locals == []


def test_a_backend_that_is_going_gets_no_users(start_relay: StartRelay) -> None:
    relay: Any = start_relay(sniff_timeout_s=LONG_S)
    with RawAgent(relay) as agent:
        agent.wait_accepted()
        relay.agents[0].session.close()
        with user(relay, http_get()) as sock:
            assert read_to_end(sock) == b""


def test_users_are_shared_out_by_weight(start_relay: StartRelay) -> None:
    relay = start_relay(sniff_timeout_s=LONG_S)
    with RawAgent(relay, weight=1) as light, RawAgent(relay, weight=3) as heavy:
        light.wait_accepted()
        heavy.wait_accepted()
        users = [user(relay, http_get()) for _ in range(8)]
        light.wait(lambda: len(light.locals) == 2)
        heavy.wait(lambda: len(heavy.locals) == 6)
        for sock in users:
            sock.close()
