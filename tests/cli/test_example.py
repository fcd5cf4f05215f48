from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from nexusg.cli import example
from nexusg.config.loader import loads
from nexusg.config.model import PortMapping
from nexusg.errors import ConfigError


if TYPE_CHECKING:
    from pathlib import Path


def test_a_missing_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / example.SECRET_FILE
    secret = example.shared_secret(path, make=True)
    assert len(secret) >= 32
    assert example.shared_secret(path, make=True) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file or directory"), (b" \n", "it is empty"), (b"\xff", "is not utf-8 text")],
)
def test_a_secret_that_cannot_be_used(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"secret: {reason}"):
        example.shared_secret(path, make=False)


def test_the_configuration_can_be_loaded(tmp_path: Path) -> None:
    secret_file, ca_file = tmp_path / "se cret", tmp_path / "ca.pem"
    secret = example.shared_secret(secret_file, make=True)
    ca_file.touch()
    targets = {8080: "127.0.0.1:1", 8443: "127.0.0.1:2"}
    loaded = loads(example.agent_yaml("wss://127.0.0.1:9/connect", ca_file, secret_file, targets))
    [backend] = loaded.config.backends
    assert loaded.warnings == ()
    assert backend.hostnames == (example.HOSTNAME,)
    assert backend.nexus_addresses == ("wss://127.0.0.1:9/connect",)
    assert backend.attestation.hmac_secret is not None
    assert backend.attestation.hmac_secret.reveal() == secret
    assert backend.tls.ca_file == str(ca_file)
    expected = {port: PortMapping(default=target) for port, target in targets.items()}
    assert backend.port_mappings == expected


def test_udp_ports_are_claimed(tmp_path: Path) -> None:
    example.shared_secret(tmp_path / "secret", make=True)
    targets = {53: "127.0.0.1:1", 54: "127.0.0.1:2"}
    text = example.agent_yaml("ws://127.0.0.1:9/", None, tmp_path / "secret", targets, [53, 54])
    loaded = loads(text)
    assert loaded.warnings == ()
    assert [route.port for route in loaded.config.backends[0].udp_routes] == [53, 54]


def test_without_tls_there_is_no_authority(tmp_path: Path) -> None:
    example.shared_secret(tmp_path / "secret", make=True)
    text = example.agent_yaml("ws://127.0.0.1:9/", None, tmp_path / "secret", {80: "127.0.0.1:1"})
    assert loads(text).config.backends[0].tls.ca_file is None
