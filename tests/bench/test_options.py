"""The benchmark's command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import options
from bench.scenarios import catalogue


EXTERNAL = "--relay wss://relay.test/connect --relay-ca ca.pem --relay-secret-file secret"


def given(*words: str) -> argparse.Namespace:
    return options.arguments(words)


def test_the_names_of_scenarios_are_their_own() -> None:
    names = [scenario.name for scenario in catalogue()]
    assert len(names) == len(set(names)) > 10


def test_without_options_everything_is_measured() -> None:
    asked = given()
    assert [one.name for one in options.scenarios_of(asked)] == [one.name for one in catalogue()]
    assert [one.name for one in options.agents_of(asked)] == ["nexusg", "naive", "nginx"]
    assert options.relay_of(asked) is None
    assert (options.repeats_of(asked), options.settings_of(asked).seconds) == (5, 3)


def test_scenarios_are_chosen_by_pattern() -> None:
    found = options.scenarios_of(given("--scenario", "upload-1", "far-*"))
    assert [one.name for one in found] == ["far-requests", "upload-1", "far-download", "far-upload"]


def test_quick_is_short_unless_told_otherwise() -> None:
    assert options.settings_of(given("--quick")).seconds < 1
    assert options.repeats_of(given("--quick")) == 1
    assert options.settings_of(given("--quick", "--seconds", "2")).seconds == 2


def test_agents_are_added_and_chosen() -> None:
    words = ("--agent", "go=/bin/agent -config {config}", "--only", "go", "nexusg")
    assert [one.name for one in options.agents_of(given(*words))] == ["go", "nexusg"]


def test_an_external_relay() -> None:
    relay = options.relay_of(given(*EXTERNAL.split(), "--relay-http-port", "80"))
    assert relay is not None
    assert (relay.hub, relay.http) == (("relay.test", 443), ("relay.test", 80))
    assert (relay.tcp, relay.udp, relay.can_be_delayed) == (None, None, False)
    assert relay.ca_file == Path("ca.pem").absolute()
    assert relay.url_at(7) == "wss://relay.test:7/connect"


@pytest.mark.parametrize(
    ("words", "check", "complaint"),
    [
        ("--scenario nothing", options.scenarios_of, "there is no scenario nothing"),
        ("--only nobody", options.agents_of, "there is no agent nobody"),
        (EXTERNAL, options.relay_of, "--relay needs --relay-http-port"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, check: object, complaint: str) -> None:
    assert callable(check)
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        check(given(*words.split()))


@pytest.mark.parametrize(
    "words",
    [
        "--agent go=/bin/agent",
        "--agent /bin/agent {config}",
        "--seconds 0",
        "--seconds x",
        "--repeat 0",
        "--idle -1",
    ],
)
def test_bad_values_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given(*words.split(" ", 1))
    assert "error: argument" in capsys.readouterr().err
