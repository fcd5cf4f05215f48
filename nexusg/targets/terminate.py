"""TLS of the user, ended in front of any target: bytes in memory only, no socket and no greenlet.

The stream deals in what the user sends and gets, which is TLS; the target behind gets and sends
plain text. The handshake needs an answer before the service has said anything, so until it is done
`TerminatedTarget.wait_readable` waits for an event of its own, and the service is not read.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gevent import ssl
from gevent.event import Event

from nexusg.errors import TargetError
from nexusg.targets.base import READ_BYTES
from nexusg.targets.sockets import RECORD_BYTES


if TYPE_CHECKING:
    from nexusg.config.destination import TlsTerminate
    from nexusg.targets.base import Target
    from nexusg.targets.certificates import Certificates


# What OpenSSL calls it when something else than TLS comes (the names differ by its version).
_OTHER_PROTOCOLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
_OLD_VERSIONS = {"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "TLSV1_ALERT_PROTOCOL_VERSION"}
# Alerts about a certificate (RFC 8446 section 6.2), all from users: none is asked for theirs.
_ALERTS = ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE_")


def terminate(target: Target, how: TlsTerminate, certificates: Certificates) -> Target:
    """Put the server's side of TLS in front of ``target``, which belongs to the result then on.

    Raises TargetError with code ``tls``, and closes ``target``, when there is no certificate.
    """
    try:
        return TerminatedTarget(target, certificates.server(how))
    except TargetError as error:
        target.close()
        raise TargetError(f"tlsTerminate: {error}", error.code) from error


class TerminatedTarget:
    """A target that speaks TLS with the user, and plain text with the target behind it.

    As with `TlsSocketTarget`, after `try_send` or `send` took less than all the next call of either
    must begin with the rest. So a byte can be kept back: it was decrypted already, and it is not
    reported as taken before the service has all that came with it.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_incoming",
        "_kept_back",
        "_left",
        "_outgoing",
        "_over",
        "_plain",
        "_progress",
        "_secured",
        "_target",
        "_tls",
        "name",
    )

    def __init__(self, target: Target, context: ssl.SSLContext) -> None:
        self.name = target.name
        self._target = target
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()  # of TLS, not the service
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._plain = memoryview(b"")  # one record at most that the service has not taken
        self._kept_back = 0  # bytes, 0 or 1
        self._progress = Event()  # of the handshake
        self._secured = False  # the handshake is done
        self._left = False  # the user has said that no more comes
        self._over = False  # the service has, and the user was told
        self._broken: OSError | None = None  # why the user gets no more than what is outgoing
        self._closed = False

    def __repr__(self) -> str:
        return f"<TerminatedTarget {self.name}>"

    def try_send(self, data: memoryview | bytes) -> int:
        """Decrypt, and hand on what the service takes at once. Raises OSError."""
        self._check()
        if self._broken:
            raise self._broken
        view = memoryview(data)
        if not view or not self._forward():
            return 0
        taken, self._kept_back = self._kept_back, 0
        while taken < len(view):
            piece = view[taken : taken + READ_BYTES]
            self._incoming.write(piece)
            taken += len(piece)
            if not self._forward():
                self._kept_back = 1
                return taken - 1
        return taken

    def send(self, data: memoryview | bytes) -> int:
        """Take at least one byte and return how many. Blocks. Raises OSError."""
        while not (taken := self.try_send(data)) and data:
            self._plain = self._plain[self._target.send(self._plain) :]
        return taken

    def try_read(self, limit: int) -> bytes | None:
        """At most ``limit`` bytes of TLS; None when there is nothing yet. Raises OSError."""
        self._check()
        # Topped up to the limit, so that a busy service fills whole frames.
        room = limit - self._outgoing.pending
        if room > 0 and self._secured and not self._over and not self._broken:
            self._fetch(room)
        data = self._outgoing.read(limit)
        if data:
            return data
        if self._broken:
            raise self._broken
        return b"" if self._over else None

    def wait_readable(self) -> None:
        """Return when `try_read` may have something. Blocks. Raises OSError."""
        self._check()
        while not self._ready and not self._secured:
            self._progress.clear()
            self._progress.wait()
            self._check()
        if self._ready:
            return
        try:
            self._target.wait_readable()
        except OSError:
            if not self._broken:  # otherwise `try_read` says better why
                raise

    def unsent_bytes(self) -> int:
        """How much of what the service was sent its host has not acknowledged."""
        return self._target.unsent_bytes()

    def shutdown_write(self) -> None:
        """Tell the service that no more comes, also if the user went without saying so in TLS."""
        self._target.shutdown_write()

    def close(self) -> None:
        """Close the service, and wake up whoever waits in a method with an OSError; idempotent."""
        self._closed, self._broken = True, None
        self._progress.set()
        self._target.close()

    @property
    def _ready(self) -> bool:
        """Whether there is something for the user, be it an error, without the service."""
        return bool(self._outgoing.pending or self._over or self._broken)

    def _check(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "the connection to the target was closed")

    # User to service -----------------------------------------------------------------------------

    def _forward(self) -> bool:
        """Hand on what has come, record by record; False when the service takes no more now."""
        while self._hand_on():
            plain = self._decrypt()
            if not plain:
                return True
            self._plain = memoryview(plain)
        return False

    def _hand_on(self) -> bool:
        if self._plain:
            self._plain = self._plain[self._target.try_send(self._plain) :]
        return not self._plain

    def _decrypt(self) -> bytes | None:
        """One record, as far as the service is concerned; None when there is none, or no more."""
        if self._left:
            return None  # to be ignored (RFC 8446 section 6.1)
        try:
            if not self._secured:
                self._shake_hands()
            data = self._tls.read(RECORD_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:  # the end, when the service's end was told before
            data = b""
        except ssl.SSLError as error:
            self._broken = _explained(error, self._secured)
            self._target.close()  # which also wakes up who waits for it
            raise self._broken from error
        if not data:
            self._left = True
            self._target.shutdown_write()
        return data

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
            self._secured = True
        finally:  # also when it fails, or has to wait: there may be an answer for the user
            self._progress.set()

    # Service to user -----------------------------------------------------------------------------

    def _fetch(self, room: int) -> None:
        """Read the service, and encrypt what it says."""
        try:
            data = self._target.try_read(room)
            if data is None:
                return
            view = memoryview(data)
            if not view:
                self._say_end()
            while view:
                view = view[self._tls.write(view) :]
        except OSError as error:  # what was encrypted before goes first
            self._broken = self._broken or error

    def _say_end(self) -> None:
        """Close our direction only: what the user still sends is taken (RFC 8446 section 6.1)."""
        # unwrap() also reads, and would fail for good on anything but the user's own end.
        kept = self._incoming.read()
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._incoming.write(kept)
        self._over = True


def _explained(error: ssl.SSLError, secured: bool) -> OSError:
    """The same with words for whoever reads the log of the stream."""
    reason = error.reason or ""
    words = reason.replace("_", " ").lower() or "it ended early"
    if secured:
        text = f"the TLS of the user is broken: {words}"
    elif reason == "HTTP_REQUEST":
        text = "the user speaks plain HTTP, and TLS is terminated here"
    elif reason in _OTHER_PROTOCOLS:
        text = "the user does not speak TLS, and TLS is terminated here"
    elif reason in _OLD_VERSIONS:
        text = "the user speaks no version of TLS that minVersion allows"
    elif any(alert in reason for alert in _ALERTS):
        text = f"the user does not accept the certificate: {words.rpartition('alert ')[2]}"
    else:
        text = f"the TLS handshake with the user failed: {words}"
    return OSError(errno.EPROTO, text)
