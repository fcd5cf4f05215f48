from __future__ import annotations

import argparse

import pytest

from nexusg.cli import arguments
from nexusg.cli.arguments import FORMATS, LEVELS, host_port, override, public_address
from nexusg.cli.commands import COMMANDS
from nexusg.config.model import Logging
from nexusg.config.setting import settings_of


def parse(*words: str) -> argparse.Namespace:
    return arguments.parser().parse_args(words)


def test_every_command_has_options() -> None:
    assert arguments._OPTIONS.keys() == COMMANDS.keys()


def test_defaults() -> None:
    given = parse()
    assert (given.command, given.config, given.log_level, given.log_format) == (
        None,
        "config.yaml",
        None,
        None,
    )
    relay = parse("relay")
    assert (relay.listen, relay.http_port, relay.tls_port) == (("127.0.0.1", 9443), 8080, 8443)
    assert (relay.secret_file, str(relay.dir)) == (None, "nexusg-dev")
    assert relay.udp_port == []
    assert parse("relay", "--udp-port", "53", "--udp-port", "54").udp_port == [53, 54]


@pytest.mark.parametrize(
    "words", [["--config", "a"], ["-config", "a"], ["--config=a"], ["-config=a"]]
)
@pytest.mark.parametrize("command", [[], ["run"], ["check"]])
def test_config_is_also_spelt_as_in_go(words: list[str], command: list[str]) -> None:
    assert parse(*words, *command).config == "a"
    assert parse(*command, *words).config == "a"


def test_only_what_is_given_overrides_the_configuration() -> None:
    logging = Logging(level="error", format="json", streams="off")
    assert override(logging, parse()) == logging
    given = parse("--log-level", "debug", "--log-format", "console")
    assert override(logging, given) == Logging("debug", "console", "off")


def test_choices_are_those_of_the_configuration() -> None:
    choices = {setting.key: setting.choices for setting in settings_of(Logging)}
    assert choices["level"] == LEVELS
    assert set(choices["format"]) == set(FORMATS)


@pytest.mark.parametrize("words", [["check", "--conf", "a"], ["--log", "debug"], ["demo", "--on"]])
def test_nothing_is_abbreviated(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A script with an abbreviation would break when a new option begins alike."""
    with pytest.raises(SystemExit):
        parse(*words)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.com:443", ("example.com", 443)),
        ("[::1]:0", ("::1", 0)),
        ("tcp:22:22", ("tcp:22", 22)),
        ("x:65535", ("x", 65535)),
    ],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert host_port(text) == expected


def test_a_whole_port_has_no_host() -> None:
    assert public_address(":25") == ("", 25)
    assert public_address("udp:53") == ("udp", 53)
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
        public_address(":")


@pytest.mark.parametrize(
    "text", ["", "x", ":1", "x:", "x:a", "x:65536", "x:9999999", "x:²", "x:-1"]
)
def test_not_host_and_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
        host_port(text)
