"""What the authorizer decides for its devices, and the tokens that say so (TPM.md A.6)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from nexusg.attest.hmac import AUDIENCE, ISSUER, raw_key_jws


TTL_S = 30
HANDSHAKE_MAX_AGE_S = 60
MAINTENANCE_CAP_S = 600


@dataclasses.dataclass(slots=True)
class Policy:
    """May be changed at any time; it counts for the next request."""

    secret: str = dataclasses.field(repr=False)  #: what the relay verifies tokens with
    hostnames: tuple[str, ...] = ()  #: of every device, beside its own
    nexus_endpoints: tuple[str, ...] = ()  #: where devices are to connect
    reauth_interval_s: int = 300
    reauth_grace_s: int = 30
    ttl_s: int = TTL_S
    status_uri: str = ""


def claims(
    policy: Policy, device_id: str, hostname: str, stage: int, session_nonce: str, now: float
) -> dict[str, Any]:
    """The claims for one device at ``now`` (unix seconds). A device has no ports with namek."""
    issued = int(now)
    names = [name for each in (hostname, *policy.hostnames) for name in (each, f"*.{each}")]
    return {
        "iss": ISSUER,
        "sub": device_id,
        "aud": [AUDIENCE],
        "iat": issued,
        "exp": issued + policy.ttl_s,
        "hostnames": names,
        "tcp_ports": [],
        "udp_routes": [],
        "weight": 1,
        "session_nonce": session_nonce if stage else "",
        "handshake_max_age_seconds": None if stage else HANDSHAKE_MAX_AGE_S,
        "reauth_interval_seconds": policy.reauth_interval_s,
        "reauth_grace_seconds": policy.reauth_grace_s,
        "maintenance_grace_cap_seconds": MAINTENANCE_CAP_S,
        "authorizer_status_uri": policy.status_uri,
        "policy_version": "",
        "issued_at_quote": "",
    }


def signed(body: dict[str, Any], secret: str) -> str:
    """The token (JWT, HS256)."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    return raw_key_jws("HS256").encode(payload, secret.encode(), "HS256")
