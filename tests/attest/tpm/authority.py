"""The other side of TPM attestation, without a TPM: makes credentials and verifies quotes.

Written from TPM 2.0 part 1 (24, B.10.3) and part 2 (10.12), and used by tests only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import load_der_public_key


try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

#: The digest of no PCR at all.
NO_PCR = hashlib.sha256().digest()

_RSA, _ECC = 0x0001, 0x0023
_SHA256, _RSASSA, _ECDSA = 0x000B, 0x0014, 0x0018
_RESTRICTED_SIGNER = 0x00050472  # of this TPM alone, and only for what the TPM says


class Bytes:
    """Takes a TPM's structures apart."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        part = self._data[self._at : self._at + count]
        assert len(part) == count, "it ends too early"
        self._at += count
        return part

    def number(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """What stands behind a size (TPM2B)."""
        return self.take(self.number(2))

    def end(self) -> None:
        """There must be nothing more."""
        assert self._at == len(self._data), "there is something behind it"


@dataclass(frozen=True)
class Quoted:
    """What a genuine quote says."""

    nonce: bytes
    pcrs: tuple[int, ...]
    pcr_digest: bytes


def public_key(ak_params: bytes) -> Any:
    """The key of a TPMT_PUBLIC, which must be a restricted signing key."""
    data = Bytes(ak_params)
    kind, name_algorithm = data.number(2), data.number(2)
    assert name_algorithm == _SHA256
    assert data.number(4) == _RESTRICTED_SIGNER
    assert data.sized() == b"", "it has a policy"
    assert data.number(2) == 0x0010, "not for encryption"
    scheme, digest = data.number(2), data.number(2)
    assert digest == _SHA256
    if kind == _RSA:
        assert (scheme, data.number(2), data.number(4)) == (_RSASSA, 2048, 0)
        key: Any = rsa.RSAPublicNumbers(65537, int.from_bytes(data.sized(), "big")).public_key()
    else:
        assert (kind, scheme) == (_ECC, _ECDSA)
        assert (data.number(2), data.number(2)) == (0x0003, 0x0010), "P-256, no KDF"
        x, y = (int.from_bytes(data.sized(), "big") for _ in range(2))
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    data.end()
    return key


def verified(wire: str, ak_params: bytes) -> Quoted:
    """What the quote says, after checking that this key has signed it."""
    data = base64.b64decode(wire, validate=True)
    size = int.from_bytes(data[:4], "big")
    said, signature = data[4 : 4 + size], Bytes(data[4 + size :])
    scheme = signature.number(2)
    assert signature.number(2) == _SHA256
    key = public_key(ak_params)
    if scheme == _RSASSA:
        key.verify(signature.sized(), said, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert scheme == _ECDSA
        r, s = (int.from_bytes(signature.sized(), "big") for _ in range(2))
        key.verify(encode_dss_signature(r, s), said, ec.ECDSA(hashes.SHA256()))
    signature.end()
    return _read(Bytes(said))


def _read(said: Bytes) -> Quoted:
    assert said.take(6) == b"\xffTCG\x80\x18", "no quote of a TPM"
    said.sized()  # the signer's name
    nonce = said.sized()
    said.take(17 + 8)  # clock and firmware
    assert said.number(4) == 1, "namek wants exactly one selection"
    assert said.number(2) == _SHA256
    mask = int.from_bytes(said.take(said.number(1)), "little")
    digest = said.sized()
    said.end()
    return Quoted(nonce, tuple(pcr for pcr in range(24) if mask >> pcr & 1), digest)


def make_credential(ek_public_der: bytes, ak_params: bytes, secret: bytes) -> bytes:
    """``enc_credential``: the secret, for the TPM with this EK that also holds this AK."""
    key = load_der_public_key(ek_public_der)
    assert isinstance(key, rsa.RSAPublicKey)
    name = struct.pack(">H", _SHA256) + hashlib.sha256(ak_params).digest()
    seed = os.urandom(16)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
    cipher = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", name, 128)), CFB(bytes(16)))
    encryptor = cipher.encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity = _kdfa(seed, b"INTEGRITY", b"", 256)
    mac = hmac.new(integrity, identity + name, hashlib.sha256).digest()
    blob = _sized(_sized(mac) + identity)
    return _sized(blob) + _sized(key.encrypt(seed, oaep))


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    message = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.new(key, message, hashlib.sha256).digest()[: bits // 8]
