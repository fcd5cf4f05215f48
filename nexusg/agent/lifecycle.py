"""What happens in an agent, as typed events: logs, metrics and status all live on these.

The name of an event is that of its class: `SessionConnected` is ``session.connected``. Names of
fields are the names in the log. Durations are in seconds, sizes in bytes. No field ever holds a
token or a secret.
"""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class LifecycleEvent:
    """Root of all events; ``at`` is Unix time."""

    level: ClassVar[str] = "info"

    at: float = field(default_factory=time.time)

    @classmethod
    def name(cls) -> str:
        """The dotted name: ``session.connected`` for SessionConnected."""
        return _dotted(cls.__name__)


@functools.cache
def _dotted(name: str) -> str:
    return ".".join(re.findall("[A-Z][a-z]*", name)).lower()


@dataclass(frozen=True, kw_only=True)
class AgentStarted(LifecycleEvent):
    """The agent has begun to connect."""

    version: str
    backends: tuple[str, ...]
    sessions: int  #: how many sessions it will keep: one for each backend and relay address


@dataclass(frozen=True, kw_only=True)
class AgentStopping(LifecycleEvent):
    """No new streams are taken; the existing ones have ``grace_s`` to finish."""

    grace_s: float
    streams: int


@dataclass(frozen=True, kw_only=True)
class AgentStopped(LifecycleEvent):
    """All sessions are closed. ``cut`` streams had not finished."""

    cut: int


@dataclass(frozen=True, kw_only=True)
class BackendEvent(LifecycleEvent):
    """Something about one session slot: a backend at one relay address."""

    backend: str
    relay: str


@dataclass(frozen=True, kw_only=True)
class SessionConnecting(BackendEvent):
    """An attempt begins."""

    level: ClassVar[str] = "debug"


@dataclass(frozen=True, kw_only=True)
class SessionConnected(BackendEvent):
    """The relay has proven its acceptance. ``took_s`` since the attempt began."""

    session: str
    took_s: float
    tls: str  #: protocol version, empty without TLS


@dataclass(frozen=True, kw_only=True)
class SessionRejected(BackendEvent):
    """The relay refused the credentials, for the ``attempts``-th time in a row."""

    level: ClassVar[str] = "error"

    stage: str
    reason: str
    attempts: int
    retry_in_s: float | None  #: None when no further attempt is made


@dataclass(frozen=True, kw_only=True)
class SessionFailed(BackendEvent):
    """No session came about: dialling, TLS, the upgrade, or the token."""

    level: ClassVar[str] = "warning"

    code: str
    error: str
    attempts: int
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class SessionLost(BackendEvent):
    """An accepted session ended from the other side, or by silence."""

    level: ClassVar[str] = "warning"

    session: str
    code: str
    error: str
    duration_s: float
    streams: int  #: that ended with it
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class SessionClosed(BackendEvent):
    """The agent closed an accepted session, with a close frame."""

    session: str
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class SessionEvent(BackendEvent):
    """Something within one session."""

    session: str


@dataclass(frozen=True, kw_only=True)
class ReauthStarted(SessionEvent):
    """The relay asked for a fresh token."""


@dataclass(frozen=True, kw_only=True)
class ReauthCompleted(SessionEvent):
    """The fresh token is on its way to the relay, which does not answer when it is content."""

    took_s: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class ReauthFailed(SessionEvent):
    """No token could be had. ``final`` when the time is up and the relay will end the session."""

    level: ClassVar[str] = "error"

    error: str
    attempts: int
    final: bool


@dataclass(frozen=True, kw_only=True)
class StreamEvent(SessionEvent):
    """Something about one stream."""

    stream: str
    hostname: str
    port: int
    client: str  #: ``ip:port`` of the user as the relay told it
    transport: str
    is_tls: bool
    target: str  #: empty when there was no route


@dataclass(frozen=True, kw_only=True)
class StreamConnected(StreamEvent):
    """The local service is connected. ``took_s`` is how long that took."""

    took_s: float


@dataclass(frozen=True, kw_only=True)
class OutboundConnected(StreamEvent):
    """The relay has connected a local program to what it asked for, and that is a stream now.

    Its user, in this event and the others, is the ``client``: a program on this side. Its target is
    what it asked for, behind the relay. ``took_s`` is how long that took.
    """

    took_s: float


@dataclass(frozen=True, kw_only=True)
class OutboundRefused(LifecycleEvent):
    """A local program has not been connected: not understood, or without success.

    What is not known is empty.
    """

    backend: str
    relay: str
    session: str
    stream: str
    client: str
    target: str
    error: str


@dataclass(frozen=True, kw_only=True)
class SocksListening(LifecycleEvent):
    """Local programs can connect to ``address``, to be connected through a relay."""

    backend: str
    address: str


@dataclass(frozen=True, kw_only=True)
class SocksFailed(LifecycleEvent):
    """They cannot, or not all of them."""

    level: ClassVar[str] = "warning"

    backend: str
    address: str
    error: str
    retry_in_s: float | None  #: of the first attempt of many; None when no further one is made


@dataclass(frozen=True, kw_only=True)
class StreamClosed(StreamEvent):
    """The stream is over."""

    reason: str  #: a word of PROTOCOL.md section 4.3
    ended_by: str  #: user, target, agent or session
    error: str  #: empty for a normal end
    bytes_in: int  #: from the relay
    bytes_out: int  #: to the relay
    duration_s: float
    datagrams_in: int | None = None  #: of a UDP flow, from the user
    datagrams_out: int | None = None
    dropped: int | None = None  #: datagrams that were lost here
    dropped_by: str = ""  #: their causes, for example ``oversize 3, refused 1``


@dataclass(frozen=True, kw_only=True)
class StreamPaused(SessionEvent):
    """The local service is slow; the relay was asked to stop reading from the user."""

    level: ClassVar[str] = "debug"

    stream: str
    buffered_bytes: int


@dataclass(frozen=True, kw_only=True)
class StreamResumed(SessionEvent):
    """The local service has caught up."""

    level: ClassVar[str] = "debug"

    stream: str


@dataclass(frozen=True, kw_only=True)
class MessageIgnored(SessionEvent):
    """The relay sent something that was counted and ignored; ``what`` never quotes it."""

    level: ClassVar[str] = "debug"

    what: str


@dataclass(frozen=True, kw_only=True)
class TokenStderr(LifecycleEvent):
    """A line that the attestation command wrote to stderr, redacted."""

    level: ClassVar[str] = "warning"

    backend: str
    line: str


@dataclass(frozen=True, kw_only=True)
class TargetDown(LifecycleEvent):
    """A target of several, or one that is checked, has failed too often: others go first."""

    level: ClassVar[str] = "warning"

    backend: str
    target: str
    error: str
    streams: int  #: that it still has


@dataclass(frozen=True, kw_only=True)
class TargetUp(LifecycleEvent):
    """It can be used again, after ``down_s``."""

    backend: str
    target: str
    down_s: float


@dataclass(frozen=True, kw_only=True)
class CertificateFailed(LifecycleEvent):
    """Files of TLS have changed, and cannot be loaded; what was loaded before stays in use."""

    level: ClassVar[str] = "error"

    error: str  #: it names the file


@dataclass(frozen=True, kw_only=True)
class AppFailed(LifecycleEvent):
    """A WSGI application in this process raised an error; its user saw status 500, or the end."""

    level: ClassVar[str] = "error"

    app: str
    stream: str
    request: str  #: method and path, without the query
    error: str
    traceback: str  #: without the values of local variables


@dataclass(frozen=True, kw_only=True)
class AppStderr(LifecycleEvent):
    """What a WSGI application in this process has written to ``wsgi.errors``."""

    level: ClassVar[str] = "warning"

    app: str
    text: str


@dataclass(frozen=True, kw_only=True)
class NetworkChanged(LifecycleEvent):
    """An interface, address or default route changed: waiting attempts begin at once."""

    detail: str


@dataclass(frozen=True, kw_only=True)
class TaskFailed(LifecycleEvent):
    """A bug: a greenlet died. The agent goes on as well as it can."""

    level: ClassVar[str] = "error"

    task: str
    error: str
    traceback: str  #: without the values of local variables


@dataclass(frozen=True, kw_only=True)
class EventsDropped(LifecycleEvent):
    """A subscriber was too slow; this many events never reached it."""

    level: ClassVar[str] = "warning"

    count: int
