from __future__ import annotations

import jwt
import pytest

from nexusg.relay import verify
from nexusg.relay.authorizer import tokens
from nexusg.relay.authorizer.tokens import Policy


SECRET = "what the relay knows, and it is long enough"
POLICY = Policy(SECRET, ("shop.example.org",), status_uri="https://127.0.0.1:1/health")


def claims(stage: int, nonce: str = "n") -> dict[str, object]:
    return tokens.claims(POLICY, "id", "abc.example.com", stage, nonce, 1_700_000_000.9)


def test_the_claims_of_a_handshake() -> None:
    assert claims(0) == {
        "iss": "authorizer",
        "sub": "id",
        "aud": ["nexus"],
        "iat": 1_700_000_000,
        "exp": 1_700_000_030,
        "hostnames": [
            "abc.example.com",
            "*.abc.example.com",
            "shop.example.org",
            "*.shop.example.org",
        ],
        "tcp_ports": [],
        "udp_routes": [],
        "weight": 1,
        "session_nonce": "",
        "handshake_max_age_seconds": 60,
        "reauth_interval_seconds": 300,
        "reauth_grace_seconds": 30,
        "maintenance_grace_cap_seconds": 600,
        "authorizer_status_uri": "https://127.0.0.1:1/health",
        "policy_version": "",
        "issued_at_quote": "",
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_the_claims_of_the_other_stages(stage: int) -> None:
    changes = {"session_nonce": "n", "handshake_max_age_seconds": None}
    assert claims(stage) == claims(0) | changes


def test_a_token_is_a_jwt() -> None:
    token = tokens.signed(claims(0), SECRET)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    read = jwt.decode(token, SECRET, ["HS256"], audience="nexus", options={"verify_exp": False})
    assert read == claims(0)


def test_the_relay_takes_it() -> None:
    rules, now = verify.Rules(SECRET), 1_700_000_001.0
    first = verify.handshake(tokens.signed(claims(0), SECRET), rules, now)
    assert first.reauth_interval_s == 300
    verify.attest(tokens.signed(claims(1), SECRET), rules, now, "n", first)
    verify.reauth(tokens.signed(claims(2), SECRET), rules, now, "n", first)


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(POLICY)
