"""What the development relay and the demo share: a secret, and a configuration that fits them."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING

from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HUB_PORT, HTTP_PORT, TLS_PORT = 9443, 8080, 8443

SECRET_FILE = "secret"
HOSTNAME = "demo.localhost"  # RFC 6761 6.3: always this machine; browsers and curl know it, too


def shared_secret(path: Path, *, make: bool) -> str:
    """The secret in ``path``; with ``make`` a new one if it is missing. Raises ConfigError."""
    try:
        if make and not path.exists():
            _write_secret(path)
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError([f"cannot use the secret in {path}: {reason.lower()}"]) from error
    if not secret:
        raise ConfigError([f"cannot use the secret in {path}: it is empty"])
    return secret


def agent_yaml(
    relay: str,
    ca_file: Path | None,
    secret_file: Path,
    targets: Mapping[int, str],
    udp_ports: Sequence[int] = (),
) -> str:
    """A configuration for an agent that offers ``targets``, by public port, as HOSTNAME.

    ``udp_ports`` are those that it claims as a whole.
    """
    routes = ", ".join(f"{{port: {port}}}" for port in udp_ports)
    lines = [
        "backends:",
        "  - name: demo",
        f"    hostnames: [{HOSTNAME}]",
        *([f"    udpRoutes: [{routes}]"] if routes else []),
        f"    nexusAddresses: [{json.dumps(relay)}]",
        f"    attestation: {{hmacSecretFile: {_text(secret_file)}}}",
        *([f"    tls: {{caFile: {_text(ca_file)}}}"] if ca_file else []),
        "    portMappings:",
        *(f"      {port}: {{default: {json.dumps(to)}}}" for port, to in targets.items()),
    ]
    return "\n".join(lines) + "\n"


def _text(path: Path) -> str:
    """An absolute path as YAML: the configuration may be used from another folder."""
    return json.dumps(str(path.absolute()), ensure_ascii=False)


def _write_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
