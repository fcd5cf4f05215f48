"""Gets tokens for one device: a nonce, a quote over it, a request; and again when that is no use.

TPM.md, "Recommended design", 3 and 4. Every attempt has a nonce and a quote of its own, because
every outcome uses the nonce up. It must not know backends, nor keep any token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from gevent.lock import Semaphore

from nexusg.attest.base import Stage, Token, unverified_claims
from nexusg.attest.tpm.enrolment import REFUSED_HOLD_S, passing
from nexusg.attest.tpm.namek import NonceExpired, Proof
from nexusg.attest.tpm.notices import Figures, Issued, Refused
from nexusg.attest.tpm.pace import Pace, Timing, again
from nexusg.errors import AuthorizerError, Retry, TokenError, TokenTimeout, TpmError
from nexusg.transport.deadline import Deadline, limit


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.attest.base import TokenRequest
    from nexusg.attest.tpm.device import PytssDevice
    from nexusg.attest.tpm.enrolment import Enroller
    from nexusg.attest.tpm.namek import Device, NamekClient
    from nexusg.attest.tpm.notices import Notice
    from nexusg.attest.tpm.state import Enrolment

T = TypeVar("T")


#: For one token. The relay waits 10 s for an attest token, and as long as its grace, 30 s with
#: namek, for a reauth token; a handshake token is fetched before dialling.
LIMITS_S = {Stage.HANDSHAKE: 15.0, Stage.ATTEST: 8.0, Stage.REAUTH: 25.0}
#: For what the device asks about itself.
ME_LIMIT_S = 15.0
#: How often an expired nonce is replaced at once.
FRESH_NONCES = 2
#: Attempts at a time. namek's limiter takes ten at once from one device.
AT_ONCE = 8
#: After a refusal nobody asks again for this long: a reauth would each second.
REFUSED_QUIET_S = 60.0


class TokenIssuer:
    """A TokenProvider for one device that keeps nothing. ``notify`` must not block."""

    def __init__(
        self,
        enroller: Enroller,
        device: PytssDevice,
        client: NamekClient,
        notify: Callable[[Notice], object],
        timing: Timing,
    ) -> None:
        self._enroller = enroller
        self._device = device
        self._client = client
        self._notify = notify
        self._timing = timing
        self._slots = Semaphore(AT_ONCE)
        self._refused: AuthorizerError | None = None
        self._quiet_until = -math.inf
        self._figures = Figures()

    def get_token(self, request: TokenRequest, timeout_s: float) -> Token:
        """See TokenProvider. Blocks."""
        stage, started = request.stage, self._timing.clock()

        def ask(proof: Proof, pace: Pace) -> Token:
            text = self._client.token(stage.value, request.nonce, proof, pace.step_s())
            return checked(text, request.nonce)

        token = self._limited(min(timeout_s, LIMITS_S[stage]), f"no {stage.value} token", ask)
        self._issued(stage, token, started)
        return token

    def invalidate(self) -> None:
        """Nothing is kept."""

    def enroll(self, timeout_s: float) -> Enrolment:
        """Have the device enrolled, if it is not. Blocks. Raises TokenError."""
        late = TokenTimeout(f"the enrolment was not over within {timeout_s:g} s")
        try:
            with limit(Deadline(max(timeout_s, 0)), late):
                return self._enroller.ensure(Pace(self._timing, timeout_s))
        except TokenError as error:
            self._figures.last_error = str(error)
            raise

    def me(self, timeout_s: float = ME_LIMIT_S) -> Device:
        """What the authorizer knows of the device now; remembered. Blocks. Raises TokenError."""

        def ask(proof: Proof, pace: Pace) -> Device:
            found = self._client.me(proof, pace.step_s())
            self._enroller.update(found, pace)
            return found

        return self._limited(timeout_s, "no answer about this device", ask)

    def figures(self) -> Figures:
        """How it is going."""
        known, figures = self._enroller.current, self._figures
        figures.enrolments = self._enroller.count
        if known is not None:
            figures.device_id, figures.hostname = known.device_id, known.hostname
            figures.identity_class = known.identity_class
        return figures

    # Attempts --------------------------------------------------------------------------------

    def _limited(self, limit_s: float, what: str, ask: Callable[[Proof, Pace], T]) -> T:
        limit_s = max(limit_s, 0.0)
        # Requests have limits of their own, which come first.
        late = TokenTimeout(f"{what} within {limit_s:g} s: the TPM is slow or busy")
        try:
            with limit(Deadline(limit_s), late):
                answer = self._repeat(Pace(self._timing, limit_s), ask)
        except TokenError as error:
            self._figures.last_error = str(error)
            raise
        self._figures.last_error = ""
        self._refused = None
        return answer

    def _repeat(self, pace: Pace, ask: Callable[[Proof, Pace], T]) -> T:
        if self._refused is not None and self._timing.clock() < self._quiet_until:
            raise again(self._refused)
        enrolment = self._enroller.ensure(pace)
        fresh = FRESH_NONCES
        cleared = False
        while True:
            try:
                return self._attempt(enrolment, pace, ask)
            except NonceExpired:
                if fresh == 0 or pace.step_s() == 0:
                    raise
                fresh -= 1
            except AuthorizerError as error:
                if error.status == 401:
                    enrolment = self._enroller.renew(enrolment, error, pace)
                elif passing(error):
                    pace.back_off(error)
                else:
                    self._note_refusal(error)
                    raise
            except TpmError as error:
                if error.code == "tpm_cleared" and not cleared:
                    cleared = True
                    enrolment = self._enroller.renew(enrolment, error, pace)
                elif passing(error):
                    pace.back_off(error)
                else:
                    raise

    def _attempt(self, enrolment: Enrolment, pace: Pace, ask: Callable[[Proof, Pace], T]) -> T:
        if not self._slots.acquire(timeout=pace.step_s()):
            raise TokenTimeout(f"waited {pace.limit_s:g} s for others that want a token")
        try:
            nonce = self._client.nonce(pace.step_s())
            begun = self._timing.clock()
            quote = self._device.quote(nonce.raw)  # no PCR, or namek refuses it
            self._figures.quote_s = self._timing.clock() - begun
            return ask(Proof(enrolment.device_id, nonce.text, quote), pace)
        finally:
            self._slots.release()

    def _note_refusal(self, error: AuthorizerError) -> None:
        if error.retry is not Retry.BARRED:
            return
        self._quiet_until = self._timing.clock() + REFUSED_QUIET_S
        if self._refused is None:
            self._notify(Refused(error.status or 0, str(error), REFUSED_HOLD_S))
        self._refused = error

    def _issued(self, stage: Stage, token: Token, started: float) -> None:
        figures, expires_in_s = self._figures, None
        figures.tokens += 1
        if token.expires_at is not None:
            figures.token_expires_at = token.expires_at
            expires_in_s = round(token.expires_at - self._timing.wall(), 3)
        took_s = round(self._timing.clock() - started, 3)
        self._notify(Issued(stage.value, took_s, round(figures.quote_s, 3), expires_in_s))


def checked(text: str, session_nonce: str) -> Token:
    """The token, if it is one, and for that session (TPM.md A.1). Raises AuthorizerError.

    Only the relay can check its signature.
    """
    claims = unverified_claims(text.strip())
    if not claims:
        raise AuthorizerError("what the authorizer sent as a token is none")
    if (claims.get("session_nonce") or "") != session_nonce:
        raise AuthorizerError("the authorizer's token is for another session than this one")
    return Token.parse(text)
