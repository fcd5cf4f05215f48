"""The tpm block in its one form, and the rules over it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexusg.config.tpm import Tpm


TPM = Tpm("https://namek.test")


def test_defaults() -> None:
    made = Tpm()
    assert (made.tcti, made.state_dir) == ("device:/dev/tpmrm0", "/var/lib/nexusg/tpm")
    assert (made.ak, made.enroll, made.ek_cert) == ("rsa2048", "auto", "auto")
    assert (made.authorizer_url, made.ca_file, made.os_version) == (None, None, None)
    assert made.enroll_pcrs == ()


def test_one_form() -> None:
    made = Tpm(
        authorizer_url=" https://namek.test/base/ ",
        tcti=" ",
        state_dir="",
        ca_file="",
        enroll_pcrs=[7, 0, 7],  # type: ignore[arg-type]
        os_version="",
    )
    assert made == Tpm("https://namek.test/base", enroll_pcrs=(7, 0))
    assert hash(made) == hash(replace(made))


def test_an_authorizer_makes_it_on() -> None:
    assert TPM
    assert not Tpm()
    assert not Tpm(" / ")
    assert list(TPM.findings()) == list(Tpm().findings()) == []


def test_without_an_authorizer_it_is_none() -> None:
    [finding] = Tpm(ak="ecc-p256").findings()
    assert (finding.path, finding.fatal, finding.text) == (("authorizerUrl",), True, "is required")


@pytest.mark.parametrize(
    ("other", "fatal", "said"),
    [
        (TPM, False, "another backend is the same device"),
        (replace(TPM, os_version="x"), False, "another backend is the same device"),
        (replace(TPM, state_dir="/b"), True, "each locks out the other"),
        (replace(TPM, ak="ecc-p256"), True, "each locks out the other"),
        (replace(TPM, tcti="swtpm:path=/b"), True, "another backend keeps another enrolment"),
        (replace(TPM, authorizer_url="https://b"), True, "another backend keeps another"),
    ],
)
def test_two_backends_on_one_tpm(other: Tpm, fatal: bool, said: str) -> None:
    for finding in (TPM.clash(other), other.clash(TPM)):
        assert finding is not None
        assert finding.fatal is fatal
        assert said in finding.text


def test_two_devices() -> None:
    assert TPM.clash(replace(TPM, state_dir="/b", tcti="swtpm:path=/b")) is None
    assert TPM.clash(replace(TPM, state_dir="/b", authorizer_url="https://b")) is None
