"""What the commands say about a destination beside the names of its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from nexusg.config.model import Destination


def remarks(to: Destination) -> list[str]:
    """What is out of the ordinary."""
    found = [f"PROXY protocol {to.proxy_protocol}"] if to.proxy_protocol != "off" else []
    if to.tls_terminate:
        found.append(f"TLS ended here, with {to.tls_terminate.cert_file}")
    return found


def line(to: Destination) -> str:
    """The targets with all remarks."""
    said = ", ".join(remarks(to))
    return f"{to.name} ({said})" if said else to.name
