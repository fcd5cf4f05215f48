from __future__ import annotations

import datetime as dt
import os
import ssl
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nexusg.relay import certs


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Damage = Callable[[Path, Path], object]


def handshake(ca_file: Path, certificate_file: Path, name: str) -> None:
    """A TLS handshake in memory, as strict as Python 3.13 is by default."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate_file)
    client = ssl.create_default_context(cafile=ca_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert ends[0].version() == "TLSv1.3"
    assert ends[0].getpeercert()


@pytest.mark.parametrize("name", ["localhost", "demo.localhost", "127.0.0.1", "::1"])
def test_strict_clients_accept_them(tmp_path: Path, name: str) -> None:
    handshake(*certs.ensure(tmp_path), name)


def test_other_names_are_not_covered(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(*certs.ensure(tmp_path), "relay.example.com")


def test_files_and_their_modes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ca_file, certificate_file = certs.ensure(tmp_path / "new" / "folder")
    finally:
        os.umask(before)
    assert (ca_file.name, certificate_file.name) == ("ca.pem", "relay.pem")
    assert {path.name for path in ca_file.parent.iterdir()} == {"ca.pem", "relay.pem"}
    assert stat.S_IMODE(certificate_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(ca_file.stat().st_mode) == 0o644
    assert b"PRIVATE" not in ca_file.read_bytes()


def test_they_are_used_again(tmp_path: Path) -> None:
    ca_file, certificate_file = certs.ensure(tmp_path)
    before = ca_file.read_bytes(), certificate_file.read_bytes()
    certs.ensure(tmp_path)
    assert (ca_file.read_bytes(), certificate_file.read_bytes()) == before


def test_other_names_make_new_ones(tmp_path: Path) -> None:
    _, certificate_file = certs.ensure(tmp_path)
    before = certificate_file.read_bytes()
    certs.ensure(tmp_path, ["localhost"])
    assert certificate_file.read_bytes() != before


def test_old_ones_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs, "VALID_FOR", dt.timedelta(days=6))
    ca_file, _ = certs.ensure(tmp_path)
    monkeypatch.undo()
    certs.ensure(tmp_path)
    ends = x509.load_pem_x509_certificate(ca_file.read_bytes()).not_valid_after_utc
    assert ends > dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=80)


def swap(name: str) -> Damage:
    """Replace one file by its namesake of another pair."""
    return lambda folder, other: (folder / name).write_bytes((other / name).read_bytes())


def swap_key(folder: Path, other: Path) -> None:
    """Combine the certificate of one pair with the key of another."""
    certificate, key = (path / "relay.pem" for path in (folder, other))
    begin = b"-----BEGIN PRIVATE KEY-----"
    mixed = certificate.read_bytes().partition(begin)[0]
    certificate.write_bytes(mixed + begin + key.read_bytes().partition(begin)[2])


def drop_names(folder: Path, other: Path) -> None:
    """Put a certificate without alternative names, and its authority, in their place."""
    pem = (other / "relay.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = certs._name("nameless")
    certificate = certs._builder(name, name, key, key).sign(key, hashes.SHA256())
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "relay.pem").write_bytes((folder / "ca.pem").read_bytes() + pem)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder, other: (folder / "ca.pem").unlink(),
        lambda folder, other: (folder / "relay.pem").write_text("not PEM"),
        lambda folder, other: (folder / "relay.pem").write_bytes((folder / "ca.pem").read_bytes()),
        swap("ca.pem"),
        swap("relay.pem"),
        swap_key,
        drop_names,
    ],
)
def test_damaged_ones_are_replaced(tmp_path: Path, damage: Damage) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    certs.ensure(folder)
    certs.ensure(other)
    damage(folder, other)
    handshake(*certs.ensure(folder), "localhost")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        certs.ensure(tmp_path / "file")
