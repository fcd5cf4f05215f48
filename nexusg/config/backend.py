"""The configuration as frozen data: one backend (PROTOCOL.md section 10.2).

``findings()`` are the rules over several settings; those over one stand in its declaration.
"""

# ruff: noqa: RUF009 - setting() and block() return dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import checks
from .attestation import Attestation
from .hostnames import normalize_pattern
from .mapping import PortMapping
from .setting import (
    REQUIRED,
    Block,
    Finding,
    Kind,
    ListOf,
    MapOf,
    Setting,
    Settings,
    block,
    listed,
    setting,
    unique,
)
from .socks5 import Socks5Auth
from .tls import RelayTls


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .destination import Destination


_SOCKS5 = "socks5ListenAddr"
_TPM = "attestation.tpm"


@dataclass(frozen=True, slots=True)
class UdpRoute(Settings):
    """A claimed UDP port."""

    port: int = setting(
        "port",
        Kind.INTEGER,
        REQUIRED,
        "The public port.",
        needed=True,
        check=checks.port,
        example="53",
    )
    flow_idle_timeout_s: int | None = setting(
        "flowIdleTimeoutSeconds",
        Kind.INTEGER,
        None,
        "When the relay forgets an idle flow. Its own default if absent; it clamps the value.",
        unit="s",
        check=checks.duration,
        example="30",
    )


@dataclass(frozen=True, slots=True)
class HealthChecks(Settings):
    """Asks the relay whether the client of a silent stream is still there (section 7)."""

    enabled: bool = setting(
        "enabled",
        Kind.BOOLEAN,
        True,
        "On by default, because the relay can lose the news that a client has gone.",
    )
    inactivity_timeout_s: float = setting(
        "inactivityTimeout",
        Kind.NUMBER,
        60.0,
        "A stream without traffic for this long is asked for. 0: the default.",
        unit="s",
        check=checks.seconds,
    )
    pong_timeout_s: float = setting(
        "pongTimeout",
        Kind.NUMBER,
        5.0,
        "How long the answer may take. 0: the default.",
        unit="s",
        check=checks.seconds,
    )

    def __post_init__(self) -> None:
        self._above_zero("inactivity_timeout_s", "pong_timeout_s")


@dataclass(frozen=True, slots=True)
class FlowControl(Settings):
    """Messages in flight on one stream (PROTOCOL.md section 5.3)."""

    high_water_mark: int = setting(
        "highWaterMark", Kind.INTEGER, 48, "Buffered messages that pause a stream. 0: the default."
    )
    low_water_mark: int = setting(
        "lowWaterMark", Kind.INTEGER, 16, "Buffered messages that resume it. 0: the default."
    )
    max_buffer: int = setting(
        "maxBuffer", Kind.INTEGER, 64, "Messages the relay may send ahead. 0: the default."
    )

    def __post_init__(self) -> None:
        self._above_zero("high_water_mark", "low_water_mark", "max_buffer")

    def findings(self) -> Iterator[Finding]:
        """low < high < max."""
        low, high, top = self.low_water_mark, self.high_water_mark, self.max_buffer
        if not low < high < top:
            text = f"lowWaterMark ({low}) < highWaterMark ({high}) < maxBuffer ({top}) must hold"
            yield Finding((), text, involves=("lowWaterMark", "highWaterMark", "maxBuffer"))


@dataclass(frozen=True, slots=True)
class Backend(Settings):
    """What one block of the configuration serves, and through which relays."""

    name: str = setting(
        "name",
        Kind.TEXT,
        REQUIRED,
        "Names the backend in tokens, logs and metrics.",
        needed=True,
        check=checks.not_blank,
        example="web",
    )
    hostnames: tuple[str, ...] = setting(
        "hostnames",
        ListOf(Kind.TEXT),
        (),
        "Claimed names. One of hostnames, tcpPorts and udpRoutes is required, unless a TPM's "
        "authorizer decides.",
        check=checks.hostname,
        advice=checks.wildcard,
        example='[app.example.com, "*.example.com"]',
        usual=True,
        also=Setting(
            "hostname",
            Kind.TEXT,
            None,
            "A single claimed name, used if there are no hostnames.",
            example="app.example.com",
        ),
    )
    tcp_ports: tuple[int, ...] = setting(
        "tcpPorts",
        ListOf(Kind.INTEGER),
        (),
        "Claimed TCP ports.",
        check=checks.port,
        example="[22]",
    )
    udp_routes: tuple[UdpRoute, ...] = setting(
        "udpRoutes", ListOf(Block(UdpRoute)), (), "Claimed UDP ports."
    )
    nexus_addresses: tuple[str, ...] = setting(
        "nexusAddresses",
        ListOf(Kind.TEXT),
        (),
        "The relays. All of them are served at once. Required, unless a TPM's authorizer names "
        "them.",
        advice=checks.relay_address,
        example='["wss://relay.example.com/connect"]',
        usual=True,
    )
    weight: int = setting(
        "weight", Kind.INTEGER, 1, "Share of the streams, if several agents serve the same names."
    )
    attestation: Attestation = block(
        "attestation", Attestation, "Where the tokens for the relays come from."
    )
    port_mappings: Mapping[int, PortMapping] = setting(
        "portMappings",
        MapOf(Kind.INTEGER, Block(PortMapping)),
        {},
        "Where the streams go, by public port.",
        needed=True,
    )
    health_checks: HealthChecks = block(
        "healthChecks", HealthChecks, "Finds streams whose client has gone unnoticed."
    )
    flow_control: FlowControl = block(
        "flowControl", FlowControl, "Messages in flight on each stream."
    )
    socks5_listen_addr: str | None = setting(
        "socks5ListenAddr",
        Kind.TEXT,
        None,
        "A SOCKS5 server for local programs that connect out through the relay, on host:port, "
        ":port or unix:/path. Off if absent.",
        advice=checks.listen_address,
        example='"127.0.0.1:1080"',
    )
    socks5_auth: Socks5Auth = block("socks5Auth", Socks5Auth, "Who may use the SOCKS5 server.")
    socks5_allow_open: bool = setting(
        "socks5AllowOpen",
        Kind.BOOLEAN,
        False,
        "Lets the SOCKS5 server listen where other hosts can connect, without a password.",
    )
    tls: RelayTls = block("tls", RelayTls, "TLS towards the relays.")

    def __post_init__(self) -> None:
        self._set(
            hostnames=unique(map(normalize_pattern, listed(self.hostnames))),
            tcp_ports=unique(self.tcp_ports),
            udp_routes=listed(self.udp_routes),
            nexus_addresses=tuple(map(str.strip, listed(self.nexus_addresses))),
            weight=max(1, self.weight),
            port_mappings=MappingProxyType(dict(self.port_mappings)),
            socks5_listen_addr=self.socks5_listen_addr or None,
        )

    def findings(self) -> Iterator[Finding]:
        """Something must be claimed, each UDP port once, and what is claimed should be mapped."""
        if self.attestation.tpm:
            yield from self._tpm_findings()
        else:
            yield from self._claim_findings()
        udp_ports = [route.port for route in self.udp_routes]
        for index, number in enumerate(udp_ports):
            if number in udp_ports[:index]:
                yield Finding(("udpRoutes", index, "port"), f"port {number} is listed twice")
        for number in self.port_mappings:
            if checks.port(number):
                text = "no stream has this port (1 to 65535)"
                yield Finding(("portMappings", number), text, fatal=False)
        address = self.socks5_listen_addr
        if address and not checks.listen_address(address):
            yield from self._socks5_findings()
        if self.socks5_auth.username and not address:
            text = "is not used, because there is no socks5ListenAddr"
            yield Finding(("socks5Auth",), text, fatal=False, involves=("socks5Auth", _SOCKS5))

    def _claim_findings(self) -> Iterator[Finding]:
        if not (self.hostnames or self.tcp_ports or self.udp_routes):
            text = "one of hostnames, tcpPorts and udpRoutes is required"
            claims = ("hostnames", "tcpPorts", "udpRoutes")
            yield Finding((), text, involves=(*claims, _TPM))
        if not self.nexus_addresses:
            needs = ("nexusAddresses", _TPM)
            yield Finding(("nexusAddresses",), "is required", involves=needs)
        udp_ports = [route.port for route in self.udp_routes]
        for key, kind, ports in (
            ("tcpPorts", "tcp", self.tcp_ports),
            ("udpRoutes", "udp", udp_ports),
        ):
            for number in ports:
                if problem := _claimed(kind, number, self.port_mappings.get(number)):
                    involved = (key, "portMappings", _TPM)
                    yield Finding((key,), problem, fatal=False, involves=involved)

    def _tpm_findings(self) -> Iterator[Finding]:
        """An authorizer knows the device, and asks for none of its wishes."""
        for key, wish, what in (
            ("tcpPorts", self.tcp_ports, "grants host names only"),
            ("udpRoutes", self.udp_routes, "grants host names only"),
            ("weight", self.weight != 1, "decides it"),
        ):
            if wish:
                text = f"is not used with tpm: the authorizer {what}"
                yield Finding((key,), text, fatal=False, involves=(key, "attestation"))

    @property
    def socks5_exposed(self) -> bool:
        """Whether the SOCKS5 server would be open to other hosts, which nobody has asked for."""
        asked = self.socks5_auth.username or self.socks5_allow_open
        return not asked and not checks.listens_locally(self.socks5_listen_addr or "")

    def _socks5_findings(self) -> Iterator[Finding]:
        if self.socks5_exposed:
            text = (
                "would be open to other hosts: the listener will stay off without socks5Auth or "
                "socks5AllowOpen"
            )
            involves = (_SOCKS5, "socks5Auth", "socks5AllowOpen")
            yield Finding((_SOCKS5,), text, fatal=False, involves=involves)
        attestation, text = self.attestation, ""
        if attestation.tpm:
            text = "has no use with tpm: the authorizer allows no outbound connections"
        elif attestation.command is None and not attestation.outbound_allowed:
            text = "needs attestation.outboundAllowed, or the relay will refuse its connections"
        if text:
            yield Finding((_SOCKS5,), text, fatal=False, involves=(_SOCKS5, "attestation"))


def _claimed(kind: str, port: int, mapping: PortMapping | None) -> str | None:
    """What is doubtful about the target of a claimed port, whose key stands for a host name."""
    if mapping is None:
        return f"port {port} has no entry in portMappings: its streams are refused"
    key = f"{kind}:{port}"
    to = mapping.hosts.get(key) or mapping.default
    if to is None:
        text = f"port {port} has neither a default nor the host {checks.quoted(key)} in"
        return f"{text} portMappings: its streams are refused"
    if kind == "udp" and (problem := _unfit_for_udp(to)):
        return f"port {port} leads to {problem}"
    return None


def _unfit_for_udp(to: Destination) -> str | None:
    """UDP takes one ``host:port`` and nothing else. Of several it takes the first."""
    first = next(iter(to.targets), "")
    kinds = {"a unix socket": checks.UNIX, "tls://": checks.TLS, "an application": checks.WSGI}
    for kind, prefix in kinds.items():
        if first.startswith(prefix):
            return f"{kind}, which takes no UDP: its streams are refused"
    if len(to.targets) > 1:
        return "several targets, of which UDP uses the first"
    if to.proxy_protocol != "off":
        return "a destination with proxyProtocol, which is not sent over UDP"
    if to.tls_terminate:
        return "a destination with tlsTerminate, which does nothing for UDP"
    return None
