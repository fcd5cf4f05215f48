"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from bench import agents
from bench.bed import Relay
from bench.scenarios import IDLE_S, IDLE_STREAMS, QUICK_IDLE_S, Scenario, Settings, catalogue


if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Measures agents side by side in one run: the same load through each of them in turn, the agent's
CPU time and memory alone. BENCHMARKS.md explains every scenario and every column."""

EPILOG = """\
examples:
  python -m bench --quick
  python -m bench --scenario 'requests-*' download-16 --repeat 7
  python -m bench --agent 'other=/usr/local/bin/other-agent -config {config}'
  python -m bench --relay wss://127.0.0.1:8443/connect --relay-ca hub.pem \\
      --relay-secret-file secret --relay-http-port 80

Exit code: 0 if every scenario worked with every agent or was skipped, else 1."""

REPEATS, QUICK_REPEATS = 5, 1
QUICK_SECONDS, QUICK_IDLE = 0.25, 50


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    root = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = root.add_argument
    add("--list", action="store_true", help="name the scenarios and agents, and end")
    add("--quick", action="store_true", help="does everything still work? Its figures say nothing")
    add("--scenario", nargs="+", metavar="NAME", help="only these; * stands for anything")
    add("--repeat", type=_count, metavar="N", help=f"per scenario and agent (default: {REPEATS})")
    text = f"of load, each time (default: {Settings.seconds:g})"
    add("--seconds", type=_positive, metavar="S", help=text)
    add("--idle", type=_count, metavar="N", help=f"idle streams (default: {IDLE_STREAMS})")
    add("--plain", action="store_true", help="built-in load and service instead of wrk and nginx")

    compared = root.add_argument_group("agents")
    text = "one more; its command takes the common configuration file; may be repeated"
    compared.add_argument(
        "--agent", action="append", default=[], type=_agent, metavar="NAME=COMMAND", help=text
    )
    text = "only these; what the first one does is what the others are compared with"
    compared.add_argument("--only", nargs="+", metavar="NAME", help=text)

    relay = root.add_argument_group("relay", "instead of the development relay, one that runs")
    relay.add_argument("--relay", metavar="URL", help="where agents connect")
    relay.add_argument("--relay-ca", type=Path, metavar="FILE", help="whom they trust")
    relay.add_argument("--relay-secret-file", type=Path, metavar="FILE", help="what they sign with")
    relay.add_argument("--relay-host", metavar="HOST", help="for users (default: that of the URL)")
    relay.add_argument("--relay-http-port", type=_count, metavar="PORT", help="for users by HTTP")
    relay.add_argument("--relay-tcp-port", type=_count, metavar="PORT", help="that may be claimed")
    relay.add_argument("--relay-udp-port", type=_count, metavar="PORT", help="that may be claimed")
    text = f"host names are below it (default: {Relay.domain})"
    relay.add_argument("--relay-domain", default=Relay.domain, metavar="NAME", help=text)

    output = root.add_argument_group("output", "the tables go to stdout, the progress to stderr")
    output.add_argument("--json", type=Path, metavar="FILE", help="every figure of every repeat")
    text = "put machine and tables between the marks in FILE"
    output.add_argument("--write", type=Path, metavar="FILE", help=text)
    text = "where configurations and logs stay (default: they do not)"
    output.add_argument("--keep", type=Path, metavar="DIR", help=text)
    return root


def scenarios_of(given: argparse.Namespace) -> list[Scenario]:
    """The scenarios asked for. Raises argparse.ArgumentTypeError for a name that is none."""
    known = catalogue()
    wanted = given.scenario or ["*"]
    for pattern in wanted:
        if not fnmatch.filter([one.name for one in known], pattern):
            raise argparse.ArgumentTypeError(f"there is no scenario {pattern}; see --list")
    return [one for one in known if any(fnmatch.fnmatchcase(one.name, like) for like in wanted)]


def agents_of(given: argparse.Namespace) -> list[agents.Agent]:
    """The agents asked for, in that order. Raises argparse.ArgumentTypeError."""
    known = {agent.name: agent for agent in [*agents.built_in(), *given.agent]}
    wanted = given.only or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"there is no agent {unknown[0]}; see --list")
    return [known[name] for name in dict.fromkeys(wanted)]


def settings_of(given: argparse.Namespace) -> Settings:
    """How long and how large."""
    seconds, idle = (QUICK_SECONDS, QUICK_IDLE) if given.quick else (Settings.seconds, IDLE_STREAMS)
    idle_s = QUICK_IDLE_S if given.quick else IDLE_S
    return Settings(given.seconds or seconds, given.idle or idle, idle_s, given.plain)


def repeats_of(given: argparse.Namespace) -> int:
    """How often."""
    return given.repeat or (QUICK_REPEATS if given.quick else REPEATS)


def relay_of(given: argparse.Namespace) -> Relay | None:
    """The external relay, None if there is none. Raises argparse.ArgumentTypeError."""
    if given.relay is None:
        return None
    for name in ("relay_ca", "relay_secret_file", "relay_http_port"):
        if getattr(given, name) is None:
            raise argparse.ArgumentTypeError(f"--relay needs --{name.replace('_', '-')}")
    hub = Relay(given.relay, given.relay_ca, given.relay_secret_file, ("", 0)).hub
    host = given.relay_host or hub[0]
    tcp, udp = given.relay_tcp_port, given.relay_udp_port
    return Relay(
        given.relay,
        given.relay_ca.absolute(),
        given.relay_secret_file.absolute(),
        (host, given.relay_http_port),
        (host, tcp) if tcp else None,
        (host, udp) if udp else None,
        given.relay_domain,
    )


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, taken apart. Exits with 2 when it cannot be used."""
    return parser().parse_args(words)


def _agent(text: str) -> agents.Configured:
    name, _, command = text.partition("=")
    if not name or "{config}" not in command:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND with {{config}} in it")
    return agents.Configured(name, command)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
