"""The configuration as frozen data: where a backend's tokens come from (PROTOCOL.md section 9)."""

# ruff: noqa: RUF009 - setting() and block() return dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import checks
from .secret import Secret
from .setting import (
    Finding,
    Kind,
    ListOf,
    MapOf,
    Setting,
    Settings,
    block,
    listed,
    setting,
    settings_of,
)
from .tpm import Tpm


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


MIN_SECRET_BYTES = 32  # RFC 7518 3.2: a key for HS256 is at least as long as the hash

TOKEN_SOURCES = ("command", "hmacSecret", "hmacSecretFile", "tpm")

_USED_WITH_TPM = (*TOKEN_SOURCES, "timeoutSeconds", "cacheHandshakeSeconds")


@dataclass(frozen=True, slots=True)
class Attestation(Settings):
    """Where the tokens come from, and what an HMAC token claims (PROTOCOL.md section 9)."""

    command: str | None = setting(
        "command",
        Kind.TEXT,
        None,
        "A program that prints a token. It is run without a shell, and wins over a secret.",
        example="/usr/local/bin/nexus-token",
    )
    args: tuple[str, ...] = setting(
        "args", ListOf(Kind.TEXT), (), "Arguments of the command.", example="[--profile, edge]"
    )
    env: Mapping[str, str] = setting(
        "env",
        MapOf(Kind.TEXT, Kind.TEXT, key_check=checks.variable),
        {},
        "Environment of the command, beside the agent's own. NEXUS_* cannot be overridden.",
        expand=True,
        show=False,  # values may be secret
        example="{AUTHORIZER: https://authorizer.example.com}",
    )
    timeout_s: float = setting(
        "timeoutSeconds",
        Kind.NUMBER,
        15.0,
        "How long a token may take. A command is then killed. 0: the default.",
        unit="s",
        check=checks.duration,
    )
    cache_handshake_s: float = setting(
        "cacheHandshakeSeconds",
        Kind.NUMBER,
        0.0,
        "How long a handshake token is used again, at most until it expires. 0: never.",
        unit="s",
        check=checks.duration,
    )
    hmac_secret: Secret | None = setting(
        "hmacSecret",
        Kind.SECRET,
        None,
        "The secret that signs HMAC tokens, the relay's backendsJWTSecret. 32 bytes or more.",
        expand=True,
        example='"${NEXUS_HMAC_SECRET}"',
        usual=True,
        also=Setting(
            "hmacSecretFile",
            Kind.TEXT,
            None,
            "A file with the secret instead, read once at the start. It wins over hmacSecret.",
            expand=True,
            example="/etc/nexusg/hmac-secret",
        ),
    )
    token_ttl_s: int = setting(
        "tokenTTLSeconds",
        Kind.INTEGER,
        30,
        "Life of an HMAC token. The relay allows no clock skew. 0: the default.",
        unit="s",
        check=checks.duration,
    )
    handshake_max_age_s: int = setting(
        "handshakeMaxAgeSeconds",
        Kind.INTEGER,
        0,
        "Asks the relay to refuse handshake tokens that are older. 0: not asked.",
        unit="s",
        check=checks.duration,
    )
    reauth_interval_s: int = setting(
        "reauthIntervalSeconds",
        Kind.INTEGER,
        0,
        "Asks the relay to demand a new token this often. 0: never.",
        unit="s",
        check=checks.duration,
    )
    reauth_grace_s: int = setting(
        "reauthGraceSeconds",
        Kind.INTEGER,
        0,
        "How long the relay waits for that token. 0: its default, 10 s.",
        unit="s",
        check=checks.duration,
    )
    maintenance_grace_cap_s: int = setting(
        "maintenanceGraceCapSeconds",
        Kind.INTEGER,
        0,
        "How long the relay may put a new token off while the authorizer is in maintenance. "
        "0: its default.",
        unit="s",
        check=checks.duration,
    )
    authorizer_status_uri: str = setting(
        "authorizerStatusUri",
        Kind.TEXT,
        "",
        "Where the relay asks whether the authorizer is in maintenance.",
        advice=checks.https,
        example="https://authorizer.example.com/status",
    )
    policy_version: str = setting(
        "policyVersion", Kind.TEXT, "", "Passed to the relay as it is.", example="v1"
    )
    outbound_allowed: bool = setting(
        "outboundAllowed", Kind.BOOLEAN, False, "Claims the right to connect out through the relay."
    )
    allowed_outbound_ports: tuple[int, ...] = setting(
        "allowedOutboundPorts",
        ListOf(Kind.INTEGER),
        (),
        "The ports it may connect to, if not all.",
        advice=checks.outbound_port,
        example="[25, 465]",
    )

    tpm: Tpm = block(
        "tpm", Tpm, "The TPM of this machine instead of a command or secret.", usual=False
    )

    def __post_init__(self) -> None:
        command, secret = (self.command or "").strip() or None, self.hmac_secret
        if isinstance(secret, str):
            secret = Secret(secret)
        if secret is not None:
            secret = Secret(secret.reveal().strip()) or None
        self._set(
            command=command,
            hmac_secret=secret,
            args=listed(self.args),
            env=MappingProxyType(dict(self.env)),
            allowed_outbound_ports=listed(self.allowed_outbound_ports),
        )
        self._above_zero("timeout_s", "token_ttl_s")

    def findings(self) -> Iterator[Finding]:
        """A source of tokens is needed, and only one is used (9.1)."""
        if self.tpm:
            yield from self._tpm_findings()
            return
        if self.command is None and self.hmac_secret is None:
            text = "a command, an hmacSecret, an hmacSecretFile or a tpm block is required"
            yield Finding((), text, involves=TOKEN_SOURCES)
        elif self.command is not None and self.hmac_secret is not None:
            text = "is not used, because there is a command"
            yield Finding(("hmacSecret",), text, fatal=False, involves=TOKEN_SOURCES)
        elif self.hmac_secret is not None:
            size = len(self.hmac_secret.reveal().encode(errors="replace"))
            if size < MIN_SECRET_BYTES:
                text = f"is shorter than {MIN_SECRET_BYTES} bytes and could be guessed"
                yield Finding(("hmacSecret",), text, fatal=False)
        if self.allowed_outbound_ports and not self.outbound_allowed:
            text = "is not used, because outboundAllowed is false"
            involves = ("allowedOutboundPorts", "outboundAllowed")
            yield Finding(("allowedOutboundPorts",), text, fatal=False, involves=involves)

    def _tpm_findings(self) -> Iterator[Finding]:
        """A device has one identity, and what its tokens claim is the authorizer's choice."""
        for value, other in ((self.command, "a command"), (self.hmac_secret, "a secret")):
            if value is not None:
                text = f"cannot stand beside {other}: a device must not fall back on another proof"
                yield Finding(("tpm",), text)
        for one in settings_of(Attestation):
            used = one.key in _USED_WITH_TPM or not one.field
            if not used and getattr(self, one.field) != one.default:
                why = "the authorizer decides what its tokens say"
                if one.key in ("args", "env"):
                    why = "there is no command"
                text = f"is not used with tpm: {why}"
                yield Finding((one.key,), text, fatal=False, involves=(one.key, "tpm"))
