from __future__ import annotations

import datetime as dt
import struct
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from nexusg.relay.authorizer.keys import AttestationKey, EndorsementKey
from nexusg.relay.authorizer.refusal import Refusal
from nexusg.relay.authorizer.wire import Malformed
from tests.support.softtpm import ECC, RSA, SoftTpm, rsa_key, tpm2b


def public_der(key: Any) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form)  # type: ignore[no-any-return]


def certificate(key: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "EK")])
    now = dt.datetime.now(dt.timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("kind", [RSA, ECC])
@pytest.mark.parametrize("hash_id", [0x000B, 0x000C])
def test_an_attestation_key(kind: str, hash_id: int) -> None:
    tpm = SoftTpm(kind, hash_id=hash_id)
    key = AttestationKey.parse(tpm.ak_params)
    assert key.name == tpm.ak_name
    assert key.public == tpm.ak.public_key()
    assert (key.scheme, key.hash_id) == ((0x0014 if kind == RSA else 0x0018), hash_id)
    assert key.hash().name == {0x000B: "sha256", 0x000C: "sha384"}[hash_id]


@pytest.mark.parametrize("kind", [RSA, ECC])
def test_a_tpm2b_public_is_none(kind: str) -> None:
    with pytest.raises(Malformed):
        AttestationKey.parse(tpm2b(SoftTpm(kind).ak_params))


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack(">H", value) + data[at + 2 :]


@pytest.mark.parametrize(
    ("kind", "at", "value", "complaint"),
    [
        (RSA, 0, 0x0008, "the AK is no RSA and no ECC key but 0x0008"),
        (RSA, 2, 0x0004, "the AK's name is not made with SHA-256 but 0x0004"),
        (RSA, 10, 0x0006, "the AK has a symmetric algorithm: it is no signing key"),
        (RSA, 12, 0x0010, "the AK has no known signing scheme: 0x0010 0x000b"),
        (ECC, 12, 0x0014, "the AK has no known signing scheme: 0x0014 0x000b"),
        (RSA, 14, 0x0004, "the AK has no known signing scheme: 0x0014 0x0004"),
        (RSA, 20, 0x0002, "the AK is no usable RSA key"),
        (ECC, 16, 0x0099, "the AK is on an unknown curve, or has a KDF"),
        (ECC, 18, 0x0022, "the AK is on an unknown curve, or has a KDF"),
        (ECC, 16, 0x0004, "the AK is no point of its curve"),
        (ECC, 22, 0xFFFF, "the AK is no point of its curve"),
    ],
)
def test_what_is_no_attestation_key(kind: str, at: int, value: int, complaint: str) -> None:
    with pytest.raises(Malformed, match=f"^{complaint}$"):
        AttestationKey.parse(changed(SoftTpm(kind).ak_params, at, value))


def test_a_pss_key_is_taken() -> None:
    """It fails later, as with namek."""
    assert AttestationKey.parse(changed(SoftTpm(RSA).ak_params, 12, 0x0016)).scheme == 0x0016


def test_a_large_attestation_key() -> None:
    with pytest.raises(Malformed, match="2049 bytes is too large"):
        AttestationKey.parse(bytes(2049))


@given(st.binary(max_size=400))
def test_garbage_is_no_attestation_key(data: bytes) -> None:
    with pytest.raises(Malformed):
        AttestationKey.parse(data)


TEMPLATES = [SoftTpm(RSA).ak_params, SoftTpm(ECC).ak_params]


@given(st.sampled_from(TEMPLATES), st.integers(0, 330), st.binary(max_size=8))
def test_damaged_attestation_keys(data: bytes, at: int, damage: bytes) -> None:
    try:
        AttestationKey.parse(data[:at] + damage + data[at + len(damage) :])
    except Malformed:
        pass


def test_an_endorsement_key() -> None:
    tpm = SoftTpm(ECC)
    key = EndorsementKey.from_public(tpm.ek_public)
    assert (key.public, key.fingerprint) == (tpm.ek.public_key(), tpm.fingerprint)


@pytest.mark.parametrize("padding", [b"", b"\xff" * 20, bytes(100)])
def test_a_certificate_means_the_same_key(padding: bytes) -> None:
    tpm = SoftTpm(ECC)
    key = EndorsementKey.from_certificate(certificate(tpm.ek) + padding)
    assert key == EndorsementKey.from_public(tpm.ek_public)


@pytest.mark.parametrize(
    ("der", "status", "text"),
    [
        (b"nonsense", 400, "invalid ek public key"),
        (bytes(1025), 400, "ek_pub too large"),
        (public_der(ec.generate_private_key(ec.SECP384R1())), 400, "ek public key must be RSA"),
        (public_der(ed25519.Ed25519PrivateKey.generate()), 400, "ek public key must be RSA"),
        (public_der(rsa_key(2, 1024)), 400, "ek public key must be at least 2048 bits"),
    ],
)
def test_what_is_no_endorsement_key(der: bytes, status: int, text: str) -> None:
    with pytest.raises(Refusal) as caught:
        EndorsementKey.from_public(der)
    assert (caught.value.status, caught.value.text) == (status, text)


@pytest.mark.parametrize(
    ("der", "status", "text"),
    [
        (b"nonsense", 500, "internal server error"),
        (b"\x30\x82\xff\xff", 500, "internal server error"),
        (bytes(4097), 400, "ek_cert too large"),
        (certificate(ec.generate_private_key(ec.SECP384R1())), 400, "ek public key must be RSA"),
    ],
)
def test_what_is_no_certificate(der: bytes, status: int, text: str) -> None:
    with pytest.raises(Refusal) as caught:
        EndorsementKey.from_certificate(der)
    assert (caught.value.status, caught.value.text) == (status, text)


@given(st.binary(max_size=300))
def test_garbage_is_no_endorsement_key(data: bytes) -> None:
    for source in (EndorsementKey.from_public, EndorsementKey.from_certificate):
        with pytest.raises(Refusal):
            source(data)


def test_a_large_key_is_fine() -> None:
    key = rsa.generate_private_key(65537, 2080)
    assert EndorsementKey.from_public(public_der(key)).public == key.public_key()
