from __future__ import annotations

import pytest

from nexusg.cli.commands import COMMANDS, chosen, needs_patch
from tests.support.source import PACKAGE


@pytest.mark.parametrize(
    ("line", "command", "patched"),
    [
        ("", "run", True),
        ("--config check", "run", True),
        ("-config version", "run", True),
        ("--config=x", "run", True),
        ("-config=x", "run", True),
        ("run --config x", "run", True),
        ("--log-level debug demo --once", "demo", True),
        ("relay", "relay", True),
        ("check --config run", "check", False),
        ("--log-format json check", "check", False),
        ("route app.example.com:443", "route", False),
        ("version --json", "version", False),
        ("--help", "run", False),
        ("run -h", "run", False),
        ("--version", "run", False),
        ("nonsense", "nonsense", False),
        ("--config", "run", True),
    ],
)
def test_the_command_of_a_line(line: str, command: str, patched: bool) -> None:
    assert chosen(line.split()) == command
    assert needs_patch(line.split()) is patched


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_file_of_its_own(name: str) -> None:
    text = (PACKAGE / "cli" / f"{name}.py").read_text(encoding="utf-8")
    assert "def execute(given: argparse.Namespace) -> int:" in text
