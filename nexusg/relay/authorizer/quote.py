"""TPM quotes: TPMS_ATTEST and TPMT_SIGNATURE, read and verified as namek does (TPM.md A.3).

What counts here is what the agent must get right: over its nonce, by its AK, and of no PCR unless
their values are given.
"""

from __future__ import annotations

import dataclasses
import hmac
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nexusg.relay.authorizer.keys import ECDSA, HASHES, RSAPSS, RSASSA, SHA256
from nexusg.relay.authorizer.wire import Malformed, Reader, from_base64


if TYPE_CHECKING:
    from collections.abc import Mapping

    from nexusg.relay.authorizer.keys import AttestationKey

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE
ATTEST_QUOTE = 0x8018  # TPM_ST_ATTEST_QUOTE
MAX_BYTES = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Quote:
    """A quote whose signature nobody has checked yet. ``signed`` is what the signature is over."""

    signed: bytes
    extra_data: bytes
    pcr_bank: int
    pcrs: tuple[int, ...]
    pcr_digest: bytes
    scheme: int
    hash_id: int
    signature: bytes  #: of RSA as it is, of ECDSA in DER

    @classmethod
    def parse(cls, text: str) -> Quote:
        """Read base64 of u32 length, TPMS_ATTEST, TPMT_SIGNATURE. Raises Malformed."""
        if len(text) > 2 * MAX_BYTES:
            raise Malformed(f"a quote of {len(text)} characters is too large")
        data = from_base64(text)
        if len(data) > MAX_BYTES:
            raise Malformed(f"a quote of {len(data)} bytes is too large")
        reader = Reader(data, "the quote")
        signed = reader.take(reader.number(4))
        scheme, hash_id, signature = _signature(reader.rest())
        return cls(signed, *_attest(signed), scheme, hash_id, signature)

    def verify(
        self, key: AttestationKey, nonce: bytes, pcr_values: Mapping[int, bytes] | None = None
    ) -> None:
        """Check that ``key`` has signed this for ``nonce``, over just these PCRs.

        Raises Malformed with what is wrong.
        """
        self._check_signature(key)
        if not hmac.compare_digest(self.extra_data, nonce):
            raise Malformed("the quote is for another nonce")
        self._check_pcrs(key, pcr_values or {})

    def _check_signature(self, key: AttestationKey) -> None:
        if (self.scheme, self.hash_id) != (key.scheme, key.hash_id):
            raise Malformed("the signature is not of the AK's scheme")
        if self.scheme == RSAPSS:
            raise Malformed("the authorizer knows no RSAPSS signatures")
        try:
            if isinstance(key.public, rsa.RSAPublicKey):
                key.public.verify(self.signature, self.signed, padding.PKCS1v15(), key.hash())
            else:
                key.public.verify(self.signature, self.signed, ec.ECDSA(key.hash()))
        except InvalidSignature:
            raise Malformed("the signature is not the AK's") from None

    def _check_pcrs(self, key: AttestationKey, values: Mapping[int, bytes]) -> None:
        missing = set(self.pcrs) - set(values)
        if missing:
            raise Malformed(f"the quote was over PCR {min(missing)} which wasn't provided")
        extra = set(values) - set(self.pcrs)
        if extra:
            raise Malformed(f"PCR {min(extra)} was provided, but not quoted")
        if values and self.pcr_bank != SHA256:
            raise Malformed("the quote is not of the SHA-256 bank")
        digest = hashes.Hash(key.hash())
        for index in sorted(values):
            digest.update(values[index])
        if digest.finalize() != self.pcr_digest:
            raise Malformed("the quote's PCR digest is not that of the values")


def _attest(data: bytes) -> tuple[bytes, int, tuple[int, ...], bytes]:
    """extraData, PCR bank, PCRs and their digest of a TPMS_ATTEST (Part 2, 10.12.12)."""
    reader = Reader(data, "the TPMS_ATTEST")
    if reader.number(4) != MAGIC:
        raise Malformed("the quote was not made by a TPM: wrong magic")
    if reader.number(2) != ATTEST_QUOTE:
        raise Malformed("this attests something else than PCRs")
    reader.sized()  # qualifiedSigner
    extra_data = reader.sized()
    reader.take(8 + 4 + 4 + 1)  # clockInfo
    reader.take(8)  # firmwareVersion
    count = reader.number(4)
    if count != 1:
        raise Malformed(f"the quote has {count} PCR selections, and must have one")
    bank = reader.number(2)
    if bank not in HASHES:
        raise Malformed(f"the quote selects PCRs of an unknown hash: {bank:#06x}")
    mask = int.from_bytes(reader.take(reader.number(1)), "little")
    pcrs = tuple(index for index in range(mask.bit_length()) if mask >> index & 1)
    digest = reader.sized()
    reader.end()
    return extra_data, bank, pcrs, digest


def _signature(data: bytes) -> tuple[int, int, bytes]:
    """Scheme, hash and bytes of a TPMT_SIGNATURE (Part 2, 11.3.4)."""
    reader = Reader(data, "the TPMT_SIGNATURE")
    scheme, hash_id = reader.number(2), reader.number(2)
    if scheme in (RSASSA, RSAPSS):
        signature = reader.sized()
    elif scheme == ECDSA:
        r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        signature = encode_dss_signature(r, s)
    else:
        raise Malformed(f"the signature is of an unknown scheme: {scheme:#06x}")
    reader.end()
    return scheme, hash_id, signature
