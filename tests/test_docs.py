"""What the pages in docs/ show can be used: code runs, settings load, links lead somewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import nexusg
from nexusg.config.loader import loads
from tests.support.source import ROOT


if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SECRET = "not a secret, but long enough for nobody to complain"
CONFIG = f"""\
backends:
  - name: web
    hostnames: [app.example.com]
    nexusAddresses: [wss://relay.example.com/connect]
    attestation: {{hmacSecret: "{SECRET}"}}
"""
MAPPINGS = '    portMappings: {443: {default: "127.0.0.1:9"}}\n'

#: Pages whose code is a whole program that needs nothing but a configuration.
RUN = ("wsgi.md", "library.md")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


class NoAgent(nexusg.Agent):
    """One that is made like any other, and never connects."""

    def start(self) -> None:
        pass

    def join(self, timeout_s: float | None = None) -> bool:
        return True


CODE = [(name, code) for name in RUN for code in blocks(DOCS / name, "python")]


@pytest.mark.parametrize(("name", "code"), CODE)
def test_code_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nexusg, "Agent", NoAgent, raising=False)
    (tmp_path / "config.yaml").write_text(CONFIG + MAPPINGS)
    (tmp_path / "config.yaml").chmod(0o600)
    scope: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code, name, "exec"), scope)
    if "wsgi" in scope:
        NoAgent(nexusg.load_config("config.yaml").config, wsgi=scope["wsgi"])


def test_there_is_code() -> None:
    assert len(CODE) >= 7


def test_settings_load(tmp_path: Path) -> None:
    """``yml`` is a part of a backend, as in README."""
    (tmp_path / "hmac-secret").write_text(SECRET)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    found = [(page.name, text) for page in PAGES for text in blocks(page, "yml")]
    assert len(found) >= 4
    for name, text in found:
        attested = "attestation:" in text
        head = "".join(
            line for line in CONFIG.splitlines(True) if not (attested and "hmac" in line)
        )
        loads(head + text, name, environ, mapped=True)


def test_links_lead_somewhere() -> None:
    links = [
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8"))
    ]
    assert len(links) >= 4
    assert [link for link in links if not (DOCS / link[1]).exists()] == []
