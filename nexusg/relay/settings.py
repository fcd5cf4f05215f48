"""What the development relay can be told: its settings, and the bad habits tests ask of it."""

from __future__ import annotations

import dataclasses
import enum
import random
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping


#: As long as the real relay waits for a user who says nothing (PROTOCOL.md section 14).
SNIFF_TIMEOUT_S = 30.0
#: Where the development certificates are kept unless told otherwise.
CERTIFICATE_FOLDER = Path("nexusg-dev")


class Ending(enum.Enum):
    """How the relay ends a session that it had accepted."""

    EOF = "eof"  #: without a close frame, as the real relay does (PROTOCOL.md section 1.4)
    CLOSE_FRAME = "close frame"  #: 1001, then end of file
    RESET = "reset"  #: a TCP reset


@dataclasses.dataclass(frozen=True, slots=True)
class Habits:
    """What goes wrong with real relays, or could, each behind a switch. All are off by default."""

    no_close_frame: bool = False  #: a rejection is a bare end of file (section 1.4)
    hang_before_challenge: bool = False  #: the handshake token is never answered
    silent: bool = False  #: writes nothing more, but goes on reading
    ignore_pings: bool = False  #: no pongs for WebSocket pings
    ignore_health_pings: bool = False  #: no pong_client
    lose_disconnects: bool = False  #: the agent is not told that a user has gone (section 4.4)
    record_delay_s: float = 0.0  #: from a connect message to knowing its stream (section 5.4)
    lose_first_grant: bool = False  #: of the agent, on each stream (section 5.4)
    never_grant: bool = False  #: no credits beyond those in the connect
    ending: Ending = Ending.EOF


def _jitter(span_s: float) -> float:
    return random.uniform(0, span_s)


@dataclasses.dataclass(frozen=True, slots=True)
class RelayConfig:
    """Settings of a `DevRelay`. Port 0 means any free one. Durations in seconds."""

    secret: str = dataclasses.field(repr=False)  #: agents sign with it; taken as it is, untrimmed
    hub: tuple[str, int] = ("127.0.0.1", 0)  #: where agents connect
    public_ports: tuple[int, ...] = (0,)  #: where users connect
    public_udp_ports: tuple[int, ...] = ()
    public_host: str = "127.0.0.1"
    tls: bool = True  #: of the hub; False is plain ws
    certificates: Path = CERTIFICATE_FOLDER  #: made there when missing or old
    context: ssl.SSLContext | None = None  #: used instead of ``certificates``
    idle_timeout_s: float = 0.0  #: of TCP users, 0 is none (section 6.7)
    udp_max_datagram_bytes: int = 2048  #: both ways (section 5.7)
    #: The kernel's send buffer for users. A small one makes what a slow user loses predictable.
    user_buffer_bytes: int | None = None
    sniff_timeout_s: float = SNIFF_TIMEOUT_S  #: for users that wait for the server's first word
    allowed_tcp_ports: tuple[int, ...] | None = None  #: for claims; None: ``public_ports``
    allowed_udp_ports: tuple[int, ...] | None = None  #: None: ``public_udp_ports``
    allow_outbound: bool = False
    allowed_outbound_ports: tuple[int, ...] = ()  #: empty: any
    max_outbound: int = 100  #: of each agent, with those being dialled; below 0 there is no limit
    outbound_dial_timeout_s: float = 10.0
    outbound_idle_timeout_s: float = 0.0  #: without a word of the service, 0 is none (section 6.7)
    lanes: int | None = None  #: 256 bounds the queues to an agent as the real relay does (4.4)
    habits: Habits = Habits()
    #: Added to the interval of re-attestations, made from a fifth of it (section 3.1).
    jitter: Callable[[float], float] = _jitter
    on_log: Callable[[str, Mapping[str, object]], None] | None = None  #: instead of logging
