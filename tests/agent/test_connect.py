"""What a connect handler is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.agent.connect import connect_request, split_address
from nexusg.config.hostnames import normalize
from tests.support.pair import Pair


def request_of(**connect: Any) -> Any:
    """The request for a stream with these members of its connect message."""
    _, local = Pair.established().open(None, **connect)
    return connect_request("web", local.stream, normalize)


def test_every_member() -> None:
    assert dataclasses.asdict(request_of(hostname="App.Example.COM.")) == {
        "backend": "web",
        "client_id": "00000000-0000-0000-0000-000000000001",
        "hostname": "app.example.com",
        "original_hostname": "App.Example.COM.",
        "port": 443,
        "client_ip": "192.0.2.7",
        "client_port": 50000,
        "is_tls": True,
        "transport": "tcp",
    }


def test_udp_and_a_port_claim() -> None:
    request = request_of(transport="udp", hostname="udp:53", conn_port=53, is_tls=False)
    assert (request.transport, request.hostname, request.is_tls) == ("udp", "udp:53", False)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7:50000", ("192.0.2.7", 50000)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("192.0.2.7", ("192.0.2.7", 0)),
        ("2001:db8::1", ("2001:db8::1", 0)),
        ("::1", ("::1", 0)),
        ("[2001:db8::1]", ("2001:db8::1", 0)),
        ("", ("", 0)),
        ("host:", ("host:", 0)),
        ("host:http", ("host:http", 0)),
        ("192.0.2.7:" + "9" * 5000, ("192.0.2.7:" + "9" * 5000, 0)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@given(st.text(max_size=30))
def test_any_text_is_an_address_of_some_kind(text: str) -> None:
    """It is the relay's, and may be anything."""
    host, port = split_address(text)
    assert isinstance(host, str)
    assert 0 <= port <= 99_999
