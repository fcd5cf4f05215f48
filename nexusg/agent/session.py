"""One session: joins a link to the protocol core, and streams to local services.

The core never switches greenlets, so a call into it is atomic and needs no lock. Its output is
written by the link's writer; its input is read here, in the greenlet that calls `run`.
"""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent.event import Event

from nexusg.agent.flows import UdpFlow
from nexusg.agent.lifecycle import MessageIgnored, SessionConnected
from nexusg.agent.reauth import Reauth
from nexusg.agent.streams import StreamPump
from nexusg.agent.tasks import Tasks, contained
from nexusg.attest.base import Stage
from nexusg.attest.select import request_for
from nexusg.errors import (
    NexusgError,
    Rejected,
    RelayError,
    RemoteProtocolError,
    Retry,
    SessionLost,
    TokenError,
)
from nexusg.protocol.events import (
    Accepted,
    ChallengeReceived,
    Closed,
    HandshakeStalled,
    Ignored,
    ReauthRequested,
)
from nexusg.protocol.liveness import HealthPolicy
from nexusg.protocol.session import AgentSession
from nexusg.protocol.states import SessionState
from nexusg.protocol.wsframes import GOING_AWAY, NORMAL, POLICY_VIOLATION
from nexusg.transport.dial import open_link
from nexusg.transport.tls import TlsOptions
from nexusg.transport.wslink import WsLink


if TYPE_CHECKING:
    from nexusg.agent.connector import Connector
    from nexusg.agent.context import Context
    from nexusg.agent.shell import StreamShell
    from nexusg.attest.base import TokenProvider
    from nexusg.config.model import Backend, HealthChecks, RelayTls
    from nexusg.protocol.events import Event as ProtocolEvent
    from nexusg.protocol.outbound import OpenOutbound
    from nexusg.protocol.stream import Stream


#: The relay gives up at 10 s; a token that comes later is of no use (PROTOCOL.md section 2.2).
ATTEST_TIMEOUT_S = 9.0
#: A write without progress for this long: the relay, or the path to it, is stuck (section 1.3).
WRITE_TIMEOUT_S = 10.0
# How a relay that refuses a token ends the connection if it does not say so (section 1.4).
_SPEECHLESS = ("eof", "reset", "tls")
#: After a failed write, how long the reader may still find out why.
LAST_WORD_S = 0.5
#: A stream that has been idle this long does without a greenlet: longer than the pauses of most
#: keepalive connections, since a new greenlet costs some 15 us.
REST_S = 20.0
#: Thousands of streams must not be seen to in one go; this many at a time, with pauses.
RESTS_AT_A_TIME, REST_PAUSE_S = 256, 0.1
#: How long the close frame and what stands before it may take at the end.
GOODBYE_S = 1.0


class Session:
    """The life of one WebSocket. Make it, call `run` once."""

    def __init__(
        self,
        context: Context,
        backend: Backend,
        provider: TokenProvider,
        connector: Connector,
        relay: str,
        name: str,
    ) -> None:
        self.context = context
        self.backend = backend
        self.provider = provider
        self.connector = connector
        self.relay = relay
        self.name = name
        self.opened = False  #: whether ``link`` and ``core`` are there
        self.accepted_at: float | None = None
        self.streams_lost = 0  #: how many streams the end of the session took with it
        self.link: WsLink
        self.core: AgentSession
        self.tasks = Tasks(f"session {name}", self._task_failed)
        self._reauth = Reauth(self)
        self._end: NexusgError | None = None
        self._closing = False
        self._closed = Event()
        self._rearm = Event()
        self._armed_at = self._rest_at = 0.0

    def names(self) -> dict[str, Any]:
        """The fields that every event of this session carries."""
        return {"backend": self.backend.name, "relay": self.relay, "session": self.name}

    def run(self) -> None:
        """Open the session and serve it to its end. Blocks.

        Returns after `close`. Raises TokenError, DialFailed, UpgradeRefused, Rejected or
        SessionLost.
        """
        started = self.context.clock()
        timeout_s = self.backend.attestation.timeout_s
        token = self.provider.get_token(request_for(self.backend, Stage.HANDSHAKE), timeout_s)
        tls, buffer = _tls_options(self.backend.tls), self.context.buffer
        upgraded = open_link(self.relay, tls=tls, buffer=buffer)
        now = self.context.clock()
        self.core = AgentSession(
            now=now,
            entropy=self.context.entropy,
            open_stream=self._open_stream,
            forward_window=self.backend.flow_control.max_buffer,
            health=_health_policy(self.backend.health_checks),
            max_message_bytes=self.context.config.limits.message_bytes,
        )
        self.link = WsLink(upgraded.channel, self.core.wire)
        self.opened = True
        self._started, self._tls = started, upgraded.tls_version or ""
        try:
            self.tasks.spawn("writer", self._watch_writes)
            self.tasks.spawn("ticker", self._tick)
            contained(self._broken, self._serve, token.value, upgraded.leftover)
        finally:
            self._finish()

    # The way out -----------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """Whether the relay has accepted this session and neither side has closed it."""
        return self.accepted_at is not None and self.core.established

    def drain(self) -> None:
        """Refuse new streams from now on."""
        self.core.drain()

    def close(self, reason: str) -> None:
        """Send the close frame, give the relay a moment to answer, and end `run`. Blocks."""
        self._closing = True
        self.core.close(GOING_AWAY, reason)
        self.link.flush()
        self._closed.wait(GOODBYE_S)
        self.link.close()

    def forked(self) -> None:
        """In a child of fork: cut this process off from the connection, which is the parent's."""
        if self.opened:
            self.link.disown()

    @property
    def takes_outbound(self) -> bool:
        """Whether the relay may be asked for connections now."""
        return self.established and self.core.state is SessionState.OPEN

    def connect_outbound(self, target: str, open_stream: OpenOutbound) -> None:
        """Ask the relay to connect to ``host:port``, while `takes_outbound`. Never blocks."""
        client_id = uuid.UUID(bytes=self.context.entropy(16), version=4).bytes
        self.context.counters.streams_opened += 1
        self.core.connect_outbound(client_id, target, open_stream, self.context.clock())
        self.flush()

    def probe(self) -> None:
        """The network has changed: find out soon whether the relay is still there."""
        self.core.probe(self.context.clock())
        self.flush()
        self._rearm.set()

    def flush(self) -> None:
        """Have new output written."""
        self.link.flush()

    def _serve(self, token: str, leftover: bytes) -> None:
        link, core, clock = self.link, self.core, self.context.clock
        core.send_handshake_token(token, clock())
        try:
            self._feed(leftover)
            while True:
                count = link.read_into(core.buffer())
                events = core.receive(count, clock())
                if events:
                    self._handle(events)
                link.flush()
                if core.sooner and self._armed_at > core.next_deadline():
                    self._rearm.set()
        except RemoteProtocolError as error:
            if self._closing:
                return
            self.core.close(error.close_code, str(error))
            broken = SessionLost(f"the relay broke the protocol: {error}", "protocol")
            if not self.core.accepted:
                broken.retry = Retry.TOKEN  # it is no relay, or not of a kind we know: no hurry
            self._fail(broken)
        except SessionLost as error:
            if not self._closing:
                self._fail(error)

    def _feed(self, leftover: bytes) -> None:
        """What came right behind the upgrade's answer."""
        view = memoryview(leftover)
        while view:
            buffer = self.core.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            self._handle(self.core.receive(count, self.context.clock()))

    def _fail(self, error: SessionLost) -> NoReturn:
        """Raise why the session ended: what was found first, or what the relay's word means."""
        end = self._end or self._judged(error)
        if end is error:
            raise error
        raise end from error

    def _judged(self, error: SessionLost) -> RelayError:
        """Without acceptance an end is a rejection, however it is spelled (section 2.3)."""
        if self.core.accepted or error.code not in _SPEECHLESS:
            return error
        return Rejected(self.core.stage)

    def _broken(self, error: BaseException) -> None:
        """The reader has failed: pass on why the session ended; a bug ends this session only."""
        if not isinstance(error, RelayError | TokenError):
            self._task_failed("reader", error)
            error = self._end or error
        raise error

    def _stop(self, error: NexusgError) -> None:
        """End the session from a greenlet that is not the reader."""
        if self._end is None:
            self._end = error
        self.link.stop_reading()

    def _finish(self) -> None:
        self.core.close(NORMAL if self._closing else GOING_AWAY)
        # Nothing may follow the close frame, so nothing is left to do for the streams.
        self.streams_lost = len(self.core.streams)
        self.core.lost()
        try:
            if not self.link.closed:
                self.link.wait_flushed(GOODBYE_S)
        finally:  # a kill must not leave the socket and the greenlets behind
            self.link.close()
            self.opened = False
            self._closed.set()
            self.context.counters.session_ended(self)
            self.tasks.kill(GOODBYE_S)

    # Events of the core ----------------------------------------------------------------------

    def _handle(self, events: list[ProtocolEvent]) -> None:
        for event in events:
            if isinstance(event, ChallengeReceived):
                self.tasks.spawn("attest", self._attest, event.nonce)
            elif isinstance(event, Accepted):
                self._accepted()
            elif isinstance(event, ReauthRequested):
                self._reauth.challenged(event.nonce)
            elif isinstance(event, Closed):
                self._relay_closed(event)
            elif isinstance(event, Ignored):
                self.context.counters.ignored_messages += 1
                self.context.emit(MessageIgnored(**self.names(), what=event.what))
            elif isinstance(event, HandshakeStalled):
                text = f"no {event.step} from the relay within {event.seconds:g} s"
                self._stop(SessionLost(text, "silent"))
            else:
                text = f"nothing was heard from the relay for {event.seconds:g} s"
                self._stop(SessionLost(text, "silent"))

    def _open_stream(self, stream: Stream) -> StreamShell:
        self.context.counters.streams_opened += 1
        return UdpFlow(self, stream) if stream.is_udp else StreamPump(self, stream)

    def _attest(self, nonce: str) -> None:
        try:
            token = self.provider.get_token(
                request_for(self.backend, Stage.ATTEST, nonce), ATTEST_TIMEOUT_S
            )
        except TokenError as error:
            self._stop(error)
            return
        if self.core.state is not SessionState.CHALLENGED:
            return  # the session ended meanwhile
        self._reauth.attested(token.value)
        self.core.send_attest_token(token.value, self.context.clock())
        self.flush()
        self._rearm.set()

    def _accepted(self) -> None:
        now = self.context.clock()
        self.accepted_at = now
        self.context.counters.connected()
        took_s = round(now - self._started, 3)
        self.context.emit(SessionConnected(**self.names(), took_s=took_s, tls=self._tls))

    def _relay_closed(self, event: Closed) -> None:
        if self._closing:
            self._closed.set()
            return
        reason = f": {event.reason}" if event.reason else ""
        error: NexusgError
        if not self.core.accepted and event.code == POLICY_VIOLATION:
            error = Rejected(self.core.stage, event.reason, event.code)
        else:
            text = f"the relay closed the session with code {event.code}{reason}"
            error = SessionLost(text, "closed", event.code)
        self._end = self._end or error
        raise SessionLost("closed", "closed", event.code)

    # Greenlets beside the reader -------------------------------------------------------------

    def _watch_writes(self) -> None:
        try:
            self.link.wait_broken()
        except SessionLost as error:
            # The relay's close frame may still be there to be read, and says more than this.
            gevent.sleep(LAST_WORD_S)
            self._stop(self._judged(error))

    def _tick(self) -> None:
        while True:
            now = self.context.clock()
            self._handle(self.core.tick(now))
            self.flush()
            if now >= self._rest_at:
                self._let_rest(now)
            since = self.link.writing_since
            if since is not None and now - since > WRITE_TIMEOUT_S:
                self.context.counters.stalled_links += 1
                text = f"the relay took nothing for {WRITE_TIMEOUT_S:g} s"
                self._stop(SessionLost(text, "stalled"))
                return
            self._armed_at = min(self.core.next_deadline(), self._rest_at)
            self._rearm.clear()
            delay_s = max(self._armed_at - self.context.clock(), 0)
            self._rearm.wait(delay_s if delay_s < math.inf else None)

    def _let_rest(self, now: float) -> None:
        """Let streams give back their greenlets that have been idle for long."""
        self._rest_at = now + REST_S / 2
        rested = 0
        for stream in self.core.streams.values():
            if now - stream.idle_since >= REST_S and isinstance(stream.listener, StreamPump):
                rested += stream.listener.rest()
                if rested == RESTS_AT_A_TIME:
                    self._rest_at = now + REST_PAUSE_S
                    break

    def _task_failed(self, task: str, error: BaseException) -> None:
        self.context.task_failed(f"session {self.name}: {task}", error)
        self._stop(SessionLost(f"internal error in {task}: {type(error).__name__}", "io"))


def _tls_options(tls: RelayTls) -> TlsOptions:
    return TlsOptions(tls.ca_file, tls.cert_file, tls.key_file, tls.server_name)


def _health_policy(checks: HealthChecks) -> HealthPolicy:
    return HealthPolicy(checks.enabled, checks.inactivity_timeout_s, checks.pong_timeout_s)
