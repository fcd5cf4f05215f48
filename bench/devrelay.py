"""The development relay as a process, for the benchmark: it says its addresses in one line."""

from __future__ import annotations

from gevent import monkey


if __name__ == "__main__":
    monkey.patch_all()

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gevent

from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig


if TYPE_CHECKING:
    from collections.abc import Mapping

#: iperf3's first words have no line end, so the relay waits for a third of this before it takes
#: the port's claim for them (PROTOCOL.md section 14).
SNIFF_TIMEOUT_S = 1.5

_TROUBLE = ("relay.task_failed", "agent.refused", "agent.protocol_error", "agent.silent")


def main() -> None:
    """Run the relay until the process is ended."""
    settings = json.loads(sys.argv[1])
    config = RelayConfig(
        secret=Path(settings["secret_file"]).read_text().strip(),
        public_ports=(0, 0),
        public_udp_ports=(0,),
        certificates=Path(settings["certificates"]),
        sniff_timeout_s=SNIFF_TIMEOUT_S,
        on_log=_on_log,
    )
    with DevRelay(config) as relay:
        http_port, tcp_port = relay.public_ports
        ports = {"http": http_port, "tcp": tcp_port, "udp": relay.public_udp_ports[0]}
        print(json.dumps({"url": relay.url, **ports}), flush=True)
        gevent.get_hub().join()


def _on_log(event: str, fields: Mapping[str, object]) -> None:
    """Only trouble: a line for every user would be most of the relay's work."""
    if event in _TROUBLE:
        print(event, dict(fields), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
