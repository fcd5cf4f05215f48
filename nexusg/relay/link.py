"""One agent's connection after the upgrade: tokens, registration, and its reader and writer.

The core decides what is right and what is said; here are the socket, the clock and the pools.
"""

from __future__ import annotations

import base64
import collections
import os
import struct
import time
from typing import TYPE_CHECKING

import gevent
from gevent import socket
from gevent.event import AsyncResult, Event

from nexusg.errors import RemoteProtocolError
from nexusg.protocol.events import Closed
from nexusg.protocol.relay_events import (
    AgentSilent,
    OutboundRequested,
    TokenOverdue,
    TokenReceived,
)
from nexusg.protocol.relay_session import REAUTH_GRACE_S, RelaySession
from nexusg.protocol.wsframes import GOING_AWAY
from nexusg.relay import verify
from nexusg.relay.claims import Claims, Refused
from nexusg.relay.outbound import Outbound
from nexusg.relay.settings import Ending
from nexusg.relay.sockets import linger


if TYPE_CHECKING:
    from nexusg.agent.tasks import Task
    from nexusg.protocol.relay_events import RelayEvent
    from nexusg.relay.shared import Shared


#: For each write (PROTOCOL.md section 1.3).
WRITE_TIMEOUT_S = 10.0
#: The longest sleep of the writer; the core's deadlines may be infinitely far.
MAX_WAIT_S = 60.0
#: Users stop being read while more than this waits for the agent.
CONGESTED_BYTES = 256 * 1024
#: Reads in a row before other greenlets have a turn: a socket with data never waits.
READS_PER_TURN = 4


class Link:
    """One agent. ``run`` is its whole life; everything else may be called by others meanwhile."""

    def __init__(self, shared: Shared, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self.claims = Claims()
        self.session = RelaySession(now=time.monotonic(), lanes=shared.config.lanes)
        self._shared = shared
        self._outbound = Outbound(shared, self)
        self._sock = sock
        self._nonce = ""
        self._wake = Event()
        self._room = Event()
        self._renewed = Event()
        self._over: AsyncResult[Ending] = AsyncResult()
        self._tasks: list[Task] = []
        self._finishing = False  # the connection ends when the output is written
        self.adopt_habits()

    def run(self, early: bytes = b"") -> None:
        """Serve the agent until its connection ends; ``early`` is what it has sent already.

        The caller closes the socket. Blocks.
        """
        tasks = self._shared.tasks
        self._tasks.append(tasks.spawn("agent reader", self._guard, self._read, early))
        self._tasks.append(tasks.spawn("agent writer", self._guard, self._write))
        try:
            ending = self._over.get()
        finally:
            gevent.killall(self._tasks)
            self._leave()
            self.session.lost()
        if ending is Ending.RESET:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            linger(self._sock)

    def flush(self) -> None:
        """There may be something to write."""
        self._wake.set()

    @property
    def congested(self) -> bool:
        """Whether so much waits for the agent that users should not be read."""
        return self.session.wire.pending_bytes > CONGESTED_BYTES

    def wait_room(self) -> None:
        """Wait until it is no longer congested. Blocks."""
        while self.congested:
            self._room.clear()
            self._room.wait()

    def adopt_habits(self) -> None:
        """The habits have changed."""
        self.session.answers_pings = not self._shared.habits.ignore_pings
        self.session.answers_health = not self._shared.habits.ignore_health_pings

    def end(self) -> None:
        """End the session, in the way that the habits say."""
        ending = self._shared.habits.ending
        if ending is Ending.CLOSE_FRAME:
            self.session.close(GOING_AWAY)
            self._finish()
        else:
            self._over.set(ending)

    # Reading and writing ---------------------------------------------------------------------

    def _guard(self, function: object, *args: object) -> None:
        assert callable(function)
        try:
            function(*args)
        except OSError:
            self._over.set(Ending.EOF)

    def _read(self, early: bytes) -> None:
        session, recv_into = self.session, self._sock.recv_into
        if early:
            session.buffer()[: len(early)] = early
        count = len(early) or recv_into(session.buffer())
        reads = 0
        while count:
            try:
                self._act(session.receive(count, time.monotonic()))
            except RemoteProtocolError as error:
                self._shared.log("agent.protocol_error", agent=self.peer, error=error)
                session.fail(error)
                self._finish()
                return
            if session.pending:
                self._wake.set()
            reads += 1
            if reads % READS_PER_TURN == 0:
                gevent.sleep(0)
            count = recv_into(session.buffer())
        self._over.set(Ending.EOF)

    def _write(self) -> None:
        session = self.session
        while not (self._finishing and not session.pending):
            wait_s = min(session.next_deadline() - time.monotonic(), MAX_WAIT_S)
            self._wake.wait(max(wait_s, 0.0))
            self._wake.clear()
            now = time.monotonic()
            if session.next_deadline() <= now:
                self._act(session.tick(now))
            while output := session.take_output():
                if not self._shared.habits.silent:
                    self._send(output)
                if not self.congested:
                    self._room.set()
        self._over.set(Ending.EOF)

    def _send(self, output: bytes) -> None:
        with gevent.Timeout(WRITE_TIMEOUT_S, TimeoutError("the agent reads nothing")):
            sent = self._sock.send(output)
            while sent < len(output):
                sent += self._sock.send(memoryview(output)[sent:])

    # What the core says ----------------------------------------------------------------------

    def _act(self, events: list[RelayEvent]) -> None:
        queue = collections.deque(events)
        while queue:
            event = queue.popleft()
            if isinstance(event, TokenReceived):
                queue.extend(self._judge(event.stage, event.token))
            elif isinstance(event, TokenOverdue):
                self._overdue(event.stage)
            elif isinstance(event, AgentSilent):
                self._shared.log("agent.silent", agent=self.peer, seconds=event.seconds)
                self._over.set(Ending.EOF)
            elif isinstance(event, Closed):
                self._finish()
            elif isinstance(event, OutboundRequested):
                self._outbound.request(event.client_id, event.target_addr)
            else:
                self._shared.log("agent.ignored", agent=self.peer, what=event.what)

    def _overdue(self, stage: str) -> None:
        if stage == "attest":  # the real relay cuts its own close frame short (section 1.4)
            self._shared.log("agent.refused", agent=self.peer, stage=stage, reason="i/o timeout")
            self._over.set(Ending.RESET)
        else:
            name = "stage0" if stage == "handshake" else stage
            self._refuse(stage, f"failed to read {name} token: i/o timeout")

    def _judge(self, stage: str, token: str) -> list[RelayEvent]:
        rules, now = self._shared.rules, time.time()
        try:
            if stage == "handshake":
                self.claims = verify.handshake(token, rules, now)
                return self._challenge()
            if stage == "attest":
                self.claims = verify.attest(token, rules, now, self._nonce, self.claims)
                return self._accept()
            self.claims = verify.reauth(token, rules, now, self._nonce, self.claims)
        except Refused as error:
            self._refuse(stage, str(error))
            return []
        self._shared.log("agent.renewed", agent=self.peer)
        self._renewed.set()
        return []

    def _challenge(self) -> list[RelayEvent]:
        if self._shared.habits.hang_before_challenge:
            while self._sock.recv(65536):
                pass
            return []
        self._nonce = _new_nonce()
        return self.session.challenge(self._nonce, time.monotonic())

    def _accept(self) -> list[RelayEvent]:
        shared, claims = self._shared, self.claims
        shared.pools.add(self, claims.names, claims.weight)
        shared.links.append(self)
        shared.log("agent.registered", agent=self.peer, names=claims.names, weight=claims.weight)
        shared.changed.set()
        if claims.reauth_interval_s > 0:
            self._tasks.append(shared.tasks.spawn("agent reauth", self._reauth))
        return self.session.accept(time.monotonic())

    def _refuse(self, stage: str, reason: str) -> None:
        self._shared.log("agent.refused", agent=self.peer, stage=stage, reason=reason)
        if stage == "reauth":
            self.end()
        elif not self._shared.habits.no_close_frame and self.session.reject(reason):
            self._finish()
        else:
            self._over.set(Ending.EOF)

    def _reauth(self) -> None:
        """Challenge again and again, until a token asks for no more (PROTOCOL.md section 3.1)."""
        while (interval_s := self.claims.reauth_interval_s) > 0:
            gevent.sleep(interval_s + self._shared.config.jitter(interval_s / 5))
            self._nonce = _new_nonce()
            self._renewed.clear()
            claimed_s = self.claims.reauth_grace_s
            grace_s = claimed_s if claimed_s > 0 else REAUTH_GRACE_S
            self.session.reauth_challenge(self._nonce, time.monotonic(), grace_s)
            self._wake.set()
            self._renewed.wait()

    def _finish(self) -> None:
        self._finishing = True
        self._wake.set()

    def _leave(self) -> None:
        shared = self._shared
        if self in shared.links:
            shared.pools.remove(self)
            shared.links.remove(self)
            shared.log("agent.gone", agent=self.peer)
            shared.changed.set()


def _new_nonce() -> str:
    """32 random bytes as 43 characters (PROTOCOL.md section 2.1)."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
