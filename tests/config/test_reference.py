"""The reference is what the model says, and can be used."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nexusg.config import reference
from nexusg.config.loader import load, loads
from nexusg.config.model import Config, Tpm
from nexusg.config.reference import main, reference_markdown, reference_yaml
from nexusg.config.setting import Block, ListOf, MapOf, Settings, TextOr, settings_of


if TYPE_CHECKING:
    import pytest

REFERENCE = Path(__file__).parents[2] / "conf" / "reference.yaml"
ENVIRON = {"NEXUS_HMAC_SECRET": "x" * 32, "SOCKS5_PASSWORD": "hunter2"}


def keys(cls: type[Settings]) -> set[str]:
    """Every key below a block."""
    found = set()
    for setting in settings_of(cls):
        found.add(setting.key)
        kind = setting.kind
        inner = kind.item if isinstance(kind, ListOf) else kind
        inner = inner.value if isinstance(inner, MapOf) else inner
        if isinstance(inner, Block | TextOr):
            found |= keys(inner.cls)
    return found


def tpm_block() -> str:
    """The lines of the tpm block, which are comments."""
    found = re.search(r"^      # tpm:\n(      #   .*\n)+", reference_yaml(), re.M)
    assert found
    return found[0]


def test_the_file_is_up_to_date() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference_yaml(), (
        "run: python -m nexusg.config.reference > conf/reference.yaml"
    )


def test_the_file_loads_and_holds_the_defaults() -> None:
    found = load(REFERENCE, ENVIRON)
    assert found.warnings == ()
    config = found.config
    plain = loads(
        """\
backends:
  - name: web
    hostnames: [app.example.com, "*.example.com"]
    nexusAddresses: ["wss://relay.example.com/connect"]
    attestation: {hmacSecret: "${NEXUS_HMAC_SECRET}"}
    portMappings: {443: {default: "127.0.0.1:8080"}}
""",
        environ=ENVIRON,
    ).config
    assert config == plain


def test_every_setting_is_in_it() -> None:
    text = reference_yaml()
    names = keys(Config)
    assert len(names) > 50
    assert [name for name in names if not re.search(rf"^[ #-]*{name}:", text, re.M)] == []


def test_what_is_commented_out_loads_too(tmp_path: Path) -> None:
    known = "|".join((*keys(Config), r"app\.example\.com", r'"\*\.example\.com"'))
    text = reference_yaml().replace(tpm_block(), "")  # cannot stand beside a secret
    text = re.sub(rf"^( *)# ( *(#? *({known}):|-$))", r"\1\2", text, flags=re.M)
    text = re.sub(rf"^( *)# (({known}):)", r"\1\2", text, flags=re.M)  # within udpRoutes
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    secret.chmod(0o600)
    text = re.sub(r"^ +target: .*\n", "", text, flags=re.M)  # beside targets
    text = text.replace("/etc/nexusg/hmac-secret", str(secret))
    text = text.replace("/etc/nexusg/socks5-password", str(secret))
    [backend] = loads(text, environ=ENVIRON).config.backends
    assert backend.udp_routes[0].flow_idle_timeout_s == 30
    assert backend.attestation.allowed_outbound_ports == (25, 465)
    destination = backend.port_mappings[443].hosts["*.example.com"]
    assert destination.targets == ("tls://10.0.0.1:8443", "tls://10.0.0.2:8443")
    assert destination.tls_terminate.cert_file == "/etc/nexusg/app.pem"
    assert destination.health.path == "/healthz"


def test_the_tpm_block_loads_too() -> None:
    text = re.sub(r"^      hmacSecret: .*\n", "", reference_yaml(), flags=re.M)
    text = text.replace(tpm_block(), tpm_block().replace("      # ", "      "))
    [backend] = loads(text, environ=ENVIRON).config.backends
    assert backend.attestation.tpm == Tpm("https://namek.example.com")


def test_lines_are_not_too_long() -> None:
    assert max(map(len, reference_yaml().splitlines())) <= 102


def test_markdown() -> None:
    text = reference_markdown()
    assert "| `backends[].attestation.timeoutSeconds` | number, s | `15` | How long" in text
    assert "| `backends[].name` | text | required |" in text
    assert "| `backends[].udpRoutes[].port` | integer | required |" in text
    assert "| `backends[].attestation.env` | map of texts |  |" in text
    assert "| `backends[].portMappings.*.default` | text or block |  |" in text
    assert "| `backends[].portMappings.*.hosts` | map of texts or blocks |  |" in text
    assert "| `backends[].portMappings.*.hosts.*.tls.verify` | true or false | `true` |" in text
    assert "| `backends[].attestation.tpm.ak` | rsa2048 or ecc-p256 | `rsa2048` |" in text
    assert "| `logging.level` | debug, info, warning or error | `info` |" in text
    assert "| `limits.messageBytes` | integer, bytes; 1 MiB | `1048576` |" in text
    assert all(line.count("|") == 5 for line in text.splitlines())


def test_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--markdown"])
    assert capsys.readouterr().out == reference_markdown()
    monkeypatch.delitem(sys.modules, reference.__name__)
    monkeypatch.setattr(sys, "argv", ["reference"])
    runpy.run_module(reference.__name__, run_name="__main__")
    assert capsys.readouterr().out == reference_yaml()
