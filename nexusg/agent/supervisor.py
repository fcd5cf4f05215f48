"""Keeps one session: a backend at one relay address. Opens it, and opens it again.

How long to wait is the policy's decision (`reconnect.py`); what happened becomes an event here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gevent.event import Event

from nexusg.agent.lifecycle import (
    SessionClosed,
    SessionConnecting,
    SessionFailed,
    SessionLost,
    SessionRejected,
)
from nexusg.agent.reconnect import ReconnectPolicy
from nexusg.agent.session import Session
from nexusg.agent.stats import SessionStats
from nexusg.agent.tasks import contained
from nexusg.errors import NexusgError, Rejected, Retry, TokenError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nexusg.agent.connector import Connector
    from nexusg.agent.context import Context
    from nexusg.agent.tasks import Task
    from nexusg.attest.base import TokenProvider
    from nexusg.config.model import Backend


class Supervisor:
    """One session slot. ``run`` is its greenlet, and ends when the slot is given up or closed."""

    def __init__(
        self,
        context: Context,
        backend: Backend,
        provider: TokenProvider,
        connector: Connector,
        relay: str,
        names: Iterator[str],
        refused: Callable[[], None],
    ) -> None:
        """``names`` gives session names; ``refused`` is called when the slot is given up."""
        self.session: Session | None = None
        self.task: Task | None = None  #: the greenlet of `run`
        self._context = context
        self._backend = backend
        self._provider = provider
        self._connector = connector
        self._relay = relay
        self._names = names
        self._refused = refused
        self._policy = ReconnectPolicy(context.rng, context.clock)
        self._wake = Event()
        self._stopping = False

    def run(self) -> None:
        """Keep a session until `stop`, or until the relay has refused it too often. Blocks."""
        while not self._stopping:
            self._context.emit(SessionConnecting(backend=self._backend.name, relay=self._relay))
            session = self.session = Session(
                self._context,
                self._backend,
                self._provider,
                self._connector,
                self._relay,
                next(self._names),
            )
            delay_s: float | None = 0.0
            try:
                session.run()
            except NexusgError as error:
                delay_s = self._failed(session, error)
            else:
                self._closed(session)
            finally:
                self.session = None
            if delay_s is None:
                self._refused()
                return
            if not self._stopping:
                self._wake.clear()
                self._wake.wait(delay_s)

    def stop(self) -> None:
        """Open no further session; an established one goes on until it is closed. Never blocks."""
        self._stopping = True
        if self.task is not None and not (self.session is not None and self.session.established):
            self.task.kill(block=False)

    def network_changed(self) -> None:
        """Try again now, or find out soon whether the session is still alive. Never blocks."""
        if self.session is not None and self.session.established:
            self.session.probe()
        elif self._policy.wake():
            self._wake.set()

    def stats(self) -> SessionStats:
        """The figures of this slot."""
        session = self.session
        opened = session is not None and session.opened
        accepted_at = session.accepted_at if session is not None else None
        return SessionStats(
            backend=self._backend.name,
            relay=self._relay,
            session=session.name if session is not None and opened else "",
            state=session.core.state.value if session is not None and opened else "disconnected",
            uptime_s=self._context.clock() - accepted_at if accepted_at is not None else 0.0,
            streams=len(session.core.streams) if session is not None and opened else 0,
            unsent_bytes=session.core.wire.pending_bytes if session is not None and opened else 0,
        )

    def _failed(self, session: Session, error: NexusgError) -> float | None:
        """Count and report ``error``; the delay before the next attempt, None to give up."""
        context = self._context
        accepted_s = self._accepted_s(session)
        delay_s = self._policy.delay_s(error, accepted_s)
        where: dict[str, Any] = {"backend": self._backend.name, "relay": self._relay}
        self._count(error)
        if isinstance(error, Rejected):
            contained(self._not_invalidated, self._provider.invalidate)
            limit = context.config.reconnect.give_up_after_rejections
            give_up = 0 < limit <= self._policy.rejections
            context.emit(
                SessionRejected(
                    **where,
                    stage=error.stage,
                    reason=error.reason,
                    attempts=self._policy.rejections,
                    retry_in_s=None if give_up else round(delay_s, 3),
                )
            )
            return None if give_up else delay_s
        if accepted_s is not None:
            context.emit(
                SessionLost(
                    **where,
                    session=session.name,
                    code=error.code,
                    error=str(error),
                    duration_s=round(accepted_s, 3),
                    streams=session.streams_lost,
                    retry_in_s=round(delay_s, 3),
                )
            )
        else:
            context.emit(
                SessionFailed(
                    **where,
                    code=error.code,
                    error=str(error),
                    attempts=self._policy.attempts,
                    retry_in_s=round(delay_s, 3),
                )
            )
        return delay_s

    def _not_invalidated(self, error: BaseException) -> None:
        # Without its text: somebody else's code has written it, and it may quote the token.
        failure = TokenError(f"the provider's invalidate() failed: {type(error).__name__}")
        self._context.task_failed("token provider", failure)

    def _count(self, error: NexusgError) -> None:
        counters = self._context.counters
        if isinstance(error, Rejected):
            counters.rejections += 1
        elif isinstance(error, TokenError):
            counters.token_failures += 1
        else:
            counters.failures += 1
        if getattr(error, "retry", None) is Retry.RATE_LIMITED:
            counters.rate_limited += 1

    def _accepted_s(self, session: Session) -> float | None:
        if session.accepted_at is None:
            return None
        return self._context.clock() - session.accepted_at

    def _closed(self, session: Session) -> None:
        duration_s = self._accepted_s(session) or 0.0
        self._context.emit(SessionClosed(**session.names(), duration_s=round(duration_s, 3)))
