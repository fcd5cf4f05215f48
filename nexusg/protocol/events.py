"""What an agent session tells its shell. Streams tell their listener instead (`stream.py`)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class ChallengeReceived:
    """The relay wants an attest token for ``nonce``: call ``send_attest_token``."""

    nonce: str


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """The relay has registered the backend: the acceptance is proven (PROTOCOL.md section 2.3)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReauthRequested:
    """The relay wants a fresh token for ``nonce``: call ``send_reauth_token``."""

    nonce: str


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The relay's close frame. The answer to it is in the output; then close the connection."""

    code: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ignored:
    """A message that was counted and ignored; ``what`` never quotes it."""

    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class HandshakeStalled:
    """The relay took longer than ``seconds`` for ``step``: give up the session."""

    step: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class RelaySilent:
    """Nothing was heard from the relay for ``seconds``: give up the session."""

    seconds: float


Event = (
    ChallengeReceived
    | Accepted
    | ReauthRequested
    | Closed
    | Ignored
    | HandshakeStalled
    | RelaySilent
)
