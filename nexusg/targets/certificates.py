"""TLS contexts of the routes, made once and again when a file they come from has changed.

It opens no connection. A renewal that is under way breaks nothing: the context of before stays in
use until the new files can be loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gevent import ssl

from nexusg.errors import DialFailed, TargetError
from nexusg.transport.tls import TlsOptions, client_context, load_identity


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nexusg.config.destination import TlsTerminate
    from nexusg.config.tls import TargetTls

    _Stamp = tuple[int, int, int] | None

_How = TypeVar("_How", "TargetTls", "TlsTerminate")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(slots=True)
class _Kept:
    context: ssl.SSLContext
    stamps: tuple[_Stamp, ...]
    failing: bool = False  # what changed since could not be loaded, and that was told


class Certificates:
    """The contexts of one agent. ``on_error`` is told, once, that changed files are no good."""

    def __init__(self, on_error: Callable[[str], None] | None = None) -> None:
        self._on_error = on_error
        self._kept: dict[TargetTls | TlsTerminate, _Kept] = {}

    def server(self, how: TlsTerminate) -> ssl.SSLContext:
        """A context to end the TLS of users with; ``how`` has a ``cert_file``.

        Raises TargetError with code ``tls`` when it cannot be made, and never could.
        """
        return self._get(how, _server_context, (how.cert_file, how.key_file))

    def client(self, how: TargetTls) -> ssl.SSLContext:
        """A context to dial a service with. Raises TargetError, as above."""
        trusted = how.ca_file or ssl.get_default_verify_paths().cafile
        return self._get(how, _client_context, (trusted, how.cert_file, how.key_file))

    def _get(
        self, how: _How, make: Callable[[_How], ssl.SSLContext], files: Iterable[str | None]
    ) -> ssl.SSLContext:
        # Before they are read: what changes meanwhile is seen the next time.
        stamps = tuple(_stamp(path) for path in files)
        kept = self._kept.get(how)
        if kept is not None and kept.stamps == stamps:
            return kept.context
        try:
            context = make(how)
        except DialFailed as error:
            if kept is None:
                raise TargetError(str(error), "tls") from error
            self._tell(kept, f"{error}; what was loaded before stays in use")
            kept.stamps = stamps
            return kept.context
        self._kept[how] = _Kept(context, stamps)
        return context

    def _tell(self, kept: _Kept, text: str) -> None:
        if not kept.failing and self._on_error is not None:
            self._on_error(text)
        kept.failing = True


def _stamp(path: str | None) -> _Stamp:
    """What changes when a file does; None if there is none."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _server_context(how: TlsTerminate) -> ssl.SSLContext:
    assert how.cert_file is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[how.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    # What a service behind it speaks. Clients that offer no ALPN, or others, are served as well.
    context.set_alpn_protocols(["http/1.1"])
    load_identity(context, how.cert_file, how.key_file or how.cert_file)
    return context


def _client_context(how: TargetTls) -> ssl.SSLContext:
    # No ALPN: what will be spoken is the user's choice, and a service that knows none of what is
    # offered may refuse the handshake (RFC 7301 section 3.2).
    options = TlsOptions(
        how.ca_file, how.cert_file, how.key_file, how.server_name, verify=how.verify, alpn=()
    )
    return client_context(options)
