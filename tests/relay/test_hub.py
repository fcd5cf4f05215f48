from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket
from websockets.sync.client import connect

from nexusg.relay import hub, upgrade
from tests.support.relayed import (
    AMPLE_S,
    UPGRADE,
    dial,
    make_token,
    read_to_end,
    upgraded,
)


if TYPE_CHECKING:
    from nexusg.relay.server import DevRelay
    from tests.relay.conftest import StartRelay


def exchange(relay: DevRelay, request: bytes) -> bytes:
    """The relay's whole answer to ``request``."""
    with dial(relay) as sock:
        sock.sendall(request)
        return read_to_end(sock)


@pytest.mark.parametrize("tls", [False, True])
def test_an_independent_client_gets_through_the_handshake(
    start_relay: StartRelay, tls: bool
) -> None:
    relay = start_relay(tls=tls)
    context = ssl.create_default_context(cafile=relay.ca_file) if tls else None
    with connect(relay.url, ssl=context, max_size=None) as client:
        client.send(make_token())
        challenge = json.loads(client.recv(AMPLE_S))
        assert challenge["type"] == "handshake_challenge"
        assert len(challenge["nonce"]) == 43
        client.send(make_token(session_nonce=challenge["nonce"]))
        pong = client.ping(b"accepted?")
        assert pong.wait(AMPLE_S)
        assert [link.claims.hostnames for link in relay.agents] == [{"app.example.com"}]


def test_a_client_that_prefers_h2_gets_it_and_fails(start_relay: StartRelay) -> None:
    relay = start_relay(tls=True)
    context = ssl.create_default_context(cafile=relay.ca_file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", relay.hub_port), AMPLE_S) as raw:
        client = context.wrap_socket(raw, server_hostname="localhost")
        assert client.selected_alpn_protocol() == "h2"
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.recv(20).startswith(b"HTTP/1.1 400 ")
        client.close()


@pytest.mark.parametrize("path", [b"/", b"/connect/", b"/mesh"])
def test_other_paths_are_not_found(start_relay: StartRelay, path: bytes) -> None:
    answer = exchange(start_relay(), UPGRADE.replace(b"/connect", path))
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_head_without_end(start_relay: StartRelay) -> None:
    answer = exchange(start_relay(), b"x" * upgrade.MAX_HEAD_BYTES)
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_client_that_says_nothing_is_dropped(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "UPGRADE_TIMEOUT_S", 0.005)
    relay: Any = start_relay()
    assert exchange(relay, b"") == b""
    assert relay.config.on_log.events == ["relay.started", "agent.failed"]


def test_a_client_that_leaves_before_its_request(start_relay: StartRelay) -> None:
    with dial(start_relay()) as sock:
        sock.sendall(b"GET /conn")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b""


def test_a_client_that_speaks_no_tls(start_relay: StartRelay) -> None:
    relay: Any = start_relay(tls=True)
    with socket.create_connection(("127.0.0.1", relay.hub_port), AMPLE_S) as sock:
        sock.sendall(UPGRADE)
        read_to_end(sock)
    assert relay.config.on_log.entries[-1][0] == "agent.failed"


def test_what_comes_right_behind_the_request_is_not_lost(start_relay: StartRelay) -> None:
    frame = b"\x81\x85\0\0\0\0hello"  # no token, but one that is read
    with dial(start_relay()) as sock:
        sock.sendall(UPGRADE + frame)
        assert b"malformed" in read_to_end(sock)


def test_the_context_cannot_be_made_from_nothing(tmp_path: Any) -> None:
    with pytest.raises(OSError, match="No such file"):
        hub.server_context(tmp_path / "missing.pem")


def test_the_upgrade_alone_registers_nobody(start_relay: StartRelay) -> None:
    relay = start_relay()
    with upgraded(relay):
        assert relay.agents == ()
