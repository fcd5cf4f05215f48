"""The configuration as frozen data: the agent as a whole. The blocks of a backend have
files of their own, and can be imported from here, too.

Every setting is declared once, on its field. Values take their one form when an object is made
(names normalised, duplicates merged, "zero means the default" applied), whether the loader makes
it or a program does; nothing is refused then. What cannot be used is found by ``validate``.
"""

# ruff: noqa: RUF009 - setting() and block() return dataclasses.field()

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import checks
from .attestation import Attestation
from .backend import (
    Backend,
    FlowControl,
    HealthChecks,
    UdpRoute,
)
from .destination import Destination, TargetHealth, TlsTerminate
from .mapping import PortMapping
from .setting import Block, Finding, Kind, ListOf, Settings, block, listed, setting
from .socks5 import Socks5Auth
from .tls import RelayTls, TargetTls
from .tpm import Tpm


if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "Attestation",
    "Backend",
    "Config",
    "Destination",
    "FlowControl",
    "HealthChecks",
    "Limits",
    "Logging",
    "PortMapping",
    "Reconnect",
    "RelayTls",
    "Shutdown",
    "Socks5Auth",
    "TargetHealth",
    "TargetTls",
    "TlsTerminate",
    "Tpm",
    "UdpRoute",
]

MIB = 1024 * 1024

MAX_DATAGRAM_BYTES = 32 * 1024  # what fits into one message (1.2)

MIN_MESSAGE_BYTES = 65_553  # 64 KiB of data and 17 of header, the most a relay sends (1.2)


@dataclass(frozen=True, slots=True)
class Shutdown(Settings):
    """How the agent stops (PROTOCOL.md section 15)."""

    grace_s: float = setting(
        "graceSeconds",
        Kind.NUMBER,
        30.0,
        "How long a stop waits for open streams to end. 0 ends them at once.",
        unit="s",
        check=checks.duration,
    )
    idle_s: float = setting(
        "idleSeconds",
        Kind.NUMBER,
        5.0,
        "A stream that has been idle this long does not hold up the stop.",
        unit="s",
        check=checks.duration,
    )


@dataclass(frozen=True, slots=True)
class Logging(Settings):
    """What is logged, and how."""

    level: str = setting(
        "level",
        Kind.TEXT,
        "info",
        "The least severe lines that are logged.",
        choices=("debug", "info", "warning", "error"),
    )
    format: str = setting(
        "format",
        Kind.TEXT,
        "auto",
        "JSON lines, or text for people. auto: text on a terminal, else JSON.",
        choices=("auto", "json", "console"),
    )
    streams: str = setting(
        "streams",
        Kind.TEXT,
        "all",
        "Lines about each stream. all: when it opens and when it closes; closed: only then.",
        choices=("all", "closed", "off"),
    )


@dataclass(frozen=True, slots=True)
class Limits(Settings):
    """Bounds of the memory that peers can make the agent use."""

    stream_buffer_bytes: int = setting(
        "streamBufferBytes",
        Kind.INTEGER,
        4 * MIB,  # a 64-message window behind a burst of 100 Mbit/s and 50 ms fits six times
        "Forward bytes buffered for one stream before the relay is asked to pause it.",
        unit="bytes",
        check=checks.at_least(MIN_MESSAGE_BYTES),
    )
    stream_buffer_max_bytes: int = setting(
        "streamBufferMaxBytes",
        Kind.INTEGER,
        16 * MIB,  # what a relay that has not seen the pause yet may still send
        "Above this the stream is ended with buffer_full.",
        unit="bytes",
        check=checks.at_least(MIN_MESSAGE_BYTES),
    )
    agent_buffer_bytes: int = setting(
        "agentBufferBytes",
        Kind.INTEGER,
        256 * MIB,
        "Forward bytes buffered over all streams.",
        unit="bytes",
        check=checks.at_least(MIN_MESSAGE_BYTES),
    )
    message_bytes: int = setting(
        "messageBytes",
        Kind.INTEGER,
        MIB,  # sixteen times what a relay sends today
        "The largest WebSocket message accepted.",
        unit="bytes",
        check=checks.at_least(MIN_MESSAGE_BYTES),
    )
    udp_flows: int = setting(
        "udpFlows",
        Kind.INTEGER,
        4096,  # each has a socket
        "UDP flows at a time, or half as many as the process may have file descriptors. A further "
        "one ends the one that was longest unused.",
        check=checks.at_least(1),
    )
    udp_datagram_bytes: int = setting(
        "udpDatagramBytes",
        Kind.INTEGER,
        2048,  # the server's default for its udpMaxDatagramBytes (5.7)
        "The largest datagram passed to a user; larger ones are dropped. The relay must take it.",
        unit="bytes",
        check=checks.between(1, MAX_DATAGRAM_BYTES),
    )

    def findings(self) -> Iterator[Finding]:
        """A stream is paused before it is ended."""
        if self.stream_buffer_bytes > self.stream_buffer_max_bytes:
            yield Finding(
                ("streamBufferBytes",),
                f"must not be above streamBufferMaxBytes ({self.stream_buffer_max_bytes})",
                involves=("streamBufferBytes", "streamBufferMaxBytes"),
            )


@dataclass(frozen=True, slots=True)
class Reconnect(Settings):
    """When the agent stops trying."""

    give_up_after_rejections: int = setting(
        "giveUpAfterRejections",
        Kind.INTEGER,
        0,
        "After so many rejected tokens in a row the agent ends with exit code 3. 0: never.",
        check=checks.at_least(0),
    )


@dataclass(frozen=True, slots=True)
class Config(Settings):
    """A whole configuration. See ``nexusg.config.validate`` for what makes it usable."""

    backends: tuple[Backend, ...] = setting(
        "backends",
        ListOf(Block(Backend)),
        (),
        "What this agent serves. Each backend has sessions of its own with its relays.",
        needed=True,
    )
    shutdown: Shutdown = block("shutdown", Shutdown, "How the agent stops.")
    logging: Logging = block("logging", Logging, "What is logged, and how.")
    limits: Limits = block("limits", Limits, "Bounds of the memory that peers can make it use.")
    reconnect: Reconnect = block("reconnect", Reconnect, "When the agent stops trying.")
    workers: int | str = setting(
        "workers",
        Kind.COUNT,
        1,
        "Processes, each with sessions and limits of its own. auto: one for each processor.",
        check=checks.workers,
    )

    def __post_init__(self) -> None:
        self._set(backends=listed(self.backends))

    def findings(self) -> Iterator[Finding]:
        """Names are what tells backends apart in logs and metrics; a TPM is one device."""
        names = Counter(backend.name for backend in self.backends)
        for index, backend in enumerate(self.backends):
            if names[backend.name] > 1:
                text = "another backend has the same name: logs will not tell them apart"
                yield Finding(("backends", index, "name"), text, fatal=False)
        tpms = [backend.attestation.tpm for backend in self.backends]
        for index, tpm in enumerate(tpms):
            for other in filter(None, tpms[:index]):
                if tpm and (clash := tpm.clash(other)):
                    place = ("backends", index, "attestation", "tpm", *clash.path)
                    yield Finding(place, clash.text, fatal=clash.fatal)
                    break
