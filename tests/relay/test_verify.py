from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay import verify
from nexusg.relay.claims import Claims, Refused
from nexusg.relay.verify import Rules


NOW = 1_700_000_000
SECRET = "short"
NONCE = "n" * 43
RULES = Rules(SECRET, tcp_ports=frozenset({5432}), udp_ports=frozenset({53}))
OUTBOUND = Rules(SECRET, allow_outbound=True)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sign(payload: bytes, alg: str = "HS256", secret: str = SECRET) -> str:
    """A token made without the library that checks it."""
    head = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode()) + "." + b64(payload)
    digest = f"sha{alg[2:]}" if alg.startswith("HS") else "sha256"
    return head + "." + b64(hmac.new(secret.encode(), head.encode(), digest).digest())


def token(alg: str = "HS256", **claims: Any) -> str:
    usual = {"iss": "authorizer", "aud": "nexus", "hostnames": ["a.example.com"]}
    body = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return sign(json.dumps(body).encode(), alg)


def stage_0(rules: Rules = RULES, **claims: Any) -> Claims:
    return verify.handshake(token(**claims), rules, NOW)


def stage_1(expected: Claims, rules: Rules = RULES, **claims: Any) -> Claims:
    claims = {"session_nonce": NONCE, **claims}
    return verify.attest(token(**claims), rules, NOW, NONCE, expected)


def renew(registered: Claims, rules: Rules = RULES, **claims: Any) -> Claims:
    claims = {"session_nonce": NONCE, **claims}
    return verify.reauth(token(**claims), rules, NOW, NONCE, registered)


# Signature and registered claims -------------------------------------------------------------


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_algorithms(alg: str) -> None:
    claims = verify.handshake(token(alg), RULES, NOW)
    assert claims.hostnames == {"a.example.com"}
    assert claims.weight == 1


def test_a_token_of_pyjwt() -> None:
    body = {"iss": "authorizer", "aud": ["x", "nexus"], "hostnames": ["a.b.c"], "exp": NOW + 1}
    secret = "s" * 32
    assert verify.handshake(jwt.encode(body, secret, "HS256"), Rules(secret), NOW).weight == 1


def test_the_secret_is_not_trimmed() -> None:
    with pytest.raises(Refused, match="signature is invalid"):
        verify.handshake(token(), Rules(SECRET + "\n"), NOW)
    assert SECRET not in repr(RULES)


@pytest.mark.parametrize("alg", ["none", "RS256", "HS1"])
def test_other_algorithms(alg: str) -> None:
    payload = json.dumps({"iss": "authorizer", "aud": "nexus", "hostnames": ["a.b.c"]}).encode()
    head = b64(json.dumps({"alg": alg}).encode()) + "." + b64(payload)
    with pytest.raises(Refused, match="signature is invalid"):
        verify.handshake(head + "." + b64(b"x"), RULES, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b.c",
        "no token",
        "ü",
        token() + ".more",
        sign(b"not json"),
        sign(b"[]"),
        sign(b"\xff"),
        sign(b'{"exp":NaN}'),
        sign(b"[" * 100_000),
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(Refused, match="malformed"):
        verify.handshake(text, RULES, NOW)


@given(st.text(max_size=60))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        verify.handshake(text, RULES, NOW)


def test_times_that_pass() -> None:
    stage_0(exp=NOW + 1)
    stage_0(exp=NOW + 0.5, nbf=NOW)
    stage_0(iat=NOW + 1000)
    stage_0()


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": NOW}, "token is expired"),
        ({"nbf": NOW + 1}, "token is not valid yet"),
        ({"exp": "later"}, "malformed"),
        ({"aud": "other"}, "invalid audience"),
        ({"aud": None}, "invalid audience"),
        ({"aud": []}, "invalid audience"),
        ({"iss": "Authorizer"}, "invalid issuer"),
        ({"iss": None}, "invalid issuer"),
        ({"weight": 1.0}, "malformed"),
        ({"hostnames": None}, "missing hostnames and port claims"),
        ({"hostnames": []}, "missing hostnames and port claims"),
        ({"hostnames": ["."]}, "no valid hostnames"),
        ({"hostnames": ["udp:1"]}, "reserved route key"),
        ({"tcp_ports": [5433]}, "tcp port claim 5433 is not allowed"),
        ({"udp_routes": [{"port": 54}]}, "udp port claim 54 is not allowed"),
        ({"outbound_allowed": True}, "outbound claims are disabled"),
        ({"handshake_max_age_seconds": 5}, "missing iat"),
        (
            {"handshake_max_age_seconds": 5, "iat": NOW - 6},
            "exceeded handshake_max_age_seconds",
        ),
    ],
)
def test_stage_0_refusals(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        stage_0(**claims)


def test_port_claims() -> None:
    assert stage_0(hostnames=None, tcp_ports=[5432]).tcp_ports == {5432}
    assert stage_0(hostnames=None, udp_routes=[{"port": 53}]).udp_routes == {(53, 30)}
    with pytest.raises(Refused, match="tcp port claims are disabled"):
        stage_0(Rules(SECRET), tcp_ports=[5432])


def test_the_age_of_a_handshake_token() -> None:
    assert stage_0(handshake_max_age_seconds=5, iat=NOW - 5).weight == 1
    assert stage_0(handshake_max_age_seconds=5, iat=NOW + 5).weight == 1
    assert stage_0(handshake_max_age_seconds=-5).weight == 1


def test_outbound_claims() -> None:
    claims = stage_0(OUTBOUND, outbound_allowed=True, allowed_outbound_ports=[443])
    assert claims.outbound_ports == {443}
    with pytest.raises(Refused, match="without outbound_allowed"):
        stage_0(OUTBOUND, allowed_outbound_ports=[443])
    some = Rules(SECRET, allow_outbound=True, outbound_ports=frozenset({443, 25}))
    stage_0(some, outbound_allowed=True, allowed_outbound_ports=[25])
    with pytest.raises(Refused, match="outbound port claim is not allowed"):
        stage_0(some, outbound_allowed=True, allowed_outbound_ports=[26])


# Stage 1 -------------------------------------------------------------------------------------


def test_stage_1_says_the_same_in_other_words() -> None:
    expected = stage_0(hostnames=["a.example.com", "b.example.com"], weight=3)
    claims = stage_1(expected, hostnames=["B.example.com.", "a.example.com", "a.example.com"])
    assert claims.hostnames == expected.hostnames
    assert claims.weight == 3
    assert stage_1(expected, hostnames=["b.example.com", "a.example.com"], weight=3).weight == 3


def test_clamped_timeouts_are_equal() -> None:
    expected = stage_0(udp_routes=[{"port": 53, "flow_idle_timeout_seconds": 1}])
    stage_1(expected, udp_routes=[{"port": 53, "flow_idle_timeout_seconds": 5}])


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"session_nonce": None}, "session nonce mismatch"),
        ({"session_nonce": NONCE + "n"}, "session nonce mismatch"),
        ({"hostnames": ["b.example.com"]}, "hostnames differ from handshake token"),
        ({"tcp_ports": [5432]}, "tcp_ports differ from handshake token"),
        ({"udp_routes": [{"port": 53}]}, "udp_routes differ from handshake token"),
        ({"weight": 2}, "weight differs from handshake token"),
        ({"exp": NOW - 1}, "token is expired"),
        ({"maintenance_grace_cap_seconds": -1}, "maintenance_grace_cap_seconds cannot be negative"),
        ({"authorizer_status_uri": "http://a"}, "authorizer_status_uri must use https"),
        ({"authorizer_status_uri": "https:///x"}, "authorizer_status_uri must use https"),
        ({"authorizer_status_uri": "https://[x"}, "authorizer_status_uri cannot be parsed"),
    ],
)
def test_stage_1_refusals(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        stage_1(stage_0(), **claims)


def test_stage_1_refuses_other_outbound_claims() -> None:
    expected = stage_0(OUTBOUND, outbound_allowed=True, allowed_outbound_ports=[443])
    with pytest.raises(Refused, match="outbound_allowed differ"):
        stage_1(expected, OUTBOUND)
    with pytest.raises(Refused, match="outbound_ports differ"):
        stage_1(expected, OUTBOUND, outbound_allowed=True)


def test_what_only_stage_1_says() -> None:
    claims = stage_1(
        stage_0(handshake_max_age_seconds=60, iat=NOW),
        reauth_interval_seconds=5,
        reauth_grace_seconds=2,
        maintenance_grace_cap_seconds=0,
        authorizer_status_uri="https://status.example/x",
        handshake_max_age_seconds=1,
        weight=-1,
    )
    assert (claims.reauth_interval_s, claims.reauth_grace_s, claims.weight) == (5, 2, 1)


# Re-attestation ------------------------------------------------------------------------------


def test_reauth() -> None:
    registered = stage_1(stage_0(weight=2), reauth_interval_seconds=5)
    claims = renew(registered)
    assert (claims.reauth_interval_s, claims.weight) == (0, 2)
    assert renew(registered, weight=2, reauth_interval_seconds=9).reauth_interval_s == 9


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"weight": -1}, "weight differs"),
        ({"weight": 3}, "weight differs"),
        ({"session_nonce": "old"}, "session nonce mismatch"),
        ({"hostnames": ["b.example.com"]}, "hostnames differ"),
    ],
)
def test_reauth_refusals(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        renew(stage_1(stage_0()), **claims)
