"""The agent's side of proving itself: two tokens, acceptance, re-attestation (PROTOCOL.md 2, 3).

Nothing announces acceptance. A ping goes out right behind the attest token; the relay does not
read again until the backend is registered, so the first pong or binary message is the proof.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexusg.errors import RemoteProtocolError
from nexusg.protocol.events import Accepted, ChallengeReceived, Ignored, ReauthRequested
from nexusg.protocol.messages import (
    HANDSHAKE_CHALLENGE,
    REAUTH_CHALLENGE,
    Malformed,
    decode_challenge,
)
from nexusg.protocol.states import SESSION, SessionInput, SessionState, advance


if TYPE_CHECKING:
    from nexusg.protocol.events import Event
    from nexusg.protocol.wire import Wire


#: The relay waits 10 s for a token and validates for at most 10 s (PROTOCOL.md section 2.2).
CHALLENGE_TIMEOUT_S = 15.0
ACCEPTANCE_TIMEOUT_S = 15.0

_ESTABLISHED = (SessionState.OPEN, SessionState.DRAINING)


class Handshake:
    """Owns the session's state. ``deadline`` is when the relay's next step is overdue, or None."""

    __slots__ = ("_nonce", "_wire", "accepted", "deadline", "stage", "state")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._nonce = ""  # of the newest unanswered re-attestation
        self.state = SessionState.NEW
        self.deadline: float | None = None
        self.stage = ""  #: of the newest token sent until acceptance
        self.accepted = False  #: stays true when the session ends

    @property
    def established(self) -> bool:
        """Whether the relay has accepted and neither side has closed."""
        return self.state in _ESTABLISHED

    @property
    def overdue(self) -> tuple[str, float]:
        """What the relay owes while ``deadline`` is set, and how long it had (seconds)."""
        if self.state is SessionState.ATTESTED:
            return "acceptance", ACCEPTANCE_TIMEOUT_S
        return "challenge", CHALLENGE_TIMEOUT_S

    def step(self, step: SessionInput) -> None:
        """Move the state. Raises LocalProtocolError."""
        self.state = advance(SESSION, self.state, step)

    def send_handshake_token(self, token: str, now: float) -> None:
        """Stage 0."""
        self.step(SessionInput.HANDSHAKE_TOKEN)
        self._wire.send_text(token)
        self.stage = "handshake"
        self.deadline = now + CHALLENGE_TIMEOUT_S

    def send_attest_token(self, token: str, now: float) -> None:
        """Stage 1, with the ping whose pong proves acceptance."""
        self.step(SessionInput.ATTEST_TOKEN)
        self._wire.send_text(token)
        self._wire.send_ping(b"accepted?")
        self.stage = "attest"
        self.deadline = now + ACCEPTANCE_TIMEOUT_S

    def send_reauth_token(self, nonce: str, token: str) -> bool:
        """Answer a re-attestation; False, and nothing is sent, if ``nonce`` is not the newest."""
        if not nonce or nonce != self._nonce or not self.established:
            return False
        self.step(SessionInput.REAUTH_TOKEN)
        self._nonce = ""
        self._wire.send_text(token)
        return True

    def receive_text(self, payload: memoryview | bytes) -> Event:
        """A text message: the challenge, or a request to re-attest. Raises RemoteProtocolError."""
        try:
            challenge = decode_challenge(payload)
        except Malformed as error:
            if self.established:
                return Ignored(str(error))
            raise RemoteProtocolError(f"bad challenge: {error}") from error
        if self.established:
            if challenge.kind != REAUTH_CHALLENGE:
                return Ignored("handshake challenge in an open session")
            self.step(SessionInput.REAUTH_CHALLENGE)
            self._nonce = challenge.nonce
            return ReauthRequested(challenge.nonce)
        if challenge.kind != HANDSHAKE_CHALLENGE or self.state is not SessionState.IDENTIFIED:
            raise RemoteProtocolError(f"{challenge.kind} while the session is {self.state.value}")
        self.step(SessionInput.CHALLENGE)
        self.deadline = None  # the next step is ours
        return ChallengeReceived(challenge.nonce)

    def receive_proof(self) -> Accepted | None:
        """A pong or a binary message: acceptance, if it is still to be proven."""
        if self.state is not SessionState.ATTESTED:
            return None
        self.step(SessionInput.ACCEPTANCE)
        self.accepted = True
        self.deadline = None
        return Accepted()
