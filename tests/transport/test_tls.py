"""TLS: what is trusted, what is refused, and what the operator is told."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet, select, socket

from nexusg.errors import DialFailed
from nexusg.transport.connect import connect_tcp
from nexusg.transport.deadline import Deadline, limit
from nexusg.transport.tls import (
    SYSTEM_TRUST,
    TlsOptions,
    client_context,
    connection_errors,
    tls_failure,
    wrap,
)
from tests.support.certs import Authority, encrypted_key
from tests.transport.servers import Server, hanging, needs_ipv6, serving


if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_socket_left")


def greeting(server: Server, sock: Any) -> None:
    sock.sendall(f"{sock.version()} {sock.selected_alpn_protocol()}".encode())


def handshake(
    server: Server, options: TlsOptions = SYSTEM_TRUST, name: str = "127.0.0.1"
) -> tuple[str, ssl.SSLSocket]:
    """Connect with TLS; return what the server says and the socket, which is closed already."""
    context = client_context(options)
    sock = connect_tcp(server.host, server.port, 5)
    with wrap(sock, context, name, place=server.place) as wrapped:
        return wrapped.recv(100).decode(), wrapped


def trusting(authority: Authority, **options: Any) -> TlsOptions:
    return TlsOptions(ca_file=str(authority.ca_file), **options)


def refusal(server: Server, options: TlsOptions, name: str = "127.0.0.1") -> str:
    """The text of the DialFailed that the handshake must end with."""
    with pytest.raises(DialFailed) as caught:
        handshake(server, options, name)
    assert caught.value.code == "tls"
    return str(caught.value)


# --- What is accepted ------------------------------------------------------------------------


def test_http_1_only_and_a_modern_version(authority: Authority) -> None:
    """The server would rather have h2 (PROTOCOL.md section 1.1)."""
    with serving(greeting, context=authority.server_context()) as server:
        said, sock = handshake(server, trusting(authority))
    assert said == "TLSv1.3 http/1.1"
    assert not isinstance(sock, ssl.SSLObject)
    assert isinstance(sock, socket.socket), "gevent's"


@pytest.mark.parametrize(
    ("names", "dialled", "asked"),
    [
        (["a.test"], "a.test", "a.test"),
        (["a.test"], "a.test.", "a.test"),
        (["*.a.test"], "b.a.test", "b.a.test"),
        (["127.0.0.1"], "127.0.0.1", None),
        (["fe80::1"], "fe80::1%eth0", None),
        (["xn--bcher-kva.test"], "bücher.test", "xn--bcher-kva.test"),
    ],
)
def test_names(authority: Authority, names: list[str], dialled: str, asked: str | None) -> None:
    heard: list[str | None] = []
    context = authority.server_context(names)
    context.sni_callback = lambda _socket, name, _context: heard.append(name)
    with serving(greeting, context=context) as server:
        handshake(server, trusting(authority), dialled)
    assert heard == [asked]


def test_verification_can_be_off(stranger: Authority) -> None:
    with serving(greeting, context=stranger.server_context(["elsewhere.test"])) as server:
        assert handshake(server, TlsOptions(verify=False))[0]


def test_without_alpn(authority: Authority) -> None:
    with serving(greeting, context=authority.server_context()) as server:
        assert handshake(server, trusting(authority, alpn=()))[0] == "TLSv1.3 None"


@needs_ipv6
def test_an_ipv6_literal(authority: Authority) -> None:
    with serving(greeting, context=authority.server_context(), host="::1") as server:
        assert handshake(server, trusting(authority), "::1")[0]


def test_trust_from_the_environment(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE replaces the system's file, as it does in Go; and it is read at each dial."""
    with serving(greeting, context=authority.server_context()) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        assert handshake(server)[0]
        monkeypatch.delenv("SSL_CERT_FILE")
        assert "certificate" in refusal(server, SYSTEM_TRUST)


def test_ssl_cert_file_replaces(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    assert len(client_context().get_ca_certs()) == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(stranger.ca_file))
    [found] = client_context().get_ca_certs()
    assert "nexusg stranger" in str(found)


def test_ca_file_replaces_the_environment(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(greeting, context=authority.server_context()) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(stranger.ca_file))
        assert handshake(server, trusting(authority))[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        assert "certificate" in refusal(server, trusting(stranger))


def test_an_authority_without_key_usage(tmp_path: Path) -> None:
    """Refused by the strict check that only Python 3.13 turns on; accepted on all Pythons here."""
    lax = Authority(tmp_path, strict=False)
    with serving(greeting, context=lax.server_context()) as server:
        assert handshake(server, trusting(lax))[0]
    assert not client_context().verify_flags & ssl.VERIFY_X509_STRICT


def test_an_intermediate_authority_can_be_the_trusted_one(
    authority: Authority, tmp_path: Path
) -> None:
    intermediate = Authority(tmp_path, "nexusg intermediate", parent=authority)
    with serving(greeting, context=intermediate.server_context()) as server:
        assert handshake(server, trusting(intermediate))[0]
        assert "unable to get local issuer" in refusal(server, trusting(authority))


def test_a_client_certificate(authority: Authority, tmp_path: Path) -> None:
    both = authority.issue()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    begin = both.read_text().index("-----BEGIN PRIVATE KEY")
    certificate.write_text(both.read_text()[:begin])
    key.write_text(both.read_text()[begin:])
    context = authority.server_context(clients=authority)
    with serving(greeting, context=context) as server:
        assert handshake(server, trusting(authority, cert_file=str(both)))[0]
        apart = trusting(authority, cert_file=str(certificate), key_file=str(key))
        assert handshake(server, apart)[0]


def test_server_name_is_what_is_asked_for_and_checked(authority: Authority) -> None:
    """How dial uses it: the name in place of the host."""
    options = trusting(authority, server_name="inside.test")
    with serving(greeting, context=authority.server_context(["inside.test"])) as server:
        assert handshake(server, options, options.server_name or "")[0]


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        (
            {"names": ["a.test"], "days": (-30, -1)},
            ["certificate has expired", "renew it, or set the clock"],
        ),
        ({"names": ["a.test"], "days": (1, 30)}, ["certificate is not yet valid", "set the clock"]),
        ({"names": ["b.test"]}, ["not valid for 'a.test'", "set serverName"]),
        ({"names": ["127.0.0.1"]}, ["not valid for 'a.test'", "set serverName"]),
        ({"names": [], "common_name": "a.test"}, ["not valid for 'a.test'"]),
    ],
)
def test_bad_certificates(authority: Authority, defect: dict[str, Any], words: list[str]) -> None:
    with serving(greeting, context=authority.server_context(**defect)) as server:
        text = refusal(server, trusting(authority), "a.test")
    assert text.startswith(f"the certificate of {server.place} is not accepted: ")
    assert [word for word in words if word not in text] == []


def test_another_address(authority: Authority) -> None:
    with serving(greeting, context=authority.server_context(["10.0.0.1"])) as server:
        text = refusal(server, trusting(authority))
    assert "IP address mismatch" in text
    assert "set serverName" in text


def test_an_unknown_authority(authority: Authority, stranger: Authority) -> None:
    with serving(greeting, context=stranger.server_context()) as server:
        text = refusal(server, trusting(authority))
    assert "unable to get local issuer certificate" in text
    assert "caFile or SSL_CERT_FILE" in text


def test_a_missing_ssl_cert_file_is_named(
    stranger: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenSSL passes over it in silence."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with serving(greeting, context=stranger.server_context()) as server:
        text = refusal(server, SYSTEM_TRUST)
    assert text.endswith("missing.pem does not exist)")


def test_other_defects_have_no_way_out(authority: Authority) -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = 23, "certificate revoked"
    text = str(tls_failure(error, "a.test:443"))
    assert text == "the certificate of a.test:443 is not accepted: certificate revoked"


def test_a_client_certificate_that_is_missing(authority: Authority) -> None:
    """With TLS 1.3 the server's complaint comes after the handshake, to the first read."""
    with serving(greeting, context=authority.server_context(clients=authority)) as server:
        sock = connect_tcp(server.host, server.port, 5)
        wrapped = wrap(sock, client_context(trusting(authority)), "127.0.0.1", place="a.test:1")
        with pytest.raises(DialFailed) as caught, connection_errors("a.test:1", "upgrade"):
            wrapped.recv(1)
        wrapped.close()
    assert caught.value.code == "tls"
    assert str(caught.value) == ("a.test:1 asks for a client certificate: set certFile and keyFile")


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated:DeprecationWarning")
def test_an_old_version(authority: Authority) -> None:
    context = authority.server_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(greeting, context=context) as server:
        text = refusal(server, trusting(authority))
    assert text.startswith(f"TLS with {server.place} failed: ")
    assert "version" in text


def test_a_server_without_tls(authority: Authority) -> None:
    def speaking_first(_: Server, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(speaking_first) as server:
        text = refusal(server, trusting(authority))
    assert (
        text
        == f"{server.place} does not speak TLS: check its port, or write ws:// instead of wss://"
    )


def test_a_server_that_closes(authority: Authority) -> None:
    def closing(_: Server, sock: Any) -> None:
        sock.recv(4096)
        sock.close()

    with serving(closing) as server:
        text = refusal(server, trusting(authority))
    assert text.startswith(f"TLS with {server.place} failed: ")


def test_a_server_that_resets(authority: Authority) -> None:
    def resetting(_: Server, sock: Any) -> None:
        sock.recv(4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    with serving(resetting) as server:
        text = refusal(server, trusting(authority))
    assert text == f"the connection to {server.place} broke: Connection reset by peer"


def test_a_server_that_reset_before(authority: Authority) -> None:
    """As it does when it does not like the PROXY header."""

    def resetting(_: Server, sock: Any) -> None:
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    with serving(resetting) as server:
        sock = connect_tcp(server.host, server.port, 5)
        sock.sendall(b"x")
        select.select([sock], [], [], 5)
        with pytest.raises(DialFailed, match="broke: Connection reset by peer") as caught:
            wrap(sock, client_context(trusting(authority)), "127.0.0.1", place=server.place)
    assert caught.value.code == "tls"


@pytest.mark.parametrize("name", ["", ".", ".a.test", "a b.test", "a\0.test"])
def test_a_name_that_no_certificate_holds(authority: Authority, name: str) -> None:
    with serving(greeting, context=authority.server_context()) as server:
        assert "no certificate can hold the name" in refusal(server, trusting(authority), name)


def test_a_silent_server_is_given_up_on(authority: Authority) -> None:
    with serving(hanging) as server:
        sock = connect_tcp(server.host, server.port, 5)
        with pytest.raises(DialFailed, match="late"), limit(Deadline(0.01), DialFailed("late")):
            wrap(sock, client_context(trusting(authority)), "127.0.0.1", place=server.place)


def test_a_killed_handshake_leaves_nothing(authority: Authority) -> None:
    with serving(hanging) as server:
        dial = Greenlet.spawn(handshake, server, trusting(authority))
        gevent.sleep(0.005)
        dial.kill()


# --- Files -----------------------------------------------------------------------------------


@pytest.fixture
def junk(tmp_path: Path) -> str:
    path = tmp_path / "junk.pem"
    path.write_text("junk")
    return str(path)


@pytest.mark.parametrize("setting", ["ca_file", "cert_file", "key_file"])
def test_missing_files(authority: Authority, tmp_path: Path, setting: str) -> None:
    missing = str(tmp_path / "missing.pem")
    options = {"cert_file": str(authority.issue()), setting: missing}
    with pytest.raises(DialFailed) as caught:
        client_context(TlsOptions(**options))
    assert caught.value.code == "tls"
    key = setting.replace("_f", "F")
    assert str(caught.value) == f"cannot read {key} {missing}: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DialFailed, match="Is a directory"):
        client_context(TlsOptions(ca_file=str(tmp_path)))


def test_files_without_what_they_should_hold(authority: Authority, junk: str) -> None:
    with pytest.raises(DialFailed, match=f"caFile {junk} holds no PEM certificate"):
        client_context(TlsOptions(ca_file=junk))
    with pytest.raises(DialFailed, match=f"certFile {junk} and keyFile .* hold no PEM"):
        client_context(TlsOptions(cert_file=junk, key_file=str(authority.issue())))


def test_a_key_of_another_certificate(authority: Authority) -> None:
    options = TlsOptions(cert_file=str(authority.issue()), key_file=str(authority.issue()))
    with pytest.raises(DialFailed, match=r"the key in .* does not belong to the certificate in"):
        client_context(options)


def test_a_key_with_a_password_is_refused(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL would ask for the password on the terminal, and stop the whole process."""
    options = TlsOptions(cert_file=str(authority.issue()), key_file=str(encrypted_key(tmp_path)))
    with pytest.raises(DialFailed, match="is encrypted; give a key without a password"):
        client_context(options)


def test_a_key_alone_is_refused(authority: Authority) -> None:
    with pytest.raises(DialFailed, match="needs a certificate: set certFile as well"):
        client_context(TlsOptions(key_file=str(authority.issue())))


# --- Connection errors -----------------------------------------------------------------------


def test_connection_errors_carry_the_step() -> None:
    errors = connection_errors("a.test:1", "proxy")
    with pytest.raises(DialFailed, match=r"to a\.test:1 broke: Broken pipe") as caught, errors:
        raise BrokenPipeError(32, "Broken pipe")
    assert caught.value.code == "proxy"
    with connection_errors("a.test:1", "proxy"):
        pass
