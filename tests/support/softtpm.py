"""A software TPM in Python, as far as an authorizer can tell one: EK, AK, quotes, credentials.

It writes its structures by hand, from the TPM 2.0 Library's Part 2, so that the parsers are not
tested with themselves.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms


try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # before 47
    from cryptography.hazmat.primitives.ciphers.modes import CFB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RSA, ECC = "rsa2048", "ecc-p256"
HASHES = {0x000B: hashes.SHA256, 0x000C: hashes.SHA384}
ATTRIBUTES = (
    0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
)


@functools.cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The key of this number: making one takes a while."""
    return rsa.generate_private_key(65537, bits)


class SoftTpm:
    """``ak`` is rsa2048 or ecc-p256. TPMs of the same ``number`` have the same EK."""

    def __init__(self, ak: str = RSA, number: int = 0, hash_id: int = 0x000B) -> None:
        self.ek = rsa_key(number)
        self.hash_id = hash_id
        self.pcrs: dict[int, bytes] = dict.fromkeys(range(24), bytes(32))
        self.ak = rsa_key(1000) if ak == RSA else ec.generate_private_key(ec.SECP256R1())

    @property
    def ek_public(self) -> bytes:
        """The EK's PKIX DER."""
        return self.ek.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of it."""
        return hashlib.sha256(self.ek_public).hexdigest()

    @property
    def ak_params(self) -> bytes:
        """The AK's TPMT_PUBLIC."""
        public = self.ak.public_key().public_numbers()
        if isinstance(public, rsa.RSAPublicNumbers):
            kind, scheme = 0x0001, 0x0014
            tail = struct.pack(">HI", 2048, 0) + tpm2b(public.n.to_bytes(256, "big"))
        else:
            kind, scheme = 0x0023, 0x0018
            x, y = (tpm2b(n.to_bytes(32, "big")) for n in (public.x, public.y))
            tail = struct.pack(">HH", 0x0003, 0x0010) + x + y
        head = struct.pack(">HHI", kind, 0x000B, ATTRIBUTES) + tpm2b(b"")
        return head + struct.pack(">HHH", 0x0010, scheme, self.hash_id) + tail

    @property
    def ak_name(self) -> bytes:
        """The AK's name."""
        return b"\x00\x0b" + hashlib.sha256(self.ak_params).digest()

    def quote(self, nonce: bytes, pcrs: Sequence[int] = (), **changes: object) -> str:
        """The wire form of a quote over ``pcrs``; ``changes`` are those of `attest`."""
        return self.sign(self.attest(nonce, pcrs, **changes))  # type: ignore[arg-type]

    def attest(
        self,
        nonce: bytes,
        pcrs: Sequence[int] = (),
        *,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        selections: bytes | None = None,
        digest: bytes | None = None,
    ) -> bytes:
        """A TPMS_ATTEST."""
        mask = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        if selections is None:
            selections = struct.pack(">IHB", 1, 0x000B, 3) + mask
        if digest is None:
            total = hashes.Hash(HASHES[self.hash_id]())
            for pcr in sorted(pcrs):
                total.update(self.pcrs[pcr])
            digest = total.finalize()
        head = struct.pack(">IH", magic, kind) + tpm2b(self.ak_name) + tpm2b(nonce)
        clock = struct.pack(">QIIBQ", 123456, 7, 1, 1, 0x20200312)
        return head + clock + selections + tpm2b(digest)

    def sign(self, attest: bytes) -> str:
        """The wire form of ``attest`` with this AK's signature."""
        chosen = HASHES[self.hash_id]()
        if isinstance(self.ak, rsa.RSAPrivateKey):
            raw = self.ak.sign(attest, padding.PKCS1v15(), chosen)
            signature = struct.pack(">HH", 0x0014, self.hash_id) + tpm2b(raw)
        else:
            r, s = decode_dss_signature(self.ak.sign(attest, ec.ECDSA(chosen)))
            halves = b"".join(tpm2b(n.to_bytes(32, "big")) for n in (r, s))
            signature = struct.pack(">HH", 0x0018, self.hash_id) + halves
        return wire(attest, signature)

    def activate(self, credential: bytes) -> bytes:
        """TPM2_ActivateCredential. Raises ValueError with the TPM's code when it would refuse."""
        blob, rest = split(credential)
        identity, nothing = split(blob)
        encrypted, end = split(rest)
        assert (nothing, end) == (b"", b""), "left over"
        mgf = padding.MGF1(hashes.SHA256())
        seed = self.ek.decrypt(encrypted, padding.OAEP(mgf, hashes.SHA256(), b"IDENTITY\0"))
        integrity, inner = split(identity)
        key = _kdfa(seed, b"INTEGRITY", b"", 256)
        wanted = hmac.new(key, inner + self.ak_name, hashlib.sha256).digest()
        if not hmac.compare_digest(wanted, integrity):
            raise ValueError("0x1df: integrity")
        cipher = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", self.ak_name, 128)), CFB(bytes(16)))
        opener = cipher.decryptor()
        secret, end = split(opener.update(inner) + opener.finalize())
        assert end == b"", "left over"
        return secret


def wire(attest: bytes, signature: bytes) -> str:
    """Base64 of u32 length, TPMS_ATTEST, TPMT_SIGNATURE."""
    return base64.b64encode(struct.pack(">I", len(attest)) + attest + signature).decode()


def tpm2b(data: bytes) -> bytes:
    """With two bytes of size in front."""
    return struct.pack(">H", len(data)) + data


def split(data: bytes) -> tuple[bytes, bytes]:
    """The TPM2B at the front, and what follows."""
    size = int.from_bytes(data[:2], "big")
    assert len(data) >= 2 + size, "too short"
    return data[2 : 2 + size], data[2 + size :]


def composite(values: Mapping[int, bytes]) -> dict[str, str]:
    """PCR values as the enrollment wants them."""
    return {str(pcr): value.hex() for pcr, value in values.items()}


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    text = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.new(key, text, hashlib.sha256).digest()[: bits // 8]
