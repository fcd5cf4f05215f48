"""Judges the tokens of the three stages as the real relay does (PROTOCOL.md sections 2.4, 3.3).

PyJWT checks the signature, and nothing else. It does not know how an agent is connected. Some
reasons are too long for a close frame on purpose, as those of the real relay are (section 1.4).
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from nexusg.attest.hmac import raw_key_jws
from nexusg.relay.claims import Claims, Refused, number, parse


if TYPE_CHECKING:
    from collections.abc import Iterable


ISSUER, AUDIENCE = "authorizer", "nexus"
ALGORITHMS = ("HS256", "HS384", "HS512")


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What tokens are checked against. Each set of ports names all that may be claimed."""

    secret: str = dataclasses.field(repr=False)
    tcp_ports: frozenset[int] = frozenset()
    udp_ports: frozenset[int] = frozenset()
    allow_outbound: bool = False
    outbound_ports: frozenset[int] = frozenset()  #: empty: any


def handshake(token: str, rules: Rules, now: float) -> Claims:
    """Judge a stage-0 token at ``now`` (unix seconds); its claims, the weight made good.

    Raises Refused.
    """
    claims = _verified(token, rules, now)
    if claims.handshake_max_age_s > 0:
        if claims.issued_at is None:
            raise Refused("token is missing iat, which handshake_max_age_seconds needs")
        if now - claims.issued_at > claims.handshake_max_age_s:
            raise Refused("token exceeded handshake_max_age_seconds")
    return dataclasses.replace(claims, weight=max(claims.weight, 1))


def attest(token: str, rules: Rules, now: float, nonce: str, stage_0: Claims) -> Claims:
    """Judge a stage-1 token for ``nonce``: it must say what ``stage_0`` said. Raises Refused."""
    claims = _verified(token, rules, now)
    if claims.weight > 0 and claims.weight != stage_0.weight:
        raise Refused("weight differs from handshake token")
    return _renewed(claims, nonce, stage_0)


def reauth(token: str, rules: Rules, now: float, nonce: str, registered: Claims) -> Claims:
    """Judge a token that renews ``registered``. Raises Refused."""
    claims = _verified(token, rules, now)
    if claims.weight not in (0, registered.weight):
        raise Refused("weight differs from handshake token")
    return _renewed(claims, nonce, registered)


def _renewed(claims: Claims, nonce: str, expected: Claims) -> Claims:
    if claims.session_nonce != nonce:
        raise Refused(
            f"session nonce mismatch: the token has {claims.session_nonce!r}, "
            f"and the challenge had {nonce!r}"
        )
    for name in ("hostnames", "tcp_ports", "udp_routes", "outbound_allowed", "outbound_ports"):
        if getattr(claims, name) != getattr(expected, name):
            raise Refused(f"{name} differ from handshake token")
    if claims.maintenance_cap_s is not None and claims.maintenance_cap_s < 0:
        raise Refused("maintenance_grace_cap_seconds cannot be negative")
    if claims.status_uri:
        _check_uri(claims.status_uri)
    return dataclasses.replace(claims, weight=expected.weight)


def _check_uri(uri: str) -> None:
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise Refused("authorizer_status_uri cannot be parsed") from None
    if parts.scheme != "https" or not parts.hostname:
        raise Refused("authorizer_status_uri must use https and name a host")


def _verified(token: str, rules: Rules, now: float) -> Claims:
    """The claims of a token that is genuine, timely, and asks for nothing forbidden."""
    body = _body(token, rules.secret)
    _check_registered(body, now)
    claims = parse(body)
    _check_ports("tcp", claims.tcp_ports, rules.tcp_ports)
    _check_ports("udp", (port for port, _ in claims.udp_routes), rules.udp_ports)
    if not (claims.hostnames or claims.tcp_ports or claims.udp_routes):
        raise Refused("token is missing hostnames and port claims")
    _check_outbound(claims, rules)
    return claims


def _body(token: str, secret: str) -> dict[str, Any]:
    from jwt.exceptions import InvalidAlgorithmError, InvalidSignatureError, PyJWTError

    try:
        jws = raw_key_jws(*ALGORITHMS)
        payload = jws.decode(token, secret.encode(), algorithms=list(ALGORITHMS))
        body = json.loads(payload, parse_constant=_refuse_constant)
    except (InvalidSignatureError, InvalidAlgorithmError):
        raise Refused("token signature is invalid") from None
    except (PyJWTError, ValueError, RecursionError):
        raise Refused("token is malformed") from None
    if not isinstance(body, dict):
        raise Refused("token is malformed")
    return body


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("JSON has no NaN and no Infinity")


def _check_registered(body: dict[str, Any], now: float) -> None:
    """No leeway; ``exp`` is not required, and ``iat`` may lie in the future."""
    expires, begins = number(body, "exp"), number(body, "nbf")
    if expires is not None and expires <= now:
        raise Refused("token has invalid claims: token is expired")
    if begins is not None and begins > now:
        raise Refused("token has invalid claims: token is not valid yet")
    audience = body.get("aud")
    if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        raise Refused("token has invalid claims: token has invalid audience")
    issuer = body.get("iss")
    if issuer is None:
        raise Refused(
            "token has invalid claims: token is missing required claim: iss claim is required, and "
            f"token has invalid issuer unless it is {ISSUER}"
        )
    if issuer != ISSUER:
        raise Refused("token has invalid claims: token has invalid issuer")


def _check_ports(kind: str, claimed: Iterable[int], allowed: frozenset[int]) -> None:
    for port in sorted(claimed):
        if not allowed:
            raise Refused(f"{kind} port claims are disabled")
        if port not in allowed:
            raise Refused(f"{kind} port claim {port} is not allowed")


def _check_outbound(claims: Claims, rules: Rules) -> None:
    if claims.outbound_allowed and not rules.allow_outbound:
        raise Refused("outbound claims are disabled")
    if claims.outbound_ports and not claims.outbound_allowed:
        raise Refused("allowed_outbound_ports without outbound_allowed")
    if rules.outbound_ports and not claims.outbound_ports <= rules.outbound_ports:
        raise Refused("an outbound port claim is not allowed")
