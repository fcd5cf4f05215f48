"""The certificate of an endorsement key, as it is found in a TPM. No TPM is called here."""

from __future__ import annotations


def trimmed(data: bytes) -> bytes | None:
    """The DER value that ``data`` begins with, without the padding; None if it does not (X.690).

    An NV index may be larger than the certificate in it.
    """
    if data[:1] != b"\x30" or len(data) < 2:  # a SEQUENCE, as every certificate is
        return None
    count = data[1] & 0x7F if data[1] & 0x80 else 0  # the bytes of the length, in its long form
    length = int.from_bytes(data[2 : 2 + count], "big") if count else data[1]
    end = 2 + count + length
    return data[:end] if end <= len(data) else None


def matching(data: bytes, public_der: bytes) -> tuple[bytes | None, str]:
    """The certificate in ``data`` if it is for ``public_der`` (PKIX); else None, and why not.

    Needs `cryptography`, which the TPM library depends on.
    """
    # Not at the top: this package is imported where there is neither.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    certificate = trimmed(data)
    if certificate is None:
        return None, "it is not DER"
    try:
        key = load_der_x509_certificate(certificate).public_key()
        own = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        return None, f"it cannot be read ({error})"
    if own != public_der:
        return None, "it belongs to another key"
    return certificate, ""
