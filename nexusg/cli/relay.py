"""``nexusg relay``: the development relay as a process."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from nexusg.config.model import Logging
from nexusg.observe.stdout import setup_cli_logging
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig

from . import example
from .arguments import override
from .exits import Exit
from .signals import Signals


if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from nexusg.observe.stdout import StdoutLog

# In the configuration shown: where python -m http.server listens, and a name server.
SERVICE, UDP_SERVICE = "127.0.0.1:8000", "127.0.0.1:53"

_LEVELS = {"relay.task_failed": "error"}


def execute(given: argparse.Namespace) -> int:
    """Run the relay until it is stopped. Blocks. Raises ConfigError."""
    secret_file = given.secret_file or given.dir / example.SECRET_FILE
    secret = example.shared_secret(secret_file, make=given.secret_file is None)
    log = setup_cli_logging(override(Logging(), given))
    config = RelayConfig(
        secret=secret,
        hub=given.listen,
        public_host=given.public_host,
        public_ports=(given.http_port, given.tls_port),
        public_udp_ports=tuple(given.udp_port),
        tls=not given.no_tls,
        allow_outbound=given.allow_outbound,
        certificates=given.dir,
        on_log=partial(_on_log, log),
    )
    try:
        with Signals() as signals, DevRelay(config) as relay:
            udp_ports = relay.public_udp_ports
            targets = {**dict.fromkeys(udp_ports, UDP_SERVICE), relay.public_ports[0]: SERVICE}
            text = example.agent_yaml(relay.url, relay.ca_file, secret_file, targets, udp_ports)
            print(f"# a configuration for this relay:\n{text}", file=sys.stderr, flush=True)
            signals.stop.wait()
    finally:
        log.close()
    return Exit.OK


def _on_log(log: StdoutLog, event: str, fields: Mapping[str, object]) -> None:
    log.line(_LEVELS.get(event, "info"), event, **fields)
