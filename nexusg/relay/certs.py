"""Throw-away certificates for the development relay: an authority of its own, and one certificate.

They are good for this machine's own names only, and complete enough for the strict checks that
Python makes since 3.13. The authority's key is never written: nothing else can be signed with it.
This module needs the extra ``relay``.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


# OpenSSL takes no wildcard right below a top-level name, so the demo's name stands by itself.
NAMES = ("localhost", "*.localhost", "demo.localhost", "127.0.0.1", "::1")
CA_FILE, CERTIFICATE_FILE = "ca.pem", "relay.pem"

#: Long enough for a project, short enough that nobody relies on them.
VALID_FOR = dt.timedelta(days=90)
#: Certificates closer to their end than this are made anew, so as not to end during a day's work.
RENEW_BEFORE = dt.timedelta(days=7)
#: Clocks of containers and virtual machines may be behind.
BACKDATE = dt.timedelta(hours=1)


def ensure(folder: Path, names: Sequence[str] = NAMES) -> tuple[Path, Path]:
    """The paths of ca.pem and relay.pem in ``folder``, made or renewed if need be.

    relay.pem holds the certificate and its key; only its owner may read it. Raises OSError.
    """
    ca_file, certificate_file = folder / CA_FILE, folder / CERTIFICATE_FILE
    if not _usable(ca_file, certificate_file, names):
        folder.mkdir(parents=True, exist_ok=True)
        ca, certificate = _make(names)
        _write(ca_file, ca, 0o644)
        _write(certificate_file, certificate, 0o600)
    return ca_file, certificate_file


def _usable(ca_file: Path, certificate_file: Path, names: Sequence[str]) -> bool:
    """Whether both are there, belong together, are for ``names``, and will do for a while."""
    try:
        authority = x509.load_pem_x509_certificate(ca_file.read_bytes())
        pem = certificate_file.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(authority)
        key = serialization.load_pem_private_key(pem, None)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == certificate.public_key()
        and set(found) == set(map(_alternative, names))
        and min(authority.not_valid_after_utc, certificate.not_valid_after_utc)
        > dt.datetime.now(dt.timezone.utc) + RENEW_BEFORE
    )


def _make(names: Sequence[str]) -> tuple[bytes, bytes]:
    """The authority's certificate, and a certificate for ``names`` with its key, as PEM."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = _name("nexusg development authority"), _name("nexusg development relay")
    signing = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    ca = (
        _builder(ca_name, ca_name, ca_key, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        _builder(name, ca_name, key, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(map(_alternative, names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = serialization.Encoding.PEM
    return ca.public_bytes(pem), certificate.public_bytes(pem) + key_pem


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    """What both certificates have; the key identifiers are what strict checks ask for."""
    now = dt.datetime.now(dt.timezone.utc)
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + VALID_FOR)
        .add_extension(subject_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace ``path`` as a whole; it never has another mode than ``mode``."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
