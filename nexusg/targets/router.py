"""Which target serves a stream: the public port decides first, then the host name.

It knows destinations as the configuration has them, and opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nexusg.config.hostnames import WILDCARD, normalize


if TYPE_CHECKING:
    from collections.abc import Mapping

    from nexusg.config.model import Destination, PortMapping


@dataclass(frozen=True, slots=True)
class Route:
    """Where a stream goes, and which line of the port's mapping says so."""

    destination: Destination
    rule: Literal["exact", "wildcard", "default"]
    pattern: str  #: the key in the mapping: a host name, ``*.`` and a name, or ``default``


class Router:
    """Resolves connects with the port mappings of one backend (PROTOCOL.md section 10.6)."""

    __slots__ = ("_ports",)

    def __init__(self, port_mappings: Mapping[int, PortMapping]) -> None:
        self._ports = {port: _Hosts(mapping) for port, mapping in port_mappings.items()}

    def resolve(self, port: int, hostname: str) -> Route | None:
        """The route for the relay's ``port`` and a host name in any form; None if there is none.

        Names are not remembered: users choose them, and for ASCII there is nothing to save.
        """
        hosts = self._ports.get(port)
        return None if hosts is None else hosts.resolve(normalize(hostname))


class _Hosts:
    """The routes of one public port."""

    __slots__ = ("_default", "_exact", "_wildcards")

    def __init__(self, mapping: PortMapping) -> None:
        self._exact: dict[str, Route] = {}
        self._wildcards: dict[str, Route] = {}  # by what follows the "*."
        for pattern, destination in mapping.hosts.items():
            if pattern.startswith(WILDCARD):
                rest = pattern[len(WILDCARD) :]
                self._wildcards[rest] = Route(destination, "wildcard", pattern)
            else:
                self._exact[pattern] = Route(destination, "exact", pattern)
        default = mapping.default
        self._default = None if default is None else Route(default, "default", "default")

    def resolve(self, host: str) -> Route | None:
        """A wildcard stands for exactly one label, so no more than one can match a name."""
        route = self._exact.get(host)
        if route is None:
            label, _, rest = host.partition(".")
            route = self._wildcards.get(rest) if label else None
        return route or self._default
