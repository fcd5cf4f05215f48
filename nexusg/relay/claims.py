"""The claims of a token in one form: types checked strictly, names normalised (PROTOCOL.md 2.4).

It does not know what is allowed; `verify` does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nexusg.config.hostnames import is_route_key, normalize_pattern


#: The real relay's defaults for the idle time of UDP flows (PROTOCOL.md section 2.4).
UDP_IDLE_S, UDP_IDLE_MIN_S, UDP_IDLE_MAX_S = 30, 5, 300


class Refused(Exception):
    """A token is refused; the text is the relay's reason (PROTOCOL.md section 2.5)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claims:
    """What one token says, apart from the registered claims."""

    hostnames: frozenset[str] = frozenset()
    tcp_ports: frozenset[int] = frozenset()
    udp_routes: frozenset[tuple[int, int]] = frozenset()  #: port, idle seconds as clamped
    weight: int = 0  #: as claimed: 0 when absent
    session_nonce: str = ""
    handshake_max_age_s: int = 0
    issued_at: float | None = None
    outbound_allowed: bool = False
    outbound_ports: frozenset[int] = frozenset()
    reauth_interval_s: int = 0
    reauth_grace_s: int = 0
    maintenance_cap_s: int | None = None
    status_uri: str = ""

    @property
    def names(self) -> list[str]:
        """Every name under which the backend is registered."""
        keys = [f"tcp:{port}" for port in sorted(self.tcp_ports)]
        keys += [f"udp:{port}" for port, _ in sorted(self.udp_routes)]
        return sorted(self.hostnames) + keys


def parse(body: dict[str, Any]) -> Claims:
    """The claims in a token's ``body``. Raises Refused."""
    return Claims(
        hostnames=_hostnames(_list(body, "hostnames", str)),
        tcp_ports=frozenset(_ports(body, "tcp_ports")),
        udp_routes=_udp_routes(_list(body, "udp_routes", dict)),
        weight=_get(body, "weight", int, 0),
        session_nonce=_get(body, "session_nonce", str, ""),
        handshake_max_age_s=_get(body, "handshake_max_age_seconds", int, 0),
        issued_at=number(body, "iat"),
        outbound_allowed=_get(body, "outbound_allowed", bool, False),
        outbound_ports=frozenset(_ports(body, "allowed_outbound_ports")),
        reauth_interval_s=_get(body, "reauth_interval_seconds", int, 0),
        reauth_grace_s=_get(body, "reauth_grace_seconds", int, 0),
        maintenance_cap_s=_get(body, "maintenance_grace_cap_seconds", int, None),
        status_uri=_get(body, "authorizer_status_uri", str, ""),
    )


def number(body: dict[str, Any], name: str) -> float | None:
    """A date among the registered claims; None when absent. Raises Refused."""
    value = body.get(name)
    if value is None or type(value) in (int, float):
        return value
    raise Refused(f"token is malformed: {name} is not a number")


def _get(body: dict[str, Any], name: str, kind: type, absent: Any) -> Any:
    """A member of exactly this type: no boolean is an integer, and 1.0 is none either."""
    value = body.get(name)
    if value is None:
        return absent
    if type(value) is not kind:
        # Too long for a close frame, as the real relay's reason is (PROTOCOL.md section 1.4).
        raise Refused(
            "token is malformed: its claims could not be decoded, because one of them is not of "
            f"the JSON type that it must have: {name} is not of type {kind.__name__}"
        )
    return value


def _list(body: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = _get(body, name, list, [])
    if any(type(value) is not kind for value in values):
        raise Refused(f"token is malformed: {name} is not a list of {kind.__name__}")
    return list(values)


def _ports(body: dict[str, Any], name: str) -> list[int]:
    ports = _list(body, name, int)
    _check_ports(ports, name)
    return ports


def _check_ports(ports: list[int], name: str) -> None:
    if not all(0 < port < 65536 for port in ports):
        raise Refused(f"{name}: a port must be between 1 and 65535")


def _hostnames(names: list[str]) -> frozenset[str]:
    normal = frozenset(filter(None, map(normalize_pattern, names)))
    if names and not normal:
        raise Refused("token contains no valid hostnames")
    if any(map(is_route_key, normal)):
        raise Refused("hostname uses a reserved route key")
    return normal


def _udp_routes(routes: list[dict[str, Any]]) -> frozenset[tuple[int, int]]:
    found: dict[int, int] = {}
    for route in routes:
        port = _get(route, "port", int, 0)
        _check_ports([port], "udp_routes")
        idle_s = _get(route, "flow_idle_timeout_seconds", int, 0)
        clamped_s = _clamp(idle_s if idle_s > 0 else UDP_IDLE_S)
        if found.setdefault(port, clamped_s) != clamped_s:
            raise Refused(f"udp_routes: port {port} has two idle timeouts")
    return frozenset(found.items())


def _clamp(seconds: int) -> int:
    return min(max(seconds, UDP_IDLE_MIN_S), UDP_IDLE_MAX_S)
