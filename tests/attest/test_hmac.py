from __future__ import annotations

import base64
import hashlib
import hmac as stdlib_hmac
import json
import subprocess
import sys
import warnings
from typing import Any

import jwt as pyjwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.attest.base import Stage, Token
from nexusg.attest.hmac import HmacProvider
from nexusg.config.model import Attestation, UdpRoute
from nexusg.config.secret import Secret
from nexusg.errors import ConfigError
from tests.attest.doubles import backend, request


SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = 1_700_000_000


def clock() -> float:
    return NOW + 0.9


def claims(token: Token, secret: str = SECRET) -> dict[str, Any]:
    """Check the signature, independently of PyJWT, and the header."""
    header, payload, signature = token.value.split(".")
    signed = stdlib_hmac.new(secret.encode(), f"{header}.{payload}".encode(), hashlib.sha256)
    assert base64.urlsafe_b64encode(signed.digest()).rstrip(b"=").decode() == signature
    assert decoded(header) == {"alg": "HS256", "typ": "JWT"}
    return decoded(payload)


def decoded(part: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return result


def ask(provider: HmacProvider, stage: Stage = Stage.HANDSHAKE, nonce: str = "") -> Token:
    return provider.get_token(request(stage, nonce), 1)


class TestClaims:
    FULL = Attestation(
        token_ttl_s=45,
        handshake_max_age_s=60,
        reauth_interval_s=300,
        reauth_grace_s=20,
        maintenance_grace_cap_s=600,
        authorizer_status_uri="https://status.test/health",
        policy_version="v7",
        outbound_allowed=True,
        allowed_outbound_ports=(25, 465),
    )

    @pytest.mark.parametrize("stage", list(Stage))
    def test_everything(self, stage: Stage) -> None:
        """Each configured value has its exact type, and appears in the stages it belongs to."""
        settings = backend(
            self.FULL,
            hostnames=("a.test", "*.b.test"),
            tcp_ports=(25, 587),
            udp_routes=(UdpRoute(53), UdpRoute(54, 0), UdpRoute(55, 9)),
            weight=3,
        )
        token = ask(HmacProvider(SECRET, settings, clock), stage, "nonce")
        staged: dict[str, Any] = (
            {"handshake_max_age_seconds": 60}
            if stage is Stage.HANDSHAKE
            else {"session_nonce": "nonce"}
        )
        assert claims(token) == staged | {
            "iss": "authorizer",
            "aud": ["nexus"],
            "sub": "mail",
            "iat": NOW,
            "exp": NOW + 45,
            "weight": 3,
            "hostnames": ["a.test", "*.b.test"],
            "tcp_ports": [25, 587],
            "udp_routes": [
                {"port": 53},
                {"port": 54, "flow_idle_timeout_seconds": 0},
                {"port": 55, "flow_idle_timeout_seconds": 9},
            ],
            "reauth_interval_seconds": 300,
            "reauth_grace_seconds": 20,
            "maintenance_grace_cap_seconds": 600,
            "authorizer_status_uri": "https://status.test/health",
            "policy_version": "v7",
            "outbound_allowed": True,
            "allowed_outbound_ports": [25, 465],
        }
        assert token.expires_at == NOW + 45

    def test_nothing_that_is_not_configured(self) -> None:
        settings = backend(Attestation(), name="", tcp_ports=(), hostnames=("a.test",))
        assert claims(ask(HmacProvider(SECRET, settings, clock))) == {
            "iss": "authorizer",
            "aud": ["nexus"],
            "iat": NOW,
            "exp": NOW + 30,
            "weight": 1,
            "hostnames": ["a.test"],
        }

    @pytest.mark.parametrize(("allowed", "ports"), [(False, (25,)), (True, ())])
    def test_outbound_ports_need_outbound(self, allowed: bool, ports: tuple[int, ...]) -> None:
        settings = Attestation(outbound_allowed=allowed, allowed_outbound_ports=ports)
        given = claims(ask(HmacProvider(SECRET, backend(settings), clock)))
        assert given.get("outbound_allowed") == (True if allowed else None)
        assert "allowed_outbound_ports" not in given

    def test_integers_are_integers(self) -> None:
        """1.0 would make the token invalid (PROTOCOL.md section 2.4)."""
        given = claims(ask(HmacProvider(SECRET, backend(self.FULL), clock)))
        numbers = [value for name, value in given.items() if name in {"iat", "exp", "weight"}]
        numbers += [value for name, value in given.items() if name.endswith("_seconds")]
        assert [type(value) for value in numbers] == [int] * 7

    def test_are_those_of_the_settings(self) -> None:
        provider = HmacProvider(SECRET, backend(Attestation()), clock)
        asked = request(backend="other", weight=77, hostnames=("other.test",))
        given = claims(provider.get_token(asked, 1))
        assert (given["sub"], given["weight"], "hostnames" in given) == ("mail", 1, False)

    def test_one_token_leaves_nothing_to_the_next(self) -> None:
        provider = HmacProvider(SECRET, backend(self.FULL), clock)
        first = claims(ask(provider))
        ask(provider, Stage.ATTEST, "nonce")
        assert claims(ask(provider)) == first


class TestSecret:
    def test_comes_from_the_settings(self) -> None:
        settings = backend(Attestation(hmac_secret=Secret(SECRET)))
        assert claims(ask(HmacProvider.from_backend(settings, clock)))["iat"] == NOW

    def test_is_trimmed(self) -> None:
        claims(ask(HmacProvider(f" {SECRET}\n", backend(Attestation()), clock)))

    @pytest.mark.parametrize("secret", ["", " \n"])
    def test_is_needed(self, secret: str) -> None:
        with pytest.raises(ConfigError, match="'mail': the HMAC secret is empty"):
            HmacProvider(secret, backend(Attestation()))

    def test_is_needed_in_the_settings(self) -> None:
        with pytest.raises(ConfigError, match="is empty"):
            HmacProvider.from_backend(backend(Attestation()))

    def test_is_in_no_repr(self) -> None:
        assert SECRET not in repr(HmacProvider(SECRET, backend(Attestation())))

    @pytest.mark.parametrize(
        "secret",
        [
            pytest.param("short", id="short"),
            pytest.param("ä" * 20, id="not-ascii"),
            pytest.param('{"kty": "oct", "k": "c2VjcmV0"}', id="like-a-jwk"),
            pytest.param(
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", id="like-pem"
            ),
            pytest.param("ssh-rsa AAAAB3NzaC1yc2E", id="like-ssh"),
        ],
    )
    def test_may_be_anything_and_warns_of_nothing(self, secret: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            claims(ask(HmacProvider(secret, backend(Attestation()), clock)), secret)

    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_signs_as_the_relay_verifies(self, secret: str) -> None:
        if secret.strip():
            provider = HmacProvider(secret, backend(Attestation()), clock)
            claims(ask(provider), secret.strip())


def test_pyjwt_verifies_it() -> None:
    token = ask(HmacProvider(SECRET, backend(Attestation())), Stage.ATTEST, "nonce")
    verified = pyjwt.decode(token.value, SECRET, ["HS256"], audience="nexus", issuer="authorizer")
    assert verified["session_nonce"] == "nonce"


def test_clock_is_asked_each_time() -> None:
    ticks = iter([100.0, 200.0])
    provider = HmacProvider(SECRET, backend(Attestation()), lambda: next(ticks))
    assert [claims(ask(provider))["iat"] for _ in range(2)] == [100, 200]


def test_nothing_to_forget() -> None:
    HmacProvider(SECRET, backend(Attestation())).invalidate()


def test_jwt_is_not_imported_before_it_is_used() -> None:
    program = "import sys, nexusg.attest.select; sys.exit('jwt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
