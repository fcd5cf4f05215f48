"""Answers the relay's requests to re-attest, beside the traffic (PROTOCOL.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from nexusg.agent.lifecycle import ReauthCompleted, ReauthFailed, ReauthStarted
from nexusg.attest.base import Stage, number, unverified_claims
from nexusg.attest.select import request_for
from nexusg.errors import TokenError


if TYPE_CHECKING:
    from nexusg.agent.session import Session
    from nexusg.agent.tasks import Task


#: The relay's grace when the token asks for none; it is not announced.
DEFAULT_GRACE_S = 10.0
#: The relay measures until it has received the token.
TRAVEL_S = 0.5
#: Between a failure and the next try, and the least that is worth a try.
RETRY_S = 1.0


class Reauth:
    """Re-attestation of one session. Only the newest challenge is answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._task: Task | None = None
        self._grace_s = DEFAULT_GRACE_S

    def attested(self, token: str) -> None:
        """The token that the relay accepted last decides how long it will wait."""
        configured_s = self._session.backend.attestation.reauth_grace_s
        claimed_s = number(unverified_claims(token), "reauth_grace_seconds") or 0
        # What is configured is for a token that only the relay can read.
        self._grace_s = next((s for s in (claimed_s, configured_s) if s > 0), DEFAULT_GRACE_S)

    def challenged(self, nonce: str) -> None:
        """The relay has asked: obtain a token in a greenlet of its own."""
        if self._task is not None:
            self._task.kill(block=False)
        self._task = self._session.tasks.spawn("reauth", self._answer, nonce)

    def _answer(self, nonce: str) -> None:
        session = self._session
        context = session.context
        started = context.clock()
        deadline = started + self._grace_s - TRAVEL_S
        context.emit(ReauthStarted(**session.names()))
        attempts = 0
        while True:
            attempts += 1
            try:
                request = request_for(session.backend, Stage.REAUTH, nonce)
                token = session.provider.get_token(request, deadline - context.clock())
                break
            except TokenError as error:
                left_s = deadline - context.clock()
                final = left_s <= 2 * RETRY_S
                context.counters.token_failures += 1
                context.emit(
                    ReauthFailed(
                        **session.names(), error=str(error), attempts=attempts, final=final
                    )
                )
                if final:
                    return
                gevent.sleep(RETRY_S)
        if session.core.send_reauth_token(nonce, token.value):
            session.flush()
            self.attested(token.value)
            took_s = round(context.clock() - started, 3)
            context.emit(ReauthCompleted(**session.names(), took_s=took_s, attempts=attempts))
