"""The configuration as frozen data: TLS of the connections that the agent makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .setting import Finding, Kind, Settings, setting


if TYPE_CHECKING:
    from collections.abc import Iterator

#: The settings that make a certificate complete.
CERTIFICATE = ("certFile", "keyFile")


@dataclass(frozen=True, slots=True)
class ClientTls(Settings):
    """Whom to trust, and as whom to appear."""

    ca_file: str | None = setting(
        "caFile",
        Kind.TEXT,
        None,
        "PEM certificates to trust instead of the system's.",
        expand=True,
        example="/etc/nexusg/ca.pem",
    )
    cert_file: str | None = setting(
        "certFile",
        Kind.TEXT,
        None,
        "A PEM client certificate with its chain.",
        expand=True,
        example="/etc/nexusg/client.pem",
    )
    key_file: str | None = setting(
        "keyFile",
        Kind.TEXT,
        None,
        "Its PEM key, if that is not in the same file.",
        expand=True,
        example="/etc/nexusg/client.key",
    )
    server_name: str | None = setting(
        "serverName",
        Kind.TEXT,
        None,
        "The name to ask for and to verify instead of the host that is dialled.",
        example="internal.example.com",
    )

    def __post_init__(self) -> None:
        for name in ("ca_file", "cert_file", "key_file", "server_name"):
            self._set(**{name: getattr(self, name) or None})

    def findings(self) -> Iterator[Finding]:
        """A key belongs to a certificate."""
        if self.key_file and not self.cert_file:
            yield Finding(("keyFile",), "needs a certFile", involves=CERTIFICATE)


@dataclass(frozen=True, slots=True)
class RelayTls(ClientTls):
    """TLS towards the relay."""


@dataclass(frozen=True, slots=True)
class TargetTls(ClientTls):
    """TLS towards a local service, for the targets that begin with ``tls://``."""

    verify: bool = setting(
        "verify", Kind.BOOLEAN, True, "Whether the service must prove that it is the one meant."
    )

    def findings(self) -> Iterator[Finding]:
        """Without verification TLS is worth little."""
        yield from ClientTls.findings(self)
        if not self.verify:
            text = "is off: whoever sits between here and the service can answer in its place"
            yield Finding(("verify",), text, fatal=False)
