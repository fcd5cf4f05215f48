from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.authorizer import credential
from tests.support.softtpm import ECC, RSA, SoftTpm


TPM = SoftTpm(ECC)


@given(st.binary(max_size=64))
def test_the_tpm_opens_it(secret: bytes) -> None:
    assert TPM.activate(credential.make(TPM.ek.public_key(), TPM.ak_name, secret)) == secret


def test_another_tpm_does_not() -> None:
    wire = credential.make(SoftTpm(ECC, number=1).ek.public_key(), TPM.ak_name, bytes(32))
    with pytest.raises(ValueError, match=r"decrypt|Decryption"):
        TPM.activate(wire)


def test_it_is_for_one_attestation_key() -> None:
    wire = credential.make(TPM.ek.public_key(), SoftTpm(RSA).ak_name, bytes(32))
    with pytest.raises(ValueError, match="0x1df"):
        TPM.activate(wire)


def test_its_form() -> None:
    wire = credential.make(TPM.ek.public_key(), TPM.ak_name, bytes(32))
    # size, TPM2B_ID_OBJECT of HMAC and 34 bytes, TPM2B_ENCRYPTED_SECRET of an RSA-2048 block
    assert wire[:6] == bytes.fromhex("0046 0044 0020")
    assert wire[0x48:0x4A] == bytes.fromhex("0100")
    assert len(wire) == 2 + 0x46 + 2 + 256


def test_kdfa() -> None:
    """As much as is known from outside: deterministic, and of the length that was asked for."""
    one = credential.kdfa(b"seed", b"STORAGE", b"name", 128)
    assert len(one) == 16
    assert one == credential.kdfa(b"seed", b"STORAGE", b"name", 128)
    assert one != credential.kdfa(b"seed", b"STORAGE", b"name", 256)[:16]
    with pytest.raises(AssertionError):
        credential.kdfa(b"seed", b"STORAGE", b"name", 512)
