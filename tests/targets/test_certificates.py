"""Contexts that are kept, renewed with their files, and never lost to a renewal that went wrong."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl

from nexusg.config.destination import TargetTls, TlsTerminate
from nexusg.errors import TargetError
from nexusg.targets.certificates import Certificates
from tests.support.certs import Authority, encrypted_key
from tests.targets.pairs import tls_pair


if TYPE_CHECKING:
    from pathlib import Path

    from tests.targets.pairs import Contexts


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def certificates(told: list[str]) -> Certificates:
    return Certificates(told.append)


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsTerminate:
    """A certificate and its key, in files of their own."""
    how = TlsTerminate(str(tmp_path / "app.pem"), str(tmp_path / "app.key"))
    renew(how, authority)
    return how


def renew(how: Any, authority: Authority, names: tuple[str, ...] = ("localhost",)) -> None:
    """Write the certificate, and the key after it."""
    certificate, key = issued(authority, names)
    replace(how.cert_file, certificate)
    replace(how.key_file, key)


def issued(authority: Authority, names: tuple[str, ...] = ("localhost",)) -> tuple[str, str]:
    both = authority.issue(names).read_text()
    begin = both.index("-----BEGIN PRIVATE KEY")
    return both[:begin], both[begin:]


def replace(path: str, text: str) -> None:
    """Put a new file in its place, as certbot does. Its number of bytes may well be the same."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def shown(contexts: Contexts, server: ssl.SSLContext, version: Any = None) -> set[str]:
    """The names in the certificate that a server shows."""
    client, _ = contexts
    ours, theirs = tls_pair((client, server))
    names = {value for _, value in ours.getpeercert()["subjectAltName"]}
    assert theirs.selected_alpn_protocol() == ours.selected_alpn_protocol()
    for sock in (ours, theirs):
        sock.close()
    return names


def test_a_server(certificates: Certificates, files: TlsTerminate, contexts: Contexts) -> None:
    context = certificates.server(files)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode == ssl.CERT_NONE
    assert shown(contexts, context) == {"localhost"}


def test_a_server_of_one_file(
    certificates: Certificates, authority: Authority, contexts: Contexts
) -> None:
    context = certificates.server(TlsTerminate(str(authority.issue()), None, "1.3"))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert "localhost" in shown(contexts, context)


def test_http_1_is_offered(certificates: Certificates, files: TlsTerminate, authority: Any) -> None:
    context = certificates.server(files)
    for offered, agreed in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(authority.ca_file)
        if offered:
            client.set_alpn_protocols(offered)
        ours, theirs = tls_pair((client, context))
        assert ours.selected_alpn_protocol() == agreed
        ours.close()
        theirs.close()


def test_a_context_is_made_once(certificates: Certificates, files: TlsTerminate) -> None:
    context = certificates.server(files)
    assert certificates.server(files) is context
    assert certificates.server(TlsTerminate(files.cert_file, files.key_file)) is context
    assert certificates.server(TlsTerminate(files.cert_file, files.key_file, "1.3")) is not context
    assert certificates.server(files) is context


def test_changed_files_are_loaded(
    certificates: Certificates, files: TlsTerminate, authority: Authority, contexts: Contexts
) -> None:
    before = certificates.server(files)
    renew(files, authority, ("localhost", "new.test"))
    after = certificates.server(files)
    assert after is not before
    assert shown(contexts, after) == {"localhost", "new.test"}
    assert certificates.server(files) is after


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_what_a_change_is_seen_by(
    certificates: Certificates, files: TlsTerminate, change: str
) -> None:
    before = certificates.server(files)
    path = str(files.cert_file)
    known = os.stat(path)
    if change == "inode":
        shutil.copy(path, f"{path}.copy")
        os.replace(f"{path}.copy", path)
    elif change == "size":
        with open(path, "a") as file:
            file.write("\n")
    stamp = known.st_mtime_ns + (1 if change == "time" else 0)
    os.utime(path, ns=(stamp, stamp))
    assert certificates.server(files) is not before


def test_a_renewal_under_way_breaks_nothing(
    certificates: Certificates, files: TlsTerminate, authority: Authority, told: list[str]
) -> None:
    """Told once, whatever else happens to the files until they are good again."""
    before = certificates.server(files)
    certificate, key = issued(authority)
    replace(str(files.cert_file), certificate[:100])
    assert certificates.server(files) is before
    assert certificates.server(files) is before
    replace(str(files.cert_file), certificate)
    assert certificates.server(files) is before, "the key is still the old one"
    os.unlink(str(files.key_file))
    assert certificates.server(files) is before
    replace(str(files.key_file), key)
    after = certificates.server(files)
    assert after is not before
    [text] = told
    assert text == (
        f"certFile {files.cert_file} and keyFile {files.key_file} hold no PEM certificate and key: "
        f"{text.rpartition(': ')[2].partition(';')[0]}; what was loaded before stays in use"
    )
    replace(str(files.key_file), "junk")
    assert certificates.server(files) is after
    assert len(told) == 2, "that is another story"


def test_nobody_has_to_be_told(files: TlsTerminate) -> None:
    certificates = Certificates()
    before = certificates.server(files)
    replace(str(files.cert_file), "junk")
    assert certificates.server(files) is before


def test_the_first_failure_is_the_caller_s(
    certificates: Certificates, files: TlsTerminate, authority: Authority, told: list[str]
) -> None:
    key = str(files.key_file)
    for text, expected in (
        (encrypted_key_text(authority), f"keyFile {key} is encrypted; give a key without"),
        (issued(authority)[1], f"the key in {key} does not belong to the certificate in"),
        (None, f"cannot read keyFile {key}: No such file or directory"),
    ):
        if text is None:
            os.unlink(key)
        else:
            replace(key, text)
        with pytest.raises(TargetError) as caught:
            certificates.server(files)
        assert str(caught.value).startswith(expected)
        assert caught.value.code == "tls"
    renew(files, authority)
    assert certificates.server(files)
    assert not told


def encrypted_key_text(authority: Authority) -> str:
    return encrypted_key(authority.ca_file.parent).read_text()


def test_a_client(certificates: Certificates, authority: Authority) -> None:
    how = TargetTls(ca_file=str(authority.ca_file))
    context = certificates.client(how)
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert certificates.client(TargetTls(ca_file=str(authority.ca_file))) is context
    for _ in "12":
        ours, theirs = tls_pair((context, authority.server_context()))
        assert ours.selected_alpn_protocol() is None, "h2 and http/1.1 are the server's"
        ours.close()
        theirs.close()


def test_a_client_that_takes_any_certificate(certificates: Certificates) -> None:
    context = certificates.client(TargetTls(verify=False))
    assert not context.check_hostname
    assert context.verify_mode == ssl.CERT_NONE


def test_a_client_without_its_files(certificates: Certificates, tmp_path: Path) -> None:
    missing = str(tmp_path / "ca.pem")
    with pytest.raises(TargetError, match=f"cannot read caFile {missing}") as caught:
        certificates.client(TargetTls(ca_file=missing))
    assert caught.value.code == "tls"


@pytest.mark.parametrize("named", [True, False])
def test_renewed_authorities_count(
    certificates: Certificates,
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
) -> None:
    """Those of the system as well as those of ``caFile``."""
    path = str(tmp_path / "ca.pem")
    shutil.copy(stranger.ca_file, path)
    monkeypatch.setenv("SSL_CERT_FILE", path)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    how = TargetTls(ca_file=path if named else None)
    before = certificates.client(how)
    replace(path, authority.ca_file.read_text())
    after = certificates.client(how)
    assert after is not before
    assert certificates.client(how) is after
    ours, theirs = tls_pair((after, authority.server_context()))
    ours.close()
    theirs.close()
