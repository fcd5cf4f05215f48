"""Counters of a running agent, and the snapshot that `Agent.stats` returns (PROTOCOL.md 13)."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import TYPE_CHECKING

from nexusg.protocol.messages import Reason, format_id
from nexusg.protocol.outbound import OutboundStream
from nexusg.protocol.states import StreamState


if TYPE_CHECKING:
    from collections.abc import Iterable

    from nexusg.agent.session import Session
    from nexusg.agent.shell import StreamShell


@dataclasses.dataclass(slots=True)
class Counters:
    """What is counted while it happens; everything else is looked up when asked for."""

    connects: int = 0  #: accepted sessions, the first ones included
    rejections: int = 0
    failures: int = 0  #: attempts that failed otherwise, and sessions lost
    rate_limited: int = 0
    token_failures: int = 0
    last_connected_at: float = 0.0  #: Unix time, 0 before the first
    streams_opened: int = 0
    dial_failures: int = 0
    outbound_refused: int = 0  #: local programs that were not connected
    pauses: int = 0
    ignored_messages: int = 0
    stalled_links: int = 0
    bytes_received: int = 0  #: over all ended sessions, everything on the WebSocket
    bytes_sent: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    closed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    flows_evicted: int = 0
    #: Over all ended UDP flows.
    datagrams_dropped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )

    def connected(self) -> None:
        """A relay has accepted a session."""
        self.connects += 1
        self.last_connected_at = time.time()

    def session_ended(self, session: Session) -> None:
        """Add what ``session`` has moved."""
        self.bytes_received += session.link.bytes_in
        self.bytes_sent += session.link.bytes_out
        self.messages_received += session.core.messages_in
        self.messages_sent += session.core.wire.messages_out


@dataclasses.dataclass(frozen=True, slots=True)
class StreamStats:
    """One stream."""

    client_id: str
    backend: str
    session: str
    hostname: str
    client: str
    target: str
    state: str
    bytes_in: int  #: payload from the relay
    bytes_out: int  #: payload to the relay
    buffered_bytes: int  #: waiting for the local service
    paused: bool
    is_udp: bool
    is_outbound: bool  #: the client is a local program, and the target is behind the relay
    datagrams_dropped: int
    connected_for_s: float
    idle_for_s: float  #: as of the last sweep, which is at most 5 s old


@dataclasses.dataclass(frozen=True, slots=True)
class SessionStats:
    """One session slot: a backend at one relay address."""

    backend: str
    relay: str
    session: str  #: empty while there is none
    state: str
    uptime_s: float
    streams: int
    unsent_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class TargetStats:
    """One target of several, or one that is checked."""

    backend: str
    target: str
    up: bool
    streams: int  #: that are connected to it, or about to be
    error: str  #: why it could not be reached last, empty if it could
    down_for_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceStats:
    """The device with a TPM behind one backend; others may share it. Empty until it is enrolled."""

    backend: str
    device_id: str
    hostname: str
    identity_class: str
    enrolments: int  #: since the start
    quote_s: float  #: how long the TPM took last
    tokens: int
    token_expires_at: float  #: of the last one; Unix time, 0 before the first
    last_error: str  #: why there was no token; empty again when there is one


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of an agent. Sizes in bytes, durations in seconds, times as Unix time."""

    at: float
    worker: int | None  #: which of several processes with the same configuration
    sessions: tuple[SessionStats, ...]
    streams: tuple[StreamStats, ...]  #: empty unless asked for
    targets: tuple[TargetStats, ...]  #: of several, and those that are checked
    devices: tuple[DeviceStats, ...]  #: with a TPM
    streams_active: int
    streams_pending: int  #: still being dialled
    streams_total: int
    streams_paused: int
    streams_queued: int  #: with data waiting for the local service
    streams_closed: dict[str, int]  #: by reason
    streams_dropped: int  #: closed for any reason but normal
    dial_failures: int
    outbound_refused: int
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    buffered_bytes: int  #: forward data waiting, over all streams
    unsent_bytes: int  #: output waiting for the relays, over all sessions
    connects: int
    last_connected_at: float
    failures: int
    rejections: int
    rate_limited: int
    token_failures: int
    pauses: int
    ignored_messages: int
    stalled_links: int
    events_dropped: int
    flows_evicted: int  #: UDP flows that were ended because there were too many
    datagrams_dropped: dict[str, int]  #: by cause: early, full, overflow, oversize, refused


def stream_stats(pump: StreamShell, now: float) -> StreamStats:
    """The figures of one stream at ``now`` (monotonic seconds)."""
    stream, session = pump.stream, pump.session
    return StreamStats(
        client_id=format_id(stream.id),
        backend=session.backend.name,
        session=session.name,
        hostname=stream.hostname,
        client=stream.client_ip,
        target=pump.target_name,
        state=stream.state.value,
        bytes_in=stream.bytes_in,
        bytes_out=stream.bytes_out,
        buffered_bytes=pump.buffered_bytes,
        paused=stream.paused,
        is_udp=stream.is_udp,
        is_outbound=isinstance(stream, OutboundStream),
        datagrams_dropped=sum(pump.losses().values()),
        connected_for_s=now - stream.opened_at,
        idle_for_s=now - stream.idle_since,
    )


def totals(
    counters: Counters,
    pumps: Iterable[StreamShell],
    sessions: Iterable[Session],
    slots: tuple[SessionStats, ...],
    *,
    streams: tuple[StreamStats, ...],
    targets: tuple[TargetStats, ...] = (),
    devices: tuple[DeviceStats, ...] = (),
    buffered_bytes: int,
    events_dropped: int,
    worker: int | None = None,
) -> Stats:
    """Put the snapshot together."""
    pumps, live = list(pumps), list(sessions)
    dropped = collections.Counter(counters.datagrams_dropped)
    for pump in pumps:
        dropped.update(pump.losses())
    pending = sum(pump.stream.state is StreamState.OPENING for pump in pumps)
    return Stats(
        at=time.time(),
        worker=worker,
        sessions=slots,
        streams=streams,
        targets=targets,
        devices=devices,
        streams_active=len(pumps) - pending,
        streams_pending=pending,
        streams_total=counters.streams_opened,
        streams_paused=sum(pump.stream.paused for pump in pumps),
        streams_queued=sum(pump.buffered_bytes > 0 for pump in pumps),
        streams_closed=dict(counters.closed),
        streams_dropped=sum(counters.closed.values()) - counters.closed[Reason.NORMAL.value],
        dial_failures=counters.dial_failures,
        outbound_refused=counters.outbound_refused,
        bytes_received=counters.bytes_received + sum(s.link.bytes_in for s in live),
        bytes_sent=counters.bytes_sent + sum(s.link.bytes_out for s in live),
        messages_received=counters.messages_received + sum(s.core.messages_in for s in live),
        messages_sent=counters.messages_sent + sum(s.core.wire.messages_out for s in live),
        buffered_bytes=buffered_bytes,
        unsent_bytes=sum(s.core.wire.pending_bytes for s in live),
        connects=counters.connects,
        last_connected_at=counters.last_connected_at,
        failures=counters.failures,
        rejections=counters.rejections,
        rate_limited=counters.rate_limited,
        token_failures=counters.token_failures,
        pauses=counters.pauses,
        ignored_messages=counters.ignored_messages,
        stalled_links=counters.stalled_links,
        events_dropped=events_dropped,
        flows_evicted=counters.flows_evicted,
        datagrams_dropped=dict(dropped),
    )
