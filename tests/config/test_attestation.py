"""The attestation block in its one form, and the rules over it (PROTOCOL.md section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nexusg.config.attestation import Attestation
from nexusg.config.secret import Secret
from nexusg.config.tpm import Tpm


if TYPE_CHECKING:
    from nexusg.config.setting import Finding

LONG = Secret("x" * 32)


def found(attestation: Attestation) -> list[Finding]:
    return list(attestation.findings())


def test_one_form() -> None:
    made = Attestation(
        command=" run ",
        args=["a", "a"],  # type: ignore[arg-type]
        env={"A": "1"},
        timeout_s=0,
        token_ttl_s=0,
        hmac_secret=Secret(" padded \n"),
        allowed_outbound_ports=[25, 25],  # type: ignore[arg-type]
    )
    assert (made.command, made.args, dict(made.env)) == ("run", ("a", "a"), {"A": "1"})
    assert (made.timeout_s, made.token_ttl_s) == (15.0, 30)
    assert made.hmac_secret == Secret("padded")
    assert made.allowed_outbound_ports == (25, 25)


def test_blank_is_none() -> None:
    assert Attestation(command=" ", hmac_secret=Secret(" ")) == Attestation()


def test_a_text_becomes_a_secret() -> None:
    made = Attestation(hmac_secret="hunter2")  # type: ignore[arg-type]
    assert made.hmac_secret == Secret("hunter2")
    assert "hunter2" not in repr(made)


def test_the_environment_is_copied_frozen_and_hidden() -> None:
    env = {"TOKEN": "hunter2"}
    made = Attestation(env=env)
    env.clear()
    assert made.env["TOKEN"] == "hunter2"
    assert "hunter2" not in repr(made)
    with pytest.raises(TypeError):
        made.env["A"] = ""  # type: ignore[index]


def test_arguments_are_no_single_text() -> None:
    with pytest.raises(TypeError, match="list"):
        Attestation(args="abc")  # type: ignore[arg-type]


def test_a_source_is_required() -> None:
    [finding] = found(Attestation())
    assert finding.fatal
    assert finding.text == "a command, an hmacSecret, an hmacSecretFile or a tpm block is required"


@pytest.mark.parametrize("good", [Attestation(command="run"), Attestation(hmac_secret=LONG)])
def test_one_source_is_enough(good: Attestation) -> None:
    assert found(good) == []


def test_a_command_wins() -> None:
    [finding] = found(Attestation(command="run", hmac_secret=LONG))
    assert (finding.path, finding.fatal) == (("hmacSecret",), False)


@pytest.mark.parametrize(("secret", "short"), [("x" * 31, True), ("ü" * 16, False)])
def test_a_short_secret_could_be_guessed(secret: str, short: bool) -> None:
    findings = found(Attestation(hmac_secret=Secret(secret)))
    assert [(one.path, one.fatal) for one in findings] == [(("hmacSecret",), False)] * short


def test_outbound_ports_need_outbound() -> None:
    [finding] = found(Attestation(hmac_secret=LONG, allowed_outbound_ports=(25,)))
    assert (finding.path, finding.fatal) == (("allowedOutboundPorts",), False)
    allowed = Attestation(hmac_secret=LONG, allowed_outbound_ports=(25,), outbound_allowed=True)
    assert found(allowed) == []


TPM = Tpm("https://namek.test")


def test_a_tpm_is_enough() -> None:
    assert found(Attestation(tpm=TPM, timeout_s=8, cache_handshake_s=20)) == []


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"command": "run"}, ["beside a command"]),
        ({"hmac_secret": LONG}, ["beside a secret"]),
        ({"hmac_secret": LONG, "command": "run"}, ["beside a command", "beside a secret"]),
    ],
)
def test_a_tpm_stands_alone(extra: dict[str, Any], said: list[str]) -> None:
    findings = found(Attestation(tpm=TPM, **extra))
    assert [(one.path, one.fatal) for one in findings] == [(("tpm",), True)] * len(said)
    assert all(word in one.text for word, one in zip(said, findings, strict=True))


def test_what_a_tpm_has_no_use_for() -> None:
    made = Attestation(
        tpm=TPM,
        args=("a",),
        env={"A": "b"},
        token_ttl_s=31,
        handshake_max_age_s=1,
        reauth_interval_s=1,
        reauth_grace_s=1,
        maintenance_grace_cap_s=1,
        authorizer_status_uri="https://a",
        policy_version="1",
        outbound_allowed=True,
        allowed_outbound_ports=(25,),
    )
    findings = found(made)
    assert [one.path for one in findings] == [
        ("args",),
        ("env",),
        ("tokenTTLSeconds",),
        ("handshakeMaxAgeSeconds",),
        ("reauthIntervalSeconds",),
        ("reauthGraceSeconds",),
        ("maintenanceGraceCapSeconds",),
        ("authorizerStatusUri",),
        ("policyVersion",),
        ("outboundAllowed",),
        ("allowedOutboundPorts",),
    ]
    assert not any(one.fatal for one in findings)
    assert findings[0].text == "is not used with tpm: there is no command"
    assert findings[2].text == "is not used with tpm: the authorizer decides what its tokens say"
