"""Every error nexusg raises. Each ``str()`` is a finished log line, free of secrets.

NexusgError
├── ConfigError            the configuration cannot be used; holds every problem found
├── ProtocolError
│   ├── LocalProtocolError   we broke the protocol: a bug on this side
│   └── RemoteProtocolError  the peer broke it; holds the WebSocket close code to answer with
├── RelayError             a session could not be opened, or was lost
│   ├── DialFailed           name lookup, TCP, TLS or proxy
│   ├── UpgradeRefused       an HTTP status other than 101
│   ├── Rejected             the relay refused the credentials
│   └── SessionLost          an established session ended
├── TokenError             no attestation token could be obtained
│   ├── TokenTimeout         … within its time
│   ├── TpmError             because of the TPM of this machine
│   └── AuthorizerError      because of the server that issues them
├── NoRoute                no mapping for the stream; a connect handler may raise it
└── TargetError            the local service could not be reached

``retry`` tells the reconnect policy what kind of failure it was. Nothing is ever decided on the
text of a message.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Sequence


class Retry(enum.Enum):
    """How the next attempt is timed after this error (PROTOCOL.md section 8.3)."""

    BACKOFF = "backoff"  #: exponential, 1 s to 60 s
    RATE_LIMITED = "rate_limited"  #: at least 60 s, or what Retry-After asks for
    REJECTED = "rejected"  #: a counter of its own, 5 s to 300 s
    TOKEN = "token"  #: like REJECTED, from 2 s
    BARRED = "barred"  #: only an operator elsewhere can help: 15 min
    LOST = "lost"  #: an accepted session ended


class NexusgError(Exception):
    """Root of the tree. ``code`` is a stable word for logs and metrics."""

    code = "error"


class ConfigError(NexusgError):
    """The configuration cannot be used. ``problems`` holds one finished line per problem."""

    code = "config"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ProtocolError(NexusgError):
    """Root of LocalProtocolError and RemoteProtocolError; never raised itself."""

    code = "protocol"

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """We asked the protocol core for something that its state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer's bytes break the protocol. ``close_code`` is the answer (RFC 6455 7.4.1)."""

    def __init__(self, message: str, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class RelayError(NexusgError):
    """A session with a relay could not be opened or kept."""

    code = "relay"
    retry = Retry.BACKOFF


class DialFailed(RelayError):
    """The connection to the relay could not be made. ``code`` names the step that failed.

    Codes: ``address``, ``dns``, ``refused``, ``unreachable``, ``timeout``, ``tls``, ``proxy``,
    ``upgrade``, ``io``.
    """

    def __init__(self, message: str, code: str = "io") -> None:
        super().__init__(message)
        self.code = code


class UpgradeRefused(RelayError):
    """The HTTP upgrade was answered with ``status``. ``retry_after_s`` is Retry-After, if given."""

    code = "http_status"

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        if status == 429:
            self.retry = Retry.RATE_LIMITED
        elif status in (401, 403):
            self.retry = Retry.REJECTED


class Rejected(RelayError):
    """The relay refused the credentials. ``stage`` is where; ``reason`` is its text."""

    code = "rejected"
    retry = Retry.REJECTED

    def __init__(self, stage: str, reason: str = "", close_code: int | None = None) -> None:
        detail = f": {reason}" if reason else " without giving a reason"
        super().__init__(f"the relay rejected the {stage} token{detail}")
        self.stage = stage
        self.reason = reason
        self.close_code = close_code


class SessionLost(RelayError):
    """An established session ended. Codes: ``closed``, ``eof``, ``reset``, ``silent``, ``stalled``,
    ``protocol``, ``io``, ``tls``."""

    retry = Retry.LOST

    def __init__(self, message: str, code: str = "io", close_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.close_code = close_code


class TokenError(NexusgError):
    """No token could be obtained. The message never holds the token or a secret."""

    code = "token"
    retry = Retry.TOKEN


class TokenTimeout(TokenError):
    """The provider took longer than it may."""

    code = "token_timeout"


class TpmError(TokenError):
    """The TPM of this machine, or what is kept of it, cannot be used.

    Codes: ``tpm_missing`` (no software for it, or no device), ``tpm_io``, ``tpm_timeout``,
    ``tpm_cleared`` (it no longer knows the key it once made), ``tpm`` (anything else).
    """

    def __init__(self, message: str, code: str = "tpm") -> None:
        super().__init__(message)
        self.code = code


class AuthorizerError(TokenError):
    """The authorizer issued no token. ``status`` is that of HTTP, ``retry_after_s`` Retry-After.

    Codes: ``authorizer``, ``authorizer_refused`` (this device is not to have any),
    ``authorizer_unreachable``.
    """

    def __init__(
        self,
        message: str,
        code: str = "authorizer",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s
        if code == "authorizer_refused":
            self.retry = Retry.BARRED


class NoRoute(NexusgError):
    """Nothing serves this stream. Raised by a connect handler, it falls back to the mappings."""

    code = "no_route"


class TargetError(NexusgError):
    """The local service could not be reached. Codes: ``refused``, ``timeout``, ``dns``,
    ``unreachable``, ``tls``, ``unhealthy``, ``handler``, ``io``."""

    def __init__(self, message: str, code: str = "io") -> None:
        super().__init__(message)
        self.code = code
