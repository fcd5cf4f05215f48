"""Signs tokens with a secret that the relay shares (PROTOCOL.md section 9.4).

It must not know where the secret was read from.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from nexusg.attest.base import Stage, Token
from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from collections.abc import Callable

    from jwt import PyJWS

    from nexusg.attest.base import TokenRequest
    from nexusg.config.model import Attestation, Backend


ISSUER = "authorizer"
AUDIENCE = "nexus"


class HmacProvider:
    """A TokenProvider: HS256 over the claims that the backend's settings ask for.

    The claims are those of ``settings``; of a request only the stage and the nonce count.
    ``clock`` gives unix seconds.

    Raises:
        ConfigError: the secret is blank.
    """

    def __init__(
        self, secret: str, settings: Backend, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = secret.strip().encode()
        if not self._key:
            raise ConfigError([f"backend {settings.name!r}: the HMAC secret is empty"])
        self._claims = _claims(settings)
        self._ttl_s = settings.attestation.token_ttl_s
        self._max_age_s = settings.attestation.handshake_max_age_s
        self._clock = clock
        self._signer: PyJWS | None = None

    @classmethod
    def from_backend(cls, backend: Backend, clock: Callable[[], float] = time.time) -> HmacProvider:
        """Make one from the secret in the backend's attestation settings.

        Raises:
            ConfigError: there is none.
        """
        secret = backend.attestation.hmac_secret
        return cls("" if secret is None else secret.reveal(), backend, clock)

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Does not block."""
        issued = int(self._clock())
        claims = self._claims | {"iat": issued, "exp": issued + self._ttl_s}
        if request.stage is not Stage.HANDSHAKE:
            claims["session_nonce"] = request.nonce
        elif self._max_age_s > 0:
            claims["handshake_max_age_seconds"] = self._max_age_s
        if self._signer is None:
            self._signer = raw_key_jws("HS256")
        payload = json.dumps(claims, separators=(",", ":")).encode()
        return Token(self._signer.encode(payload, self._key, "HS256"), float(claims["exp"]))

    def invalidate(self) -> None:
        """Nothing is kept."""


def _claims(backend: Backend) -> dict[str, Any]:
    """The claims that are the same in every token; what is not configured does not appear."""
    claims: dict[str, Any] = {"iss": ISSUER, "aud": [AUDIENCE], "weight": backend.weight}
    optional: dict[str, Any] = {
        "sub": backend.name,
        "hostnames": list(backend.hostnames),
        "tcp_ports": list(backend.tcp_ports),
        "udp_routes": [
            {"port": route.port}
            if route.flow_idle_timeout_s is None
            else {"port": route.port, "flow_idle_timeout_seconds": route.flow_idle_timeout_s}
            for route in backend.udp_routes
        ],
    }
    return (
        claims
        | {name: value for name, value in optional.items() if value}
        | _policy(backend.attestation)
    )


def _policy(attestation: Attestation) -> dict[str, Any]:
    seconds = {
        "reauth_interval_seconds": attestation.reauth_interval_s,
        "reauth_grace_seconds": attestation.reauth_grace_s,
        "maintenance_grace_cap_seconds": attestation.maintenance_grace_cap_s,
    }
    claims: dict[str, Any] = {name: value for name, value in seconds.items() if value > 0}
    if attestation.authorizer_status_uri:
        claims["authorizer_status_uri"] = attestation.authorizer_status_uri
    if attestation.policy_version:
        claims["policy_version"] = attestation.policy_version
    if attestation.outbound_allowed:
        claims["outbound_allowed"] = True
        if attestation.allowed_outbound_ports:
            claims["allowed_outbound_ports"] = list(attestation.allowed_outbound_ports)
    return claims


def raw_key_jws(*algorithms: str) -> PyJWS:
    """Make a signer and verifier that takes the secret as the relay does: its raw bytes.

    ``algorithms`` are of the HMAC kind, such as HS256.

    PyJWT warns about each short key and refuses one that looks like a PEM or JWK file; the
    relay does neither, and the configuration loader has warned once.
    """
    # Imported at first use: 0.1 s that importing nexusg need not take.
    from jwt import PyJWS
    from jwt.algorithms import HMACAlgorithm

    class RawKey(HMACAlgorithm):
        def prepare_key(self, key: str | bytes) -> bytes:
            assert isinstance(key, bytes)
            return key

        def check_key_length(self, key: bytes) -> str | None:
            return None

    jws = PyJWS(algorithms=[])
    for name in algorithms:
        jws.register_algorithm(name, RawKey(getattr(HMACAlgorithm, f"SHA{name[2:]}")))
    return jws
