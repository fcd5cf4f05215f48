"""A service of its own for each tenant: the host name decides, by a table that may change any time.

    python examples/router.py config.yaml tenants.json

The table is JSON: ``{"acme.example.com": "127.0.0.1:8001", …}``. The configuration claims the
names, for example as ``*.example.com``; whoever is not in the table goes where its ``portMappings``
say, perhaps to a page for new tenants.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gevent import socket

import nexusg


class Tenants:
    """The table, read again when its file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed_at = 0
        self._table: dict[str, str] = {}

    def connect(self, request: nexusg.ConnectRequest) -> socket.socket:
        """Called for each connection, in a greenlet of its own: it may ask a database as well."""
        changed_at = self._path.stat().st_mtime_ns
        if changed_at != self._changed_at:
            self._table, self._changed_at = json.loads(self._path.read_text()), changed_at
        address = self._table.get(request.hostname)
        if address is None:
            raise nexusg.NoRoute  # then the port mappings decide
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=5)


def main(config_file: str, tenants_file: str) -> None:
    """Serve until Ctrl-C. Blocks."""
    config = nexusg.load_config(config_file).config
    tenants = Tenants(Path(tenants_file))
    with nexusg.Agent(config, connect_handler=tenants.connect, on_event=print) as agent:
        agent.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
