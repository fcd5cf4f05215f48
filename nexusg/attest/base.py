"""What every token provider is asked, and what it answers (PROTOCOL.md section 9.5).

It must not know sessions, nor how any provider obtains its tokens.
"""

from __future__ import annotations

import base64
import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from nexusg.errors import TokenError, TokenTimeout


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.config.model import UdpRoute


#: A provider of the host program is given this much longer than it was told: it knows better than
#: the guard what was slow, so its own TokenTimeout should come first.
GUARD_MARGIN_S = 0.25


class Stage(str, enum.Enum):
    """What a token is for; the values are those of NEXUS_ATTESTATION_STAGE."""

    HANDSHAKE = "handshake"
    ATTEST = "attest"
    REAUTH = "reauth"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request for a token. ``nonce`` is empty at the handshake, and only there."""

    stage: Stage
    nonce: str
    backend: str
    hostnames: tuple[str, ...]
    tcp_ports: tuple[int, ...]
    udp_routes: tuple[UdpRoute, ...]
    weight: int
    outbound_allowed: bool
    allowed_outbound_ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A token, kept out of every repr. ``expires_at`` is in unix seconds, None when not known."""

    value: str = field(repr=False)
    expires_at: float | None = None

    @classmethod
    def parse(cls, text: str, expires_at: float | None = None) -> Token:
        """Take a token from what a provider returned; without ``expires_at``, its own exp counts.

        Raises:
            TokenError: nothing is left after trimming (PROTOCOL.md section 9.1), or it is no text
                that a token could be (RFC 7515 section 3.1 has only ASCII).
        """
        value = text.strip()
        if not value:
            raise TokenError("the provider returned an empty token")
        if not value.isascii():
            raise TokenError("the provider returned a token with characters beyond ASCII")
        if expires_at is None:
            expires_at = number(unverified_claims(value), "exp")
        return cls(value, expires_at)


class TokenProvider(Protocol):
    """Obtains tokens. One provider serves every session of its backend, also at the same time."""

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """Obtain a token within ``timeout_s`` seconds. Blocks.

        Raises:
            TokenError: there is none.
            TokenTimeout: there was none in time.
        """

    def invalidate(self) -> None:
        """The relay rejected a token: forget those that were kept."""


def unverified_claims(value: str) -> dict[str, Any]:
    """Read the payload of a JWT without checking anything; ``{}`` when it is not a JWT."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def number(claims: dict[str, Any], name: str) -> float | None:
    """Read a claim as a finite number; None when it is absent or anything else."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def as_provider(source: TokenProvider | Callable[[TokenRequest], Token | str]) -> TokenProvider:
    """Make a guarded provider of what the host program supplied.

    Whatever ``source`` does, the result keeps the contract of TokenProvider: the timeout holds
    (unless ``source`` blocks the whole thread), and every exception is a TokenError.

    Raises:
        TypeError: ``source`` is neither a provider nor callable.
    """
    if isinstance(source, _Guarded):
        return source
    if not (callable(getattr(source, "get_token", None)) or callable(source)):
        raise TypeError("a token provider is a callable, or has get_token(request, timeout_s)")
    return _Guarded(source)


class _Guarded:
    """A provider of the host program, held to the contract."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks."""
        message = f"the token provider took longer than {timeout_s:g} s ({request.stage.value})"
        own = getattr(self._source, "get_token", None)
        try:
            if own is None:
                with gevent.Timeout(max(timeout_s, 0), TokenTimeout(message)):
                    return _checked(self._source(request))
            with gevent.Timeout(max(timeout_s, 0) + GUARD_MARGIN_S, TokenTimeout(message)):
                return _checked(own(request, timeout_s))
        except TokenError:
            raise
        except Exception as error:  # anything may come out of somebody else's code
            # Neither its text nor the chain: both may quote the token or a secret.
            raise TokenError(f"the token provider failed: {_origin(error)}") from None

    def invalidate(self) -> None:
        """See TokenProvider."""
        forget = getattr(self._source, "invalidate", None)
        if forget is not None:
            forget()


def _checked(result: object) -> Token:
    if isinstance(result, Token):
        return Token.parse(result.value, result.expires_at)
    if isinstance(result, str):
        return Token.parse(result)
    raise TokenError(f"the token provider returned {type(result).__name__}, not a token")


def _origin(error: Exception) -> str:
    """Name the exception's type, and the line that raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback is not None, "a caught exception has a traceback"
    file = PurePath(traceback.tb_frame.f_code.co_filename).name
    return f"{type(error).__name__} at {file}:{traceback.tb_lineno}"
