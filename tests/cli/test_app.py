from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from nexusg.cli import app, version
from nexusg.cli.commands import COMMANDS
from nexusg.cli.exits import MEANINGS
from nexusg.errors import ConfigError, NexusgError
from nexusg.version import __version__


if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tests.cli.conftest import Done


def failing(error: BaseException) -> Callable[[object], int]:
    def execute(_given: object) -> int:
        raise error

    return execute


def test_help_names_commands_and_exit_codes(nexusg: Callable[..., Done]) -> None:
    done = nexusg("--help")
    assert (done.code, done.err) == (0, "")
    for text in (*COMMANDS, *MEANINGS.values(), "--config FILE", "-config FILE", "--log-level"):
        assert text in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_options(nexusg: Callable[..., Done], command: str) -> None:
    done = nexusg(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "exit codes:" in done.out
    assert len(done.out.partition("options:")[2].splitlines()) > 2


def test_version_as_an_option(nexusg: Callable[..., Done]) -> None:
    assert nexusg("--version").out == f"nexusg {__version__}\n"


@pytest.mark.parametrize(
    "line", ["nonsense", "--nonsense", "check --nonsense", "run --log-level loud", "--conf x check"]
)
def test_a_bad_command_line_is_a_usage_error(nexusg: Callable[..., Done], line: str) -> None:
    done = nexusg(*line.split())
    assert (done.code, done.out) == (2, "")
    assert "error: " in done.err


@pytest.mark.parametrize("line", ["--config {} check", "check --config {}", "-config={} check"])
def test_shared_options_stand_before_or_behind_the_command(
    nexusg: Callable[..., Done], good: str, line: str
) -> None:
    assert nexusg(*line.format(good).split()).code == 0


def test_the_default_command_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from nexusg.cli import run

    given: list[argparse.Namespace] = []

    def execute(options: argparse.Namespace) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr(run, "execute", execute)
    assert app.main(["-config", "x", "--log-level", "debug"]) == 0
    assert app.main(["run", "--config", "x", "--log-level", "debug"]) == 0
    monkeypatch.setattr(sys, "argv", ["nexusg"])
    assert app.main() == 0
    assert [(options.config, options.log_level, options.log_format) for options in given] == [
        ("x", "debug", None),
        ("x", "debug", None),
        ("config.yaml", None, None),
    ]


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (ConfigError(["a: bad", "b: worse"]), 2, "a: bad\nb: worse\n"),
        (NexusgError("no luck"), 1, "nexusg: no luck\n"),
        (PermissionError(13, "denied", "x"), 1, "nexusg: [Errno 13] denied: 'x'\n"),
        (KeyboardInterrupt(), 1, ""),
    ],
)
def test_errors_become_exit_codes(
    nexusg: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    err: str,
) -> None:
    monkeypatch.setattr(version, "execute", failing(error))
    done = nexusg("version")
    assert (done.code, done.out, done.err) == (code, "", err)


def test_a_bug_is_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "execute", failing(KeyError("bug")))
    with pytest.raises(KeyError):
        app.main(["version"])


def test_a_reader_that_goes_away_is_no_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as unread, open(writer, "w", encoding="utf-8") as out:
        unread.close()
        monkeypatch.setattr(sys, "stdout", out)
        assert app.main(["version"]) == 1
        out.flush()
    assert capfd.readouterr().err == ""
