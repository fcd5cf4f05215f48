"""A throw-away certificate authority, and certificates with all kinds of defects.

The extensions are complete (keyUsage, subject and authority key identifiers), so that Python 3.13's
strict check has nothing to say unless a test leaves something out on purpose.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Authority:
    """A certificate authority that keeps its files in ``folder``; ``ca_file`` is its certificate.

    ``parent`` makes it an intermediate one. ``strict`` False leaves out what Python 3.13 would
    insist on.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "nexusg test authority",
        *,
        parent: Authority | None = None,
        strict: bool = True,
    ) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        signer = parent or self
        builder = signer._builder(self._name, self._key.public_key(), (-60, 30))
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        if strict:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
            builder = signer._with_identifiers(builder, self._key.public_key())
        self._strict = strict
        self.certificate = builder.sign(signer._key, hashes.SHA256())
        self.ca_file = self._write("ca", _pem(self.certificate))

    def issue(
        self,
        names: Sequence[str] = LOOPBACK,
        *,
        days: tuple[int, int] = (-30, 10),
        common_name: str = "nexusg test",
    ) -> Path:
        """A PEM file with a certificate and its key, valid from and to these days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(common_name), key.public_key(), days)
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        if self._strict:
            builder = self._with_identifiers(builder, key.public_key())
        certificate = builder.sign(self._key, hashes.SHA256())
        return self._write("leaf", _pem(certificate) + _pem_key(key))

    def server_context(
        self,
        names: Sequence[str] = LOOPBACK,
        *,
        days: tuple[int, int] = (-30, 10),
        common_name: str = "nexusg test",
        clients: Authority | None = None,
    ) -> ssl.SSLContext:
        """A server's context: like the relay's, it would rather speak h2 (PROTOCOL.md 1.1).

        ``clients`` is whose client certificates it demands.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(names, days=days, common_name=common_name))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.ca_file)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[int, int]
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
        )

    def _with_identifiers(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        subject = x509.SubjectKeyIdentifier.from_public_key(key)
        return builder.add_extension(issuer, False).add_extension(subject, False)

    def _write(self, kind: str, content: bytes) -> Path:
        path = self._folder / f"{kind}-{x509.random_serial_number():x}.pem"
        path.write_bytes(content)
        return path


def encrypted_key(folder: Path) -> Path:
    """A PEM file with a private key that has a password."""
    path = folder / f"key-{x509.random_serial_number():x}.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(_pem_key(key, serialization.BestAvailableEncryption(b"hunter2")))
    return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(
    key: ec.EllipticCurvePrivateKey,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )
