from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nexusg.attest.base import Stage, Token, TokenRequest
from nexusg.attest.redact import REDACTED
from nexusg.attest.select import provider_for, request_for
from nexusg.attest.tpm.provider import TpmTokenProvider
from nexusg.config.model import Attestation, UdpRoute
from nexusg.config.secret import Secret
from nexusg.config.tpm import Tpm
from nexusg.errors import ConfigError, TokenTimeout
from tests.attest.doubles import backend, script


if TYPE_CHECKING:
    from pathlib import Path


SECRET = "a-secret-of-at-least-thirty-two-bytes"


class TestRequest:
    def test_is_what_the_backend_claims(self) -> None:
        routes = (UdpRoute(53), UdpRoute(54, 9))
        settings = Attestation(outbound_allowed=True, allowed_outbound_ports=(25, 465))
        served = backend(
            settings,
            hostnames=("B.test", "a.test"),
            tcp_ports=(25, 22),
            udp_routes=routes,
            weight=4,
        )
        assert request_for(served, Stage.REAUTH, "nonce") == TokenRequest(
            stage=Stage.REAUTH,
            nonce="nonce",
            backend="mail",
            hostnames=("b.test", "a.test"),
            tcp_ports=(25, 22),
            udp_routes=routes,
            weight=4,
            outbound_allowed=True,
            allowed_outbound_ports=(25, 465),
        )

    def test_has_no_nonce_at_the_handshake(self) -> None:
        assert request_for(backend(Attestation()), Stage.HANDSHAKE).nonce == ""


def ask(attestation: Attestation) -> Token:
    served = backend(attestation)
    return provider_for(served).get_token(request_for(served, Stage.HANDSHAKE), 5)


class TestProvider:
    def test_is_the_command(self, tmp_path: Path) -> None:
        command = script(tmp_path, 'echo "$1,$NAME,$NEXUS_BACKEND_NAME"')
        settings = Attestation(command=command, args=("one",), env={"NAME": "value"})
        assert ask(settings) == Token("one,value,mail")

    def test_is_the_command_even_with_a_secret(self) -> None:
        settings = Attestation(command="echo", args=("token",), hmac_secret=Secret(SECRET))
        assert ask(settings) == Token("token")

    @pytest.mark.parametrize("command", [None, " "])
    def test_is_the_secret_without_a_command(self, command: str | None) -> None:
        token = ask(Attestation(command=command, hmac_secret=Secret(SECRET)))
        assert token.value.count(".") == 2
        assert token.expires_at is not None

    def test_there_must_be_one(self) -> None:
        with pytest.raises(ConfigError, match="'mail': attestation needs a command, a secret or"):
            provider_for(backend(Attestation()))

    def test_is_the_tpm(self, tmp_path: Path) -> None:
        """Nothing is opened before a token is asked for."""
        settings = Tpm(authorizer_url="https://namek.test", state_dir=str(tmp_path / "state"))
        provider = provider_for(backend(Attestation(tpm=settings)))
        assert isinstance(provider, TpmTokenProvider)
        provider.close()
        assert not (tmp_path / "state").exists()

    def test_command_has_its_own_timeout(self) -> None:
        with pytest.raises(TokenTimeout, match=r"within 0\.02 s"):
            ask(Attestation(command="sleep", args=("60",), timeout_s=0.02))

    @pytest.mark.parametrize(("cache_s", "calls"), [(0, 2), (60, 1)])
    def test_keeps_handshake_tokens(self, tmp_path: Path, cache_s: float, calls: int) -> None:
        record = tmp_path / "record"
        command = script(tmp_path, f"echo call >> {record}; echo token")
        served = backend(Attestation(command=command, cache_handshake_s=cache_s))
        provider = provider_for(served)
        for _ in range(2):
            provider.get_token(request_for(served, Stage.HANDSHAKE), 5)
        assert len(record.read_text().splitlines()) == calls

    def test_keeps_none_longer_than_the_handshake_may_last(self, tmp_path: Path) -> None:
        record = tmp_path / "record"
        command = script(tmp_path, f"echo call >> {record}; echo token")
        served = backend(Attestation(command=command, cache_handshake_s=60, handshake_max_age_s=5))
        provider = provider_for(served)
        for _ in range(2):
            provider.get_token(request_for(served, Stage.HANDSHAKE), 5)
        assert len(record.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("VAULT_TOKEN", False),
        ("client_secret", False),
        ("PGPASSWORD", False),
        ("API_KEY", False),
        ("TOKEN_URL", True),
        ("KEY_FILE", True),
        ("REGION", True),
    ],
)
def test_values_of_secret_variables_are_not_shown(tmp_path: Path, name: str, shown: bool) -> None:
    lines: list[str] = []
    served = backend(
        Attestation(
            command=script(tmp_path, f'echo "$1 ${name}" >&2; echo token'),
            args=(SECRET,),
            env={name: "the-value"},
            hmac_secret=Secret(SECRET),
        )
    )
    provider = provider_for(served, on_stderr=lines.append)
    provider.get_token(request_for(served, Stage.HANDSHAKE), 5)
    assert lines == [f"{REDACTED} {'the-value' if shown else REDACTED}"]
