"""The configuration as frozen data: the destinations of one public port, by host name."""

# ruff: noqa: RUF009 - setting() returns dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import checks
from .destination import Destination
from .hostnames import normalize_pattern
from .setting import Finding, Kind, MapOf, Settings, TextOr, setting


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_DESTINATION = TextOr(Destination, "targets")


@dataclass(frozen=True, slots=True, init=False)
class PortMapping(Settings):
    """Where the streams of one public port go (PROTOCOL.md section 10.6)."""

    default: Destination | None = setting(
        "default",
        _DESTINATION,
        None,
        'For names that are not under hosts: "host:port", "unix:/path", "unix:@name", '
        '"tls://host:port", "wsgi:module:app", or a block like those under hosts.',
        example='"127.0.0.1:8080"',
        usual=True,
    )
    hosts: Mapping[str, Destination] = setting(
        "hosts",
        MapOf(Kind.TEXT, _DESTINATION, normalize_pattern, checks.pattern),
        {},
        'The same by host name. "*.example.com" stands for exactly one label.',
        example='app.example.com: "127.0.0.1:8081"\n"*.example.com":',
    )

    def __init__(
        self,
        default: Destination | str | None = None,
        hosts: Mapping[str, Destination | str] = MappingProxyType({}),
    ) -> None:
        """A plain text is the target of a destination without further settings."""
        found: dict[str, Destination] = {}
        for pattern, value in hosts.items():
            found.setdefault(normalize_pattern(pattern), _destination(value))
        self._set(default=_destination(default) if default else None, hosts=MappingProxyType(found))

    def findings(self) -> Iterator[Finding]:
        """Some target is needed, and each needs a name."""
        if self.default is None and not self.hosts:
            text = "a default target or hosts with targets are required"
            yield Finding((), text, involves=("default", "hosts"))


def _destination(value: Destination | str) -> Destination:
    return Destination(targets=(value,)) if isinstance(value, str) else value
