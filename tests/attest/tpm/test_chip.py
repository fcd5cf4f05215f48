"""What the TPM makes is checked by `cryptography`, and what it is given is made by it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import load_der_x509_certificate

from nexusg.attest.tpm import chip as module
from nexusg.attest.tpm.chip import AkBlobs, Chip
from nexusg.errors import TpmError
from tests.attest.tpm.authority import NO_PCR, make_credential, verified


if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.swtpm import Swtpm

NONCE = b"n" * 32
SECRET = b"s" * 32


@pytest.fixture
def chip(swtpm: Swtpm) -> Iterator[Chip]:
    """A new software TPM."""
    made = Chip(swtpm.tcti)
    yield made
    made.close()


def params(blobs: AkBlobs) -> bytes:
    return blobs.public[2:]


@pytest.mark.parametrize("kind", ["rsa2048", "ecc-p256"])
def test_a_key_is_made_kept_and_loaded_and_signs_quotes(chip: Chip, kind: str) -> None:
    blobs = chip.create_ak(kind)
    assert "ak" not in repr(blobs).lower().replace("akblobs", "")
    first = verified(chip.quote(blobs, NONCE, ()), params(blobs))
    assert (first.nonce, first.pcrs, first.pcr_digest) == (NONCE, (), NO_PCR)
    chip.close()
    chip.load_ak(AkBlobs(blobs.public, blobs.private))
    assert verified(chip.quote(blobs, b"other", ()), params(blobs)).nonce == b"other"


def test_each_quote_is_by_the_key_that_it_is_asked_of(chip: Chip) -> None:
    one, two = chip.create_ak("ecc-p256"), chip.create_ak("ecc-p256")
    for blobs in (one, two, two, one):
        verified(chip.quote(blobs, NONCE, ()), params(blobs))


def test_a_quote_over_pcrs_holds_their_values(chip: Chip) -> None:
    blobs = chip.create_ak("ecc-p256")
    pcrs = (9, 0, 23, *range(3, 12))
    values = chip.pcr_values(pcrs)
    assert list(values) == sorted(set(pcrs))
    quoted = verified(chip.quote(blobs, NONCE, pcrs), params(blobs))
    assert quoted.pcrs == tuple(values)
    assert quoted.pcr_digest == hashlib.sha256(b"".join(values.values())).digest()
    assert chip.pcr_values(()) == {}


def test_a_tpm_without_the_bank_is_an_error(chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.templates, "selected", lambda *_: [])
    with pytest.raises(TpmError, match="no PCRs in a SHA-256 bank"):
        chip.pcr_values([0])


def test_a_nonce_that_is_no_digest_is_refused(chip: Chip) -> None:
    blobs = chip.create_ak("ecc-p256")
    assert verified(chip.quote(blobs, bytes(64), ()), params(blobs)).nonce == bytes(64)
    with pytest.raises(TpmError, match="a nonce of 65 bytes"):
        chip.quote(blobs, bytes(65), ())


def test_the_endorsement_key_is_always_the_same(chip: Chip, swtpm: Swtpm) -> None:
    first = chip.endorsement()
    assert first.fingerprint == hashlib.sha256(first.public_der).hexdigest()
    assert load_der_public_key(first.public_der).key_size == 2048  # type: ignore[union-attr]
    assert (first.certificate, first.certificate_problem) == (None, "the TPM holds none")
    swtpm.restart()
    assert chip.endorsement() == first
    swtpm.clear()
    assert chip.endorsement().fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["rsa2048", "ecc-p256"])
def test_only_this_tpm_opens_a_credential(chip: Chip, kind: str) -> None:
    blobs = chip.create_ak(kind)
    wire = make_credential(chip.endorsement().public_der, params(blobs), SECRET)
    for _ in range(4):  # nothing is left in the TPM, which has room for three keys
        assert chip.activate(blobs, wire) == SECRET


def test_a_credential_for_another_key_stays_closed(chip: Chip) -> None:
    one, two = chip.create_ak("ecc-p256"), chip.create_ak("ecc-p256")
    wire = make_credential(chip.endorsement().public_der, params(one), SECRET)
    for _ in range(4):
        with pytest.raises(TpmError, match=r"^the TPM cannot open the credential: .*0x1df"):
            chip.activate(two, wire)
    assert chip.activate(one, wire) == SECRET


@pytest.mark.parametrize(
    "change",
    [
        lambda wire: b"",
        lambda wire: wire[:1],
        lambda wire: wire[:40],
        lambda wire: wire[:-1],
        lambda wire: wire + b"\0",
        lambda wire: b"\xff\xff" + wire[2:],
        lambda wire: b"\x00\x02\x00\x00" + wire[-258:],
        lambda wire: b"\x08\x02\x08\x00" + b"a" * 2048 + wire[-258:],
        lambda wire: os.urandom(len(wire)),
    ],
)
def test_a_damaged_credential_is_an_error(chip: Chip, change: object) -> None:
    assert callable(change)
    blobs = chip.create_ak("ecc-p256")
    wire = make_credential(chip.endorsement().public_der, params(blobs), SECRET)
    with pytest.raises(TpmError) as caught:
        chip.activate(blobs, change(wire))
    assert caught.value.code == "tpm"
    assert verified(chip.quote(blobs, NONCE, ()), params(blobs)).nonce == NONCE


def test_a_policy_that_is_refused_leaves_no_session(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = chip.create_ak("ecc-p256")
    wire = make_credential(chip.endorsement().public_der, params(blobs), SECRET)
    tpm = chip._tpm

    def refuse(*_: object) -> None:
        raise tpm.tss.TSS2_Exception(0x98E)

    with monkeypatch.context() as patched:
        patched.setattr(tpm.esys, "policy_secret", refuse)
        for _ in range(4):
            with pytest.raises(TpmError, match="has a password"):
                chip.activate(blobs, wire)
    assert chip.activate(blobs, wire) == SECRET


def test_after_a_reset_the_key_is_loaded_again(chip: Chip, swtpm: Swtpm) -> None:
    blobs = chip.create_ak("ecc-p256")
    wire = make_credential(chip.endorsement().public_der, params(blobs), SECRET)
    swtpm.restart()
    verified(chip.quote(blobs, NONCE, ()), params(blobs))
    swtpm.restart()
    assert chip.activate(blobs, wire) == SECRET


def test_a_cleared_tpm_no_longer_knows_the_key(chip: Chip) -> None:
    """TPM2_Clear: a new owner."""
    blobs = chip.create_ak("ecc-p256")
    chip._tpm.esys.clear(chip._tpm.tss.ESYS_TR.LOCKOUT)
    for _ in range(2):
        with pytest.raises(TpmError, match=r"does not know the attestation key.*0x1df") as caught:
            chip.quote(blobs, NONCE, ())
        assert caught.value.code == "tpm_cleared"
    with pytest.raises(TpmError, match="does not know the attestation key"):
        chip.load_ak(blobs)
    fresh = chip.create_ak("ecc-p256")
    verified(chip.quote(fresh, NONCE, ()), params(fresh))


@pytest.mark.parametrize(
    "change",
    [
        lambda blobs: AkBlobs(b"", blobs.private),
        lambda blobs: AkBlobs(blobs.public, b""),
        lambda blobs: AkBlobs(blobs.public[:-1], blobs.private),
        lambda blobs: AkBlobs(blobs.public, b"\x00\x05abcde"),
        lambda blobs: AkBlobs(b"\x00\x05abcde", blobs.private),
        lambda blobs: AkBlobs(b"\x00\x00", blobs.private),
        lambda blobs: AkBlobs(blobs.public, b"\xff\xff" + bytes(0xFFFF)),
        lambda blobs: AkBlobs(blobs.private, blobs.public),
        lambda blobs: AkBlobs(blobs.public, blobs.private[:-1] + b"\0"),
        lambda blobs: AkBlobs(blobs.public[:-1] + b"\0", blobs.private),
    ],
)
def test_a_damaged_key_counts_as_none(chip: Chip, change: object) -> None:
    assert callable(change)
    blobs = chip.create_ak("ecc-p256")
    with pytest.raises(TpmError) as caught:
        chip.load_ak(change(blobs))
    assert caught.value.code == "tpm_cleared", caught.value
    chip.load_ak(blobs)


def test_a_key_cannot_be_loaded_into_a_tpm_that_is_locked(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which says nothing about the key."""
    blobs = chip.create_ak("ecc-p256")

    def refuse(*_: object) -> None:
        raise chip._tpm.tss.TSS2_Exception(0x921)

    monkeypatch.setattr(chip._tpm.esys, "load", refuse)
    with pytest.raises(TpmError, match=r"cannot load the attestation key.*0x921") as caught:
        chip.load_ak(blobs)
    assert caught.value.code == "tpm"


def test_a_kept_key_that_is_not_rsa_is_not_used(chip: Chip) -> None:
    first = chip.endorsement()
    tpm = chip._tpm

    def keep_another() -> None:
        owner, empty = tpm.tss.ESYS_TR.OWNER, tpm.tss.TPM2B_SENSITIVE_CREATE()
        handle, *_ = tpm.esys.create_primary(empty, module.templates.storage_key(tpm.tss))
        tpm.esys.evict_control(owner, handle, module.EK_HANDLE)
        tpm.flush(handle)

    tpm.run("keep a key", keep_another)
    assert chip.endorsement() == first


def test_a_certificate_is_not_looked_for_in_a_tpm_that_is_gone(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chip.endorsement()
    tpm = chip._tpm
    codes = [0x101]

    def fail(_: int) -> None:
        raise tpm.tss.TSS2_Exception(codes[0])

    monkeypatch.setattr(tpm.esys, "tr_from_tpmpublic", fail)
    with pytest.raises(TpmError, match=r"cannot show its endorsement key.*0x101"):
        chip.endorsement()
    codes[0] = 0xA000A
    assert chip.endorsement() == first, "on another connection"


def test_the_makers_key_and_certificate_are_used(
    swtpm_with_certificate: Swtpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = Chip(swtpm_with_certificate.tcti)
    found = chip.endorsement()
    assert found.certificate is not None
    assert found.certificate_problem == ""
    load_der_x509_certificate(found.certificate)  # which fails for one with padding
    blobs = chip.create_ak("ecc-p256")
    wire = make_credential(found.public_der, params(blobs), SECRET)
    for _ in range(4):
        assert chip.activate(blobs, wire) == SECRET

    # A certificate that cannot be read is none; on a new connection it can.
    codes = [0x14A, 0x98E, 0xA000A]

    def fail(*_: object, **__: object) -> None:
        raise chip._tpm.tss.TSS2_Exception(codes.pop(0))

    monkeypatch.setattr(chip._tpm.esys, "nv_read", fail)
    for _ in range(2):
        unread = chip.endorsement()
        assert (unread.fingerprint, unread.certificate) == (found.fingerprint, None)
        assert unread.certificate_problem.startswith("it cannot be read (")
    assert chip.endorsement() == found
    assert codes == []

    # Without the persistent key, template L-1 makes the same.
    tss = chip._tpm.tss

    def evict() -> None:
        esys = chip._tpm.esys
        handle = esys.tr_from_tpmpublic(module.EK_HANDLE)
        esys.evict_control(tss.ESYS_TR.OWNER, handle, 0)

    chip._tpm.run("evict", evict)
    assert chip.endorsement() == found
    assert chip.activate(blobs, wire) == SECRET
    chip.close()
