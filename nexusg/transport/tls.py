"""TLS towards a peer whose certificate is checked. It knows no WebSockets and no settings.

Trust is the system's, as OpenSSL finds it: SSL_CERT_FILE and SSL_CERT_DIR replace the default file
and folder, as they do for Go programs, but the files of a folder need the names that ``openssl
rehash`` gives them. ``ca_file`` replaces all that, so that a private authority can be the only one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gevent import socket, ssl

from nexusg.errors import DialFailed
from nexusg.transport.address import ascii_host
from nexusg.transport.channel import TlsChannel
from nexusg.transport.connect import closed_on_error
from nexusg.transport.failure import words


if TYPE_CHECKING:
    from collections.abc import Iterator

# OpenSSL's X509_V_ERR_* numbers, as in SSLCertVerificationError.verify_code.
_OUT_OF_TIME = {9, 10}  # not yet valid, expired
_OTHER_NAME = {62, 64}  # host name, IP address
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}  # no issuer found, or a self-signed one


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Whom to trust, and as whom to appear. The defaults trust what the system trusts.

    ``ca_file``: PEM authorities to trust instead of the system's. ``cert_file`` and ``key_file``:
    PEM client certificate and its unencrypted key; without ``key_file`` both are in ``cert_file``.
    ``server_name``: the name to ask for and to check, instead of the host dialled. ``verify`` False
    takes any certificate. ``alpn``: the protocols to offer, if any.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    verify: bool = True
    # http/1.1 only, for the relay would take h2 (PROTOCOL.md section 1.1).
    alpn: tuple[str, ...] = ("http/1.1",)


SYSTEM_TRUST = TlsOptions()

#: What helps against a relay that speaks no TLS.
WITHOUT = "write ws:// instead of wss://"


def client_context(options: TlsOptions = SYSTEM_TRUST) -> ssl.SSLContext:
    """A context for one dial, so that renewed files count at the next one.

    TLS 1.2 or newer; chain and name are checked. Raises DialFailed with code ``tls``, naming the
    file.
    """
    # Not create_default_context(): in an unpatched process that is the standard library's.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.alpn:
        context.set_alpn_protocols(options.alpn)
    # The same on every Python: 3.13 alone would refuse private authorities without key usage.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # As Go does: a certificate in the trust store is trusted, root or not, and the subject's common
    # name is not a host name.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca_file is None:
        context.load_default_certs()
    else:
        _load_authorities(context, options.ca_file)
    if options.cert_file is not None:
        load_identity(context, options.cert_file, options.key_file or options.cert_file)
    elif options.key_file is not None:
        raise _failed(
            f"the client key {options.key_file} needs a certificate: set certFile as well"
        )
    return context


def wrap(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str,
    *,
    place: str,
    without: str = WITHOUT,
) -> ssl.SSLSocket:
    """Shake hands over a connected socket, which belongs to the result from then on. Blocks.

    ``server_name`` is a name or literal; ``place`` is for messages, and ``without`` says there how
    to do without TLS. Raises DialFailed with code ``tls``; the socket is closed then.
    """
    with closed_on_error(sock), connection_errors(place, "tls", without):
        name = _known_name(server_name)
        # The handshake is apart: an interrupted one would leave nobody to close the socket.
        wrapped = _wrapped(sock, context, name)
    with closed_on_error(wrapped), connection_errors(place, "tls", without):
        wrapped.do_handshake()
    return wrapped


def open_channel(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str,
    buffer: bytearray | None,
    *,
    place: str,
) -> TlsChannel:
    """Shake hands as `wrap` does, for a connection that carries much: see `TlsChannel`. Blocks.

    Raises DialFailed with code ``tls``; the socket is closed then.
    """
    with closed_on_error(sock), connection_errors(place, "tls"):
        channel = TlsChannel(sock, context, _known_name(server_name), buffer)
        channel.handshake()
        return channel


def _known_name(server_name: str) -> str:
    """The name as certificates and SNI know it."""
    try:
        return ascii_host(server_name.rstrip(".").partition("%")[0])
    except ValueError as error:
        raise _failed(f"no certificate can hold the name {server_name!r}") from error


def _wrapped(sock: socket.socket, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
    except OSError as error:
        # gevent takes over a socket that is reset already, fails, and leaves it open. Only its
        # frame knows the one that it was making.
        traceback = error.__traceback__
        while traceback is not None:
            half_made = traceback.tb_frame.f_locals.get("self")
            if isinstance(half_made, ssl.SSLSocket):
                half_made.close()
            traceback = traceback.tb_next
        raise


def tls_failure(error: OSError, place: str, without: str = WITHOUT) -> DialFailed:
    """DialFailed for what went wrong with TLS at ``place``, with the way out where one is known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return _failed(f"the certificate of {place} is not accepted: {why}{_way_out(error)}")
    reason = (getattr(error, "reason", None) or "").replace("_", " ").lower()
    if "certificate required" in reason:
        return _failed(f"{place} asks for a client certificate: set certFile and keyFile")
    if reason in ("wrong version number", "record layer failure", "http request"):
        return _failed(f"{place} does not speak TLS: check its port, or {without}")
    return _failed(f"TLS with {place} failed: {reason or words(error)}")


@contextmanager
def connection_errors(place: str, code: str, without: str = WITHOUT) -> Iterator[None]:
    """Turn what a connected socket raises into DialFailed, with code ``tls`` or ``code``."""
    try:
        yield
    except ssl.SSLError as error:
        raise tls_failure(error, place, without) from error
    except OSError as error:
        raise DialFailed(f"the connection to {place} broke: {words(error)}", code) from error


def _way_out(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OUT_OF_TIME:
        return "; renew it, or set the clock of this machine"
    if error.verify_code in _OTHER_NAME:
        return "; dial a name that it holds, or set serverName to one"
    if error.verify_code not in _UNKNOWN_AUTHORITY:
        return ""
    trusted = os.environ.get("SSL_CERT_FILE")  # OpenSSL passes over a missing file in silence
    missing = f" ({trusted} does not exist)" if trusted and not os.path.exists(trusted) else ""
    return f"; if its authority is to be trusted, name it with caFile or SSL_CERT_FILE{missing}"


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path, "caFile")
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:
        raise _failed(f"caFile {path} holds no PEM certificate: {words(error)}") from error


def load_identity(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """Load a PEM certificate with its chain, and its key. Raises DialFailed, naming the file."""
    _check_readable(cert_file, "certFile")
    _check_readable(key_file, "keyFile")

    def no_password() -> str:  # without it OpenSSL would ask on the terminal
        raise _failed(f"keyFile {key_file} is encrypted; give a key without a password")

    try:
        context.load_cert_chain(cert_file, key_file, no_password)
    except OSError as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            message = f"the key in {key_file} does not belong to the certificate in {cert_file}"
        else:
            message = f"certFile {cert_file} and keyFile {key_file} hold no PEM certificate and key"
        raise _failed(f"{message}: {words(error)}") from error


def _check_readable(path: str, setting: str) -> None:
    """OpenSSL's errors do not say which file."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise _failed(f"cannot read {setting} {path}: {words(error)}") from error


def _failed(message: str) -> DialFailed:
    return DialFailed(message, "tls")
