"""Who is to be connected to a local service (PROTOCOL.md section 13). It knows no streams."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A user of the relay who is to be connected to a local service."""

    backend: str  #: name of the backend in the configuration
    client_id: str  #: the stream's ID, a canonical UUID
    hostname: str  #: normalised: lower case, without a trailing dot, IDNs in their ASCII form
    original_hostname: str  #: as the relay sent it; ``tcp:<port>`` for a port claim
    port: int  #: the relay's public port
    client_ip: str  #: the user's address, empty if the relay did not tell
    client_port: int  #: the user's port, 0 if the relay did not tell
    is_tls: bool  #: whether the user began with a TLS handshake
    transport: str  #: ``tcp`` or ``udp``
