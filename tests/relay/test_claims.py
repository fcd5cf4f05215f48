from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nexusg.relay.claims import Claims, Refused, number, parse


def test_an_empty_body() -> None:
    claims = parse({})
    assert claims == Claims()
    assert claims.names == []


def test_everything() -> None:
    claims = parse(
        {
            "hostnames": ["B.example.com.", "*.Ü.example", "b.example.com", " "],
            "tcp_ports": [5432, 22, 22],
            "udp_routes": [{"port": 53, "flow_idle_timeout_seconds": 60}, {"port": 54}],
            "weight": -1,
            "session_nonce": "n",
            "handshake_max_age_seconds": 5,
            "iat": 1.5,
            "outbound_allowed": True,
            "allowed_outbound_ports": [443],
            "reauth_interval_seconds": 6,
            "reauth_grace_seconds": 7,
            "maintenance_grace_cap_seconds": 0,
            "authorizer_status_uri": "https://a",
            "policy_version": "ignored",
            "sub": 5,
        }
    )
    assert dataclasses.asdict(claims) == {
        "hostnames": {"b.example.com", "*.xn--tda.example"},
        "tcp_ports": {22, 5432},
        "udp_routes": {(53, 60), (54, 30)},
        "weight": -1,
        "session_nonce": "n",
        "handshake_max_age_s": 5,
        "issued_at": 1.5,
        "outbound_allowed": True,
        "outbound_ports": {443},
        "reauth_interval_s": 6,
        "reauth_grace_s": 7,
        "maintenance_cap_s": 0,
        "status_uri": "https://a",
    }
    assert claims.names == [
        "*.xn--tda.example",
        "b.example.com",
        "tcp:22",
        "tcp:5432",
        "udp:53",
        "udp:54",
    ]


def test_idle_timeouts_are_clamped_before_they_are_compared() -> None:
    routes = [{"port": 1, "flow_idle_timeout_seconds": seconds} for seconds in (1, 5, 2)]
    assert parse({"udp_routes": routes}).udp_routes == {(1, 5)}
    assert parse({"udp_routes": [{"port": 1, "flow_idle_timeout_seconds": 9999}]}).udp_routes == {
        (1, 300)
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"weight": 1.0}, "weight is not of type int"),
        ({"weight": True}, "weight is not of type int"),
        ({"weight": "1"}, "weight is not of type int"),
        ({"hostnames": "a.b"}, "hostnames is not of type list"),
        ({"hostnames": ["a.b", 1]}, "hostnames is not a list of str"),
        ({"hostnames": ["", " . "]}, "no valid hostnames"),
        ({"hostnames": ["a.b", "TCP:53"]}, "reserved route key"),
        ({"tcp_ports": [1.5]}, "tcp_ports is not a list of int"),
        ({"tcp_ports": [0]}, "tcp_ports: a port must be between"),
        ({"allowed_outbound_ports": [65536]}, "allowed_outbound_ports: a port must be between"),
        ({"udp_routes": [53]}, "udp_routes is not a list of dict"),
        ({"udp_routes": [{}]}, "udp_routes: a port must be between"),
        (
            {"udp_routes": [{"port": 1}, {"port": 1, "flow_idle_timeout_seconds": 31}]},
            "port 1 has two idle timeouts",
        ),
        ({"outbound_allowed": 1}, "outbound_allowed is not of type bool"),
        ({"session_nonce": 1}, "session_nonce is not of type str"),
        ({"iat": "now"}, "iat is not a number"),
        ({"iat": True}, "iat is not a number"),
    ],
)
def test_refusals(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        parse(body)


def test_null_is_absent() -> None:
    assert parse(dict.fromkeys(("hostnames", "weight", "iat", "outbound_allowed"))) == Claims()


def test_number() -> None:
    assert (number({"exp": 5}, "exp"), number({}, "exp")) == (5, None)
