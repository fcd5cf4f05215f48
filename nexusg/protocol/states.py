"""The two state tables: everything that decides which step may follow which.

Two rules. Everything that affects the state of a session or a stream lives here; and this file
does not know which role we play: inputs are steps of the protocol, not directions.

*Theory of operation.* A session proves itself in two stages, is open, may be drained, and is
closed by a closing handshake or by the loss of its connection. A stream is opened by the relay
while its target is still being dialled, or asked for by us, and then the relay dials; from then on
either end may finish. When the local end finishes first, the stream is FLUSHING until the relay has
acknowledged the last frame; when the other one does, it is DELIVERING until the local end has taken
the last byte.

Every (state, input) pair either has a row or raises LocalProtocolError. A peer's message that has
no row is turned into RemoteProtocolError where its bytes enter.
"""

from __future__ import annotations

import enum
from typing import TypeVar

from nexusg.errors import LocalProtocolError


class SessionState(enum.Enum):
    """The life of one WebSocket (PROTOCOL.md section 2.1)."""

    NEW = "new"  #: upgraded; nothing sent
    IDENTIFIED = "identified"  #: the handshake token has passed
    CHALLENGED = "challenged"  #: the challenge has passed
    ATTESTED = "attested"  #: the attest token has passed; acceptance is not proven
    OPEN = "open"
    DRAINING = "draining"  #: existing streams go on, new ones are refused
    CLOSING = "closing"  #: our close frame is out
    CLOSED = "closed"


class SessionInput(enum.Enum):
    """What moves a session."""

    HANDSHAKE_TOKEN = "handshake token"
    CHALLENGE = "challenge"
    ATTEST_TOKEN = "attest token"
    ACCEPTANCE = "acceptance"
    REAUTH_CHALLENGE = "reauth challenge"
    REAUTH_TOKEN = "reauth token"
    DRAIN = "drain"
    SEND_CLOSE = "close frame sent"
    RECV_CLOSE = "close frame received"
    LOST = "connection lost"


class StreamState(enum.Enum):
    """The life of one stream at the agent (PROTOCOL.md section 6)."""

    OPENING = "opening"  #: one end is connected, the other is being dialled; data is kept
    OPEN = "open"
    FLUSHING = "flushing"  #: the local service has finished; the relay's acknowledgements are due
    DELIVERING = "delivering"  #: the user has gone; buffered bytes still go to the local service
    CLOSED = "closed"


class StreamInput(enum.Enum):
    """What moves a stream."""

    DIALLED = "dialled"
    REFUSED = "refused by the relay"
    LOCAL_EOF = "local end of file"
    FLUSHED = "flushed"
    RECV_DISCONNECT = "disconnect received"
    DELIVERED = "delivered"
    ABORT = "abort"
    LOST = "session lost"


_S, _I = SessionState, SessionInput

SESSION: dict[tuple[SessionState, SessionInput], SessionState] = {
    (_S.NEW, _I.HANDSHAKE_TOKEN): _S.IDENTIFIED,
    (_S.IDENTIFIED, _I.CHALLENGE): _S.CHALLENGED,
    (_S.CHALLENGED, _I.ATTEST_TOKEN): _S.ATTESTED,
    (_S.ATTESTED, _I.ACCEPTANCE): _S.OPEN,
    (_S.OPEN, _I.REAUTH_CHALLENGE): _S.OPEN,
    (_S.OPEN, _I.REAUTH_TOKEN): _S.OPEN,
    (_S.OPEN, _I.DRAIN): _S.DRAINING,
    (_S.DRAINING, _I.REAUTH_CHALLENGE): _S.DRAINING,
    (_S.DRAINING, _I.REAUTH_TOKEN): _S.DRAINING,
    (_S.DRAINING, _I.DRAIN): _S.DRAINING,
    (_S.CLOSING, _I.RECV_CLOSE): _S.CLOSED,
    (_S.CLOSING, _I.SEND_CLOSE): _S.CLOSING,
    (_S.CLOSED, _I.LOST): _S.CLOSED,
    **{(state, _I.SEND_CLOSE): _S.CLOSING for state in list(_S)[:6]},
    **{(state, _I.RECV_CLOSE): _S.CLOSED for state in list(_S)[:6]},
    **{(state, _I.LOST): _S.CLOSED for state in list(_S)[:7]},
}

_T, _J = StreamState, StreamInput

STREAM: dict[tuple[StreamState, StreamInput], StreamState] = {
    (_T.OPENING, _J.DIALLED): _T.OPEN,
    (_T.OPENING, _J.REFUSED): _T.CLOSED,
    (_T.OPENING, _J.RECV_DISCONNECT): _T.DELIVERING,
    (_T.OPEN, _J.LOCAL_EOF): _T.FLUSHING,
    (_T.OPEN, _J.RECV_DISCONNECT): _T.DELIVERING,
    (_T.FLUSHING, _J.FLUSHED): _T.CLOSED,
    (_T.FLUSHING, _J.RECV_DISCONNECT): _T.DELIVERING,
    (_T.DELIVERING, _J.DIALLED): _T.DELIVERING,
    (_T.DELIVERING, _J.DELIVERED): _T.CLOSED,
    **{(state, _J.ABORT): _T.CLOSED for state in list(_T)[:4]},
    **{(state, _J.LOST): _T.CLOSED for state in list(_T)[:4]},
}

_State = TypeVar("_State", SessionState, StreamState)
_Input = TypeVar("_Input", SessionInput, StreamInput)


def advance(table: dict[tuple[_State, _Input], _State], state: _State, step: _Input) -> _State:
    """The state after ``step``. Raises LocalProtocolError when the table has no such row."""
    following = table.get((state, step))
    if following is None:
        kind = type(state).__name__.removesuffix("State").lower()
        raise LocalProtocolError(f"{step.value} is not possible while the {kind} is {state.value}")
    return following


def diagram(table: dict[tuple[_State, _Input], _State]) -> str:
    """The table as a Mermaid state diagram; docs/states.md holds what this returns."""
    lines = ["stateDiagram-v2"]
    for (state, step), following in table.items():
        lines.append(f"    {state.value} --> {following.value}: {step.value}")
    return "\n".join(lines)
