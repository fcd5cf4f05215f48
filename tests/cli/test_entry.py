"""``python -m nexusg``: which commands run on gevent, and that the others do not even import it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from nexusg.__main__ import main
from nexusg.cli import app
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Sequence

# Prints what is imported and patched at the moment when the command line is read.
SPY = """
    import sys
    from nexusg.__main__ import main

    assert not {"ssl", "threading", "logging"} & set(sys.modules), "imported before patching"
    from nexusg.cli import app

    def spy(arguments):
        monkey = sys.modules.get("gevent.monkey")
        print("gevent" in sys.modules, bool(monkey and monkey.is_module_patched("socket")))
        return 7

    app.main = spy
    sys.exit(main())
"""

MODULE = """
    import runpy, sys
    try:
        runpy.run_module("nexusg", run_name="__main__")
    finally:
        assert "nexusg.cli.version" in sys.modules
        assert not {"gevent", "structlog", "yaml", "nexusg.agent"} & set(sys.modules)
"""


def run(code: str, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["check", "--json"], "False False\n"), (["--config", "check"], "True True\n")],
)
def test_only_what_runs_on_gevent_is_patched(words: list[str], expected: str) -> None:
    assert run(SPY, *words) == (7, expected, "")


def test_as_a_module() -> None:
    code, out, err = run(MODULE, "version")
    assert (code, err) == (0, "")
    assert out.startswith("nexusg ")


def test_a_bad_command_line() -> None:
    command = [sys.executable, "-m", "nexusg", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


def test_arguments_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Sequence[str]] = []

    def spy(arguments: Sequence[str]) -> int:
        given.append(arguments)
        return 5

    monkeypatch.setattr(app, "main", spy)
    monkeypatch.setattr(sys, "argv", ["nexusg", "version"])
    assert main() == 5
    assert main(["demo", "--once"]) == 5
    assert given == [["version"], ["demo", "--once"]]
