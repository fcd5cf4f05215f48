"""TPM2_MakeCredential without a TPM (TPM 2.0 Library, Part 1, 24: Credential Protection).

Only the TPM that holds the EK can open the result, and only for an object of the given name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nexusg.relay.authorizer.wire import sized


if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

SECRET_BYTES = 32
#: The symmetric key of an EK of template L-1 is AES-128.
KEY_BITS = 128
HMAC_BITS = 256
BLOCK_BYTES = 16

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")


def make(endorsement: RSAPublicKey, name: bytes, secret: bytes) -> bytes:
    """``enc_credential`` (TPM.md A.4): u16 size, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.

    ``name`` is that of the AK, its name algorithm's id included.
    """
    seed = os.urandom(KEY_BITS // 8)
    identity = _encrypted(kdfa(seed, b"STORAGE", name, KEY_BITS), sized(secret))
    key = kdfa(seed, b"INTEGRITY", b"", HMAC_BITS)
    integrity = hmac.digest(key, identity + name, "sha256")
    blob = sized(sized(integrity) + identity)
    return sized(blob) + sized(endorsement.encrypt(seed, _OAEP))


def kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa with SHA-256, for at most 256 bits: one round (Part 1, 11.4.10.2)."""
    assert bits <= HMAC_BITS
    message = (1).to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.new(key, message, hashlib.sha256).digest()[: bits // 8]


def _encrypted(key: bytes, plain: bytes) -> bytes:
    """AES-CFB from an initial vector of zeros, by hand: it moves between cryptography's modules."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
    done, last = b"", bytes(BLOCK_BYTES)
    for start in range(0, len(plain), BLOCK_BYTES):
        part = plain[start : start + BLOCK_BYTES]
        last = bytes(a ^ b for a, b in zip(part, block(last), strict=False))
        done += last
    return done
