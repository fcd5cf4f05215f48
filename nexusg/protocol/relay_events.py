"""What a relay session tells its shell. Streams tell their listener instead (`relay_stream.py`)."""

from __future__ import annotations

import dataclasses

from nexusg.protocol.events import Closed, Ignored


@dataclasses.dataclass(frozen=True, slots=True)
class TokenReceived:
    """A token of ``stage``: judge it. Its repr does not show it.

    After "handshake" call ``challenge`` or ``reject``, after "attest" ``accept`` or ``reject``;
    until then nothing more is read. After "reauth" go on, or cut the connection.
    """

    stage: str
    token: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenOverdue:
    """The token of ``stage`` did not come within ``seconds``: end the session."""

    stage: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class AgentSilent:
    """No message and no pong for ``seconds``: cut the connection."""

    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class OutboundRequested:
    """The agent asks for a connection to ``target_addr``: answer with an outbound_result."""

    client_id: bytes
    target_addr: str


RelayEvent = TokenReceived | TokenOverdue | AgentSilent | OutboundRequested | Closed | Ignored
