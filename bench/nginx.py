"""nginx in three roles: the local service, the compiled floor, and the hop behind the floor.

Each is one process without a master, so that it has one core, like an agent, and is ended by one
signal.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench import wire
from bench.processes import Process
from bench.sockets import free_port, wait_listening


if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from bench.tools import Tools

_MAIN = """\
{modules}daemon off;
master_process off;
pid {folder}/{name}.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
"""

_HTTP = """\
http {{
  access_log off;
  client_body_temp_path {folder}/{name}.1;
  proxy_temp_path {folder}/{name}.2;
  fastcgi_temp_path {folder}/{name}.3;
  uwsgi_temp_path {folder}/{name}.4;
  scgi_temp_path {folder}/{name}.5;
  keepalive_requests 1000000000;
  keepalive_timeout 600;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /small {{ return 200 {small}; }}
  }}
}}
"""

_SERVER = """\
  server {{
    listen 127.0.0.1:{port} backlog=4096{secure};
    proxy_pass {target};
    proxy_buffer_size 64k;
  }}
"""

_TO_TLS = """\
  proxy_ssl on;
  proxy_ssl_protocols TLSv1.3;
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {ca_file};
  proxy_ssl_name localhost;
"""

_FROM_TLS = """\
  ssl_protocols TLSv1.3;
  ssl_certificate {certificate_file};
  ssl_certificate_key {certificate_file};
"""


def start_service(stack: ExitStack, tools: Tools, folder: Path) -> str:
    """The service that answers ``/small``; where it listens. Blocks."""
    port = free_port()
    small = json.dumps(wire.SMALL.decode())
    main = _HTTP.format(folder=folder, name="service-nginx", port=port, small=small)
    _start(stack, tools, folder, "service-nginx", main, stream=False)
    wait_listening(port)
    return f"127.0.0.1:{port}"


def start_hop(
    stack: ExitStack, tools: Tools, folder: Path, certificate_file: Path, targets: Sequence[str]
) -> list[str]:
    """What takes TLS off, in front of each of ``targets``; where it listens for each. Blocks."""
    common = _FROM_TLS.format(certificate_file=certificate_file)
    return _start_stream(stack, tools, folder, "hop", common, targets, secure=" ssl")[1]


def start_floor(
    stack: ExitStack, tools: Tools, folder: Path, ca_file: Path, targets: Sequence[str]
) -> tuple[Process, list[str]]:
    """What puts TLS on, in front of each of ``targets``; where it listens for each. Blocks."""
    common = _TO_TLS.format(ca_file=ca_file)
    return _start_stream(stack, tools, folder, "floor", common, targets)


def _start_stream(
    stack: ExitStack,
    tools: Tools,
    folder: Path,
    name: str,
    common: str,
    targets: Sequence[str],
    secure: str = "",
) -> tuple[Process, list[str]]:
    ports = [free_port() for _ in targets]
    servers = [
        _SERVER.format(port=port, target=target, secure=secure)
        for port, target in zip(ports, targets, strict=True)
    ]
    main = f"stream {{\n{common}{''.join(servers)}}}\n"
    process = _start(stack, tools, folder, name, main, stream=True)
    for port in ports:
        wait_listening(port)
    return process, [f"127.0.0.1:{port}" for port in ports]


def _start(
    stack: ExitStack, tools: Tools, folder: Path, name: str, body: str, *, stream: bool
) -> Process:
    assert tools.nginx
    module = tools.stream_module if stream else ""
    modules = f"load_module {module};\n" if module else ""
    file = folder / f"{name}.conf"
    file.write_text(_MAIN.format(modules=modules, folder=folder, name=name) + body)
    command = [tools.nginx, "-e", "stderr", "-p", str(folder), "-c", str(file)]
    return stack.enter_context(Process(name, command, folder))
