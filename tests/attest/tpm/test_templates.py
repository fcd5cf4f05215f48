"""The templates are those that namek and the makers of TPMs have."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from nexusg.attest.tpm import templates
from tests.support.swtpm import require


# The attributes of the TCG's EK templates, low range, and of a parent, a signer of our own.
EK, PARENT, SIGNER = 0x000300B2, 0x00030472, 0x00050472


@pytest.fixture(scope="module")
def tss() -> Any:
    """The TPM library; no TPM is needed."""
    require()
    return importlib.import_module("tpm2_pytss")


def test_the_endorsement_key_is_the_tcgs_l_1(tss: Any) -> None:
    template = templates.endorsement_key(tss).publicArea.marshal()
    expected = b"\x00\x01\x00\x0b" + EK.to_bytes(4, "big")  # RSA, SHA-256
    expected += b"\x00\x20" + bytes.fromhex(
        "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    )
    expected += b"\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\x00\x00\x00\x00"  # AES-128-CFB, 2048
    assert template == expected + b"\x01\x00" + bytes(256)


def test_the_storage_key_is_a_parent_on_p_256(tss: Any) -> None:
    template = templates.storage_key(tss).publicArea.marshal()
    expected = b"\x00\x23\x00\x0b" + PARENT.to_bytes(4, "big") + b"\x00\x00"
    expected += b"\x00\x06\x00\x80\x00\x43\x00\x10\x00\x03\x00\x10"
    assert template == expected + b"\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("kind", "algorithm", "parameters"),
    [
        ("rsa2048", b"\x00\x01", b"\x00\x10\x00\x14\x00\x0b\x08\x00\x00\x00\x00\x00\x00\x00"),
        (
            "ecc-p256",
            b"\x00\x23",
            b"\x00\x10\x00\x18\x00\x0b\x00\x03\x00\x10\x00\x00\x00\x00",
        ),
    ],
)
def test_the_attestation_key_signs_what_the_tpm_says(
    tss: Any, kind: str, algorithm: bytes, parameters: bytes
) -> None:
    assert kind in templates.AK_KINDS
    template = templates.attestation_key(tss, kind).publicArea.marshal()
    expected = algorithm + b"\x00\x0b" + SIGNER.to_bytes(4, "big") + b"\x00\x00"
    assert template == expected + parameters


@pytest.mark.parametrize(
    ("pcrs", "mask"),
    [((), "000000"), ((0, 7), "810000"), ((23, 0, 8, 0), "010180"), (range(24), "ffffff")],
)
def test_a_selection_is_one_also_of_no_pcr(tss: Any, pcrs: Any, mask: str) -> None:
    selection = templates.pcr_selection(tss, pcrs)
    assert selection.marshal() == bytes.fromhex("00000001000b03" + mask)
    [one] = selection
    assert templates.selected(tss, one) == sorted(set(pcrs))


def test_another_bank_is_not_ours(tss: Any) -> None:
    one = tss.TPMS_PCR_SELECTION(hash=tss.TPM2_ALG.SHA1, sizeofSelect=3, pcrSelect=b"\xff" * 3)
    assert templates.selected(tss, one) == []
