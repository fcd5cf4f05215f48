"""The attestation block in its one form, and the rules over it (PROTOCOL.md section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nexusg.config.attestation import Attestation
from nexusg.config.secret import Secret


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
    assert finding.text == "a command, an hmacSecret or an hmacSecretFile is required"


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
