"""The configuration as frozen data: where streams go, and how a local service is reached.

A plain text in the place of a destination is the Go client's form: the target, and nothing else.
"""

# ruff: noqa: RUF009 - setting() and block() return dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import checks
from .setting import (
    Finding,
    Kind,
    ListOf,
    Setting,
    Settings,
    block,
    listed,
    setting,
    unique,
)
from .tls import CERTIFICATE, TargetTls


if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class TlsTerminate(Settings):
    """TLS towards the user, ended at the agent. It is on if there is a ``cert_file``."""

    cert_file: str | None = setting(
        "certFile",
        Kind.TEXT,
        None,
        "The PEM certificate to show, with its chain. Read again when the file changes.",
        expand=True,
        example="/etc/nexusg/app.pem",
    )
    key_file: str | None = setting(
        "keyFile",
        Kind.TEXT,
        None,
        "Its PEM key, if that is not in the same file.",
        expand=True,
        example="/etc/nexusg/app.key",
    )
    min_version: str = setting(
        "minVersion",
        Kind.TEXT,
        "1.2",
        "The oldest TLS version that users may speak.",
        choices=("1.2", "1.3"),
    )

    def __post_init__(self) -> None:
        self._set(cert_file=self.cert_file or None, key_file=self.key_file or None)

    def __bool__(self) -> bool:
        return self.cert_file is not None

    def findings(self) -> Iterator[Finding]:
        """Nothing can be terminated without a certificate."""
        if self.key_file and not self.cert_file:
            yield Finding(("keyFile",), "needs a certFile", involves=CERTIFICATE)
        elif not self and self != TlsTerminate():
            yield Finding((), "needs a certFile", involves=CERTIFICATE)


@dataclass(frozen=True, slots=True)
class TargetHealth(Settings):
    """Asks the targets of a destination, one by one, whether they still serve."""

    path: str | None = setting(
        "path",
        Kind.TEXT,
        None,
        "An HTTP GET of this path must be answered with 2xx or 3xx. Without: a connection is "
        "enough.",
        check=checks.url_path,
        example="/healthz",
    )
    host: str | None = setting(
        "host",
        Kind.TEXT,
        None,
        "The Host header of that request, if not the target's host.",
        check=checks.header,
        example="app.example.com",
    )
    interval_s: float = setting(
        "intervalSeconds",
        Kind.NUMBER,
        5.0,  # a target that hangs costs its users no more than that
        "How often each target is asked.",
        unit="s",
        check=checks.pace,
    )
    timeout_s: float = setting(
        "timeoutSeconds",
        Kind.NUMBER,
        2.0,
        "How long the answer may take.",
        unit="s",
        check=checks.pace,
    )
    failures: int = setting(
        "failures",
        Kind.INTEGER,
        2,  # one may be a hiccup
        "So many failures in a row, and a target is down until it answers again.",
        check=checks.between(1, 100),
    )

    def __post_init__(self) -> None:
        self._set(path=self.path or None, host=self.host or None)

    def findings(self) -> Iterator[Finding]:
        """An answer is there before the next question."""
        if self.timeout_s > self.interval_s:
            text = f"must not be above intervalSeconds ({self.interval_s:g})"
            involves = ("timeoutSeconds", "intervalSeconds")
            yield Finding(("timeoutSeconds",), text, involves=involves)
        if self.host and not self.path:
            text = "is not used, because there is no path"
            yield Finding(("host",), text, fatal=False, involves=("host", "path"))


@dataclass(frozen=True, slots=True)
class Destination(Settings):
    """One or several equivalent local services, and how they are reached."""

    targets: tuple[str, ...] = setting(
        "targets",
        ListOf(Kind.TEXT),
        (),
        "Equivalent targets: each stream goes to the one with the fewest, and one that is down is "
        "left out.",
        check=checks.target,
        example='["tls://10.0.0.1:8443", "tls://10.0.0.2:8443"]',
        usual=True,
        also=Setting(
            "target",
            Kind.TEXT,
            None,
            "A single one instead.",
            check=checks.target,
            example='"tls://service.internal:8443"',
        ),
    )
    proxy_protocol: str = setting(
        "proxyProtocol",
        Kind.TEXT,
        "off",
        "Tells the service the address of the user in a PROXY protocol header.",
        choices=("off", "v1", "v2"),
    )
    connect_timeout_s: float = setting(
        "connectTimeoutSeconds",
        Kind.NUMBER,
        10.0,
        "How long a connection to one target may take. 0: the default.",
        unit="s",
        check=checks.duration,
    )
    tls: TargetTls = block("tls", TargetTls, "TLS towards the tls:// targets.")
    tls_terminate: TlsTerminate = block(
        "tlsTerminate",
        TlsTerminate,
        "TLS towards the user ends here: the service gets what is in it. Off without a certFile.",
    )
    health: TargetHealth = block(
        "health",
        TargetHealth,
        "Asks the targets whether they still serve, if there are several of them or a path.",
    )

    def __post_init__(self) -> None:
        self._set(targets=unique(listed(self.targets)))
        self._above_zero("connect_timeout_s")

    @property
    def name(self) -> str:
        """What logs and events call it."""
        return ", ".join(self.targets)

    def findings(self) -> Iterator[Finding]:
        """Something must be reached, and what is said about it should matter."""
        if not self.targets:
            text = "a target or targets are required"
            yield Finding((), text, involves=("target", "targets"))
            return
        involves = ("target", "targets", "proxyProtocol", "tls", "health")
        if self.proxy_protocol != "off" and any(map(checks.is_wsgi, self.targets)):
            text = "has no use with wsgi: targets, whose REMOTE_ADDR is the user's anyway"
            yield Finding(("proxyProtocol",), text, fatal=False, involves=involves)
        if self.tls != TargetTls() and not any(map(checks.is_tls, self.targets)):
            text = "is not used, because no target begins with tls://"
            yield Finding(("tls",), text, fatal=False, involves=involves)
        if self.health != TargetHealth() and not self.health.path and len(self.targets) == 1:
            text = "is not used, because there is one target and no path"
            yield Finding(("health",), text, fatal=False, involves=involves)
