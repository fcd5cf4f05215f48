"""A backend's share of a device with a TPM: tokens for its sessions, relays to dial.

It must not know how tokens are obtained, nor the agent: what happens is told by ``notify``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from nexusg.attest.base import unverified_claims
from nexusg.attest.tpm.notices import HostnamesMissing


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nexusg.attest.base import Token, TokenRequest
    from nexusg.attest.tpm.notices import Figures, Notice
    from nexusg.attest.tpm.shared import Identity


class TpmTokenProvider:
    """A TokenProvider over an `Identity`, which others may share.

    ``notify`` is called with every `Notice`, if no other user of the identity was there before,
    and with those about this backend's host names. It must not block.
    """

    def __init__(self, identity: Identity, notify: Callable[[Notice], object]) -> None:
        self._identity = identity
        self._notify = notify
        self._missing: tuple[str, ...] = ()
        self._closed = False
        identity.join(notify)

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks."""
        # What the authorizer is asked does not depend on the backend, so that all share one token.
        asked = dataclasses.replace(
            request,
            backend="",
            hostnames=(),
            tcp_ports=(),
            udp_routes=(),
            weight=1,
            outbound_allowed=False,
            allowed_outbound_ports=(),
        )
        token = self._identity.tokens.get_token(asked, timeout_s)
        self._compare(request.hostnames, token)
        return token

    def invalidate(self) -> None:
        """Forget the handshake token, for all who share it."""
        self._identity.tokens.invalidate()

    def enroll(self, timeout_s: float) -> None:
        """Have the device enrolled if it is not. Blocks. Raises TokenError."""
        self._identity.issuer.enroll(timeout_s)

    def endpoints(self, timeout_s: float) -> tuple[str, ...]:
        """The relays that the authorizer names now; enrols the device if need be. Blocks.

        Raises TokenError.
        """
        return self._identity.endpoints(timeout_s)

    @property
    def retry_after_s(self) -> float | None:
        """When to ask for `endpoints` again, if there were none and the authorizer has said so."""
        return self._identity.enroller.retry_after_s

    def figures(self) -> Figures:
        """How the device is doing."""
        return self._identity.issuer.figures()

    def close(self) -> None:
        """Let go of the identity; the last one closes the TPM. Idempotent. Blocks."""
        if not self._closed:
            self._closed = True
            self._identity.leave(self._notify)

    def _compare(self, hostnames: Iterable[str], token: Token) -> None:
        """Tell which of ``hostnames`` the token is not for, once for each answer."""
        claimed = unverified_claims(token.value).get("hostnames")
        names = claimed if isinstance(claimed, list) else []
        granted = tuple(name for name in names if isinstance(name, str) and name.isprintable())
        missing = tuple(name for name in hostnames if not covered(name, granted))
        if missing and missing != self._missing:
            self._notify(HostnamesMissing(missing, granted))
        self._missing = missing


def covered(hostname: str, granted: Iterable[str]) -> bool:
    """Whether a token for ``granted`` serves ``hostname``: by name, or by a wildcard's label."""
    wildcard = f"*.{hostname.partition('.')[2]}"
    return any(name in (hostname, wildcard) for name in map(str.lower, granted))
