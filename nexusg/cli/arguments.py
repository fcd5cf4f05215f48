"""The grammar of the command line: every command's options, and what is made of them.

It imports none of the commands, so that help and the quick commands stay quick.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from nexusg.relay.settings import CERTIFICATE_FOLDER
from nexusg.version import __version__

from . import exits
from .commands import COMMANDS
from .example import HTTP_PORT, HUB_PORT, TLS_PORT


if TYPE_CHECKING:
    from collections.abc import Callable

    from nexusg.config.model import Logging

    AddOptions = Callable[[argparse.ArgumentParser], None]

DEFAULT_CONFIG = "config.yaml"

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")

DESCRIPTION = "Makes local services public through a Nexus relay, by a connection that goes out."

EXAMPLES = """\
examples:
  nexusg demo                         see a tunnel at work, on this machine alone
  nexusg check --config config.yaml   is anything wrong with the configuration?
  nexusg route app.example.com:443    where would this connection go?
  nexusg --config config.yaml         run the agent
  nexusg serve shop.wsgi:app          run it with a WSGI application, without a port
"""


def parser() -> argparse.ArgumentParser:
    """What reads the command line. Options that commands share may also stand before them."""
    root = argparse.ArgumentParser(
        prog="nexusg",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n{exits.table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"nexusg {__version__}")
    _config(root, DEFAULT_CONFIG)
    _logging(root, None)
    commands = root.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, about in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about.help,
            description=f"{about.help[0].upper()}{about.help[1:]}.",
            epilog=exits.table(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for add_options in _OPTIONS[name]:
            add_options(sub)
    return root


def override(logging: Logging, given: argparse.Namespace) -> Logging:
    """The log settings with what the command line says instead."""
    wanted = {"level": given.log_level, "format": given.log_format}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return dataclasses.replace(logging, **changes)


def host_port(text: str) -> tuple[str, int]:
    """An argument of the form HOST:PORT, as argparse wants it; an address in brackets, too."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, as in example.com:443")
    return host.strip("[]"), int(port)


def public_address(text: str) -> tuple[str, int]:
    """The same for `nexusg route`, where ``:25`` stands for a whole port."""
    host, port = host_port(f"any{text}" if text.startswith(":") else text)
    return ("" if text.startswith(":") else host), port


# A default of a command's own would undo what stands before the command.
def _config(parser: argparse.ArgumentParser, default: str = argparse.SUPPRESS) -> None:
    parser.add_argument(
        "--config",
        "-config",  # as Go's flags are written
        metavar="FILE",
        default=default,
        help=f"the configuration (default: {DEFAULT_CONFIG})",
    )


def _logging(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    group = parser.add_argument_group("logging")
    group.add_argument(
        "--log-level",
        choices=LEVELS,
        default=default,
        help="the least severe lines to log, instead of logging.level",
    )
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default=default,
        help="JSON lines or text for people, instead of logging.format",
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "app",
        metavar="MODULE:APP",
        help="the WSGI application that gets all streams, also MODULE:FACTORY()",
    )
    parser.add_argument(
        "--cert", metavar="FILE", help="the PEM certificate to end the TLS of users with"
    )
    parser.add_argument(
        "--key", metavar="FILE", help="its PEM key, if that is not in the same file"
    )


def _route(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        metavar="HOST:PORT",
        type=public_address,
        help="the public name and port; tcp:25, udp:53 or :25 is a whole port",
    )
    parser.add_argument("--backend", metavar="NAME", help="ask this backend only")


def _tpm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("info", "enroll"),
        help="show its names, certificate and enrollment; or enroll it with the authorizer",
    )
    parser.add_argument("--backend", metavar="NAME", help="the one whose attestation.tpm is meant")
    text = "info about this TPM, as in device:/dev/tpmrm0, without a configuration"
    parser.add_argument("--tcti", metavar="TCTI", help=text)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="end after the requests")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--tpm", action="store_true", help="an agent that proves itself with a (software) TPM"
    )
    kind.add_argument(
        "--keep",
        action="store_true",
        help=f"keep certificates, secret and configuration in {CERTIFICATE_FOLDER}",
    )


def _relay(parser: argparse.ArgumentParser) -> None:
    def add(
        option: str, name: str, kind: Callable[[str], object], default: object, what: str
    ) -> None:
        text = what if default is None else f"{what} (default: {default})"
        parser.add_argument(option, metavar=name, type=kind, default=default, help=text)

    add("--listen", "HOST:PORT", host_port, f"127.0.0.1:{HUB_PORT}", "for agents")
    add("--public-host", "HOST", str, "127.0.0.1", "for users")
    add("--http-port", "PORT", int, HTTP_PORT, "for users by HTTP")
    add("--tls-port", "PORT", int, TLS_PORT, "for users by TLS")
    parser.add_argument(
        "--udp-port",
        metavar="PORT",
        type=int,
        action="append",
        default=[],
        help="for users by UDP, may be repeated (default: none)",
    )
    add("--dir", "DIR", Path, CERTIFICATE_FOLDER, "where certificates and the secret are kept")
    # A secret on the command line would be seen by everybody who lists processes.
    text = "what agents sign with (default: DIR/secret, made when missing)"
    add("--secret-file", "FILE", Path, None, text)
    parser.add_argument("--no-tls", action="store_true", help="plain ws for agents")
    parser.add_argument(
        "--allow-outbound",
        action="store_true",
        help="let agents connect out through the relay, to any address",
    )


_OPTIONS: dict[str, tuple[AddOptions, ...]] = {
    "run": (_config, _logging),
    "serve": (_serve, _config, _logging),
    "check": (_config, _json),
    "route": (_route, _config, _json),
    "tpm": (_tpm, _config, _json),
    "demo": (_demo, _logging),
    "relay": (_relay, _logging),
    "version": (_json,),
}
