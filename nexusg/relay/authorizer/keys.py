"""The two public keys of a device: EK (which TPM is it) and AK (what signs its quotes).

It does not know devices. Attributes of the AK are not looked at, because namek does not either.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nexusg.relay.authorizer.refusal import Refusal, internal
from nexusg.relay.authorizer.wire import Malformed, Reader


if TYPE_CHECKING:
    from collections.abc import Callable

# TPM_ALG_ID and TPM_ECC_CURVE (TPM 2.0 Library, Part 2, 6.3 and 6.4).
RSA, ECC, NULL, SHA256 = 0x0001, 0x0023, 0x0010, 0x000B
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
HASHES: dict[int, Callable[[], hashes.HashAlgorithm]] = {
    SHA256: hashes.SHA256,
    0x000C: hashes.SHA384,
    0x000D: hashes.SHA512,
}
_CURVES: dict[int, Callable[[], ec.EllipticCurve]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}

#: namek's caps on what it decodes.
EK_CERT_MAX_BYTES, EK_PUB_MAX_BYTES, AK_MAX_BYTES = 4096, 1024, 2048
EK_MIN_BITS = 2048
DEFAULT_EXPONENT = 65537  # written as 0

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclasses.dataclass(frozen=True, slots=True)
class AttestationKey:
    """An AK as its TPMT_PUBLIC describes it. ``scheme`` and ``hash_id`` are those it signs with."""

    name: bytes
    public: PublicKey
    scheme: int
    hash_id: int

    @classmethod
    def parse(cls, data: bytes) -> AttestationKey:
        """Read a TPMT_PUBLIC, without the size in front that a TPM2B_PUBLIC has.

        Raises Malformed.
        """
        if len(data) > AK_MAX_BYTES:
            raise Malformed(f"an AK of {len(data)} bytes is too large")
        reader = Reader(data, "the TPMT_PUBLIC")
        kind, name_hash = reader.number(2), reader.number(2)
        if name_hash != SHA256:
            raise Malformed(f"the AK's name is not made with SHA-256 but {name_hash:#06x}")
        reader.take(4)  # objectAttributes
        reader.sized()  # authPolicy
        if kind not in (RSA, ECC):
            raise Malformed(f"the AK is no RSA and no ECC key but {kind:#06x}")
        if reader.number(2) != NULL:
            raise Malformed("the AK has a symmetric algorithm: it is no signing key")
        scheme, hash_id = reader.number(2), reader.number(2)
        if hash_id not in HASHES or scheme not in _SCHEMES[kind]:
            raise Malformed(f"the AK has no known signing scheme: {scheme:#06x} {hash_id:#06x}")
        public = _rsa(reader) if kind == RSA else _ecc(reader)
        reader.end()
        name = SHA256.to_bytes(2, "big") + hashlib.sha256(data).digest()
        return cls(name, public, scheme, hash_id)

    def hash(self) -> hashes.HashAlgorithm:
        """The hash of the key's scheme."""
        return HASHES[self.hash_id]()


# RSAPSS is enrolled and then fails at every quote, as with namek.
_SCHEMES = {RSA: (RSASSA, RSAPSS), ECC: (ECDSA,)}


def _rsa(reader: Reader) -> rsa.RSAPublicKey:
    reader.take(2)  # keyBits, which the modulus says, too
    exponent = reader.number(4) or DEFAULT_EXPONENT
    modulus = int.from_bytes(reader.sized(), "big")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("the AK is no usable RSA key") from None


def _ecc(reader: Reader) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(reader.number(2))
    if reader.number(2) != NULL or curve is None:
        raise Malformed("the AK is on an unknown curve, or has a KDF")
    x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("the AK is no point of its curve") from None


@dataclasses.dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An EK. ``fingerprint`` is hex SHA-256 of its PKIX DER: the identity of the TPM."""

    public: rsa.RSAPublicKey
    fingerprint: str

    @classmethod
    def from_public(cls, der: bytes) -> EndorsementKey:
        """Of ``ek_pub``. Raises Refusal."""
        if len(der) > EK_PUB_MAX_BYTES:
            raise Refusal(400, "ek_pub too large")
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Refusal(400, "invalid ek public key") from None
        return cls._checked(key)

    @classmethod
    def from_certificate(cls, der: bytes) -> EndorsementKey:
        """Of ``ek_cert``, which may be padded at its end as TPMs keep it. Raises Refusal.

        Who has issued it is not asked: every device is ``unverified``. Other than with namek, a
        certificate of an ECC key is refused at once; there it fails in the TPM.
        """
        if len(der) > EK_CERT_MAX_BYTES:
            raise Refusal(400, "ek_cert too large")
        try:
            key = x509.load_der_x509_certificate(_trimmed(der)).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise internal("the EK certificate cannot be parsed") from None
        return cls._checked(key)

    @classmethod
    def _checked(cls, key: object) -> EndorsementKey:
        if not isinstance(key, rsa.RSAPublicKey):
            raise Refusal(400, "ek public key must be RSA")
        if key.key_size < EK_MIN_BITS:
            raise Refusal(400, f"ek public key must be at least {EK_MIN_BITS} bits")
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(key, hashlib.sha256(der).hexdigest())


def _trimmed(der: bytes) -> bytes:
    """The first DER element, of a length in two bytes as certificates have; else ``der`` as is."""
    if der[:2] == b"\x30\x82":
        return der[: 4 + int.from_bytes(der[2:4], "big")]
    return der
