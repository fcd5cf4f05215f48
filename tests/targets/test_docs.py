"""What docs/targets.md shows can be loaded, and is what the tests with real servers use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexusg.config.loader import loads
from tests.targets.test_real_servers import NGINX_CONF


PAGE = Path(__file__).parents[2].joinpath("docs", "targets.md").read_text(encoding="utf-8")
HEAD = """
backends:
  - name: web
    hostnames: [app.example.com]
    nexusAddresses: [wss://relay.example.com/connect]
    attestation: {hmacSecret: "not a secret, but long enough for nobody to complain"}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("text", blocks("yml"))
def test_settings_load(text: str) -> None:
    warnings = loads(HEAD + text, "targets.md", {}).warnings
    assert [text for text in warnings if not text.endswith('.pem" does not exist')] == []


def test_there_are_settings() -> None:
    assert len(blocks("yml")) == 5


def test_nginx_is_told_what_it_is_told_in_the_tests() -> None:
    (text,) = blocks("nginx")
    for line in text.splitlines()[1:-1]:
        words = line.strip().rstrip(";")
        if words.startswith("listen"):
            assert words.endswith("proxy_protocol")
        else:
            assert words in NGINX_CONF


def test_gunicorn_is_told_what_it_is_told_in_the_tests() -> None:
    (text,) = blocks("sh")
    assert all("gunicorn --proxy-protocol " in line for line in text.splitlines())
