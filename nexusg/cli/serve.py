"""``nexusg serve``: the agent with a WSGI application of this process in the place of targets.

Everything else, from the log to the exit code, is that of ``nexusg run``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nexusg.agent.agent import Agent
from nexusg.agent.apps import Served
from nexusg.config.checks import WSGI
from nexusg.config.loader import load
from nexusg.config.model import TlsTerminate
from nexusg.errors import ConfigError, TargetError
from nexusg.targets import application
from nexusg.targets.certificates import Certificates

from .arguments import override
from .run import import_from_here, launch


if TYPE_CHECKING:
    import argparse

    from nexusg.config.model import Config


def execute(given: argparse.Namespace) -> int:
    """Serve until it is stopped or gives up. Blocks. Raises ConfigError."""
    loaded = load(given.config, mapped=True)
    how = _certificate(given)
    import_from_here()

    def make(config: Config, **options: Any) -> Agent:
        # Each worker imports the application for itself: what it opens must not be forked.
        app = application.load(f"{WSGI}{given.app}")
        return Agent(config, wsgi=Served(app, how, f"{WSGI}{given.app}"), **options)

    return launch(loaded, override(loaded.config.logging, given), make)


def _certificate(given: argparse.Namespace) -> TlsTerminate:
    """What ends the TLS of users, tried out. Raises ConfigError."""
    how = TlsTerminate(cert_file=given.cert, key_file=given.key)
    if given.key and not how:
        raise ConfigError(["--key needs --cert"])
    if how:
        try:
            Certificates().server(how)
        except TargetError as error:
            raise ConfigError([f"--cert: {error}"]) from error
    return how
