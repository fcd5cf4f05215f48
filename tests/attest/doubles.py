"""What the tests of the providers share: requests, tokens, scripts and a look at processes."""

from __future__ import annotations

import base64
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent

from nexusg.attest.base import Stage, TokenRequest
from nexusg.config.model import Attestation, Backend, UdpRoute


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def request(stage: Stage = Stage.HANDSHAKE, nonce: str = "", **changes: Any) -> TokenRequest:
    """A request for the backend named mail."""
    fields: dict[str, Any] = {
        "backend": "mail",
        "hostnames": ("b.test", "a.test"),
        "tcp_ports": (25, 22),
        "udp_routes": (UdpRoute(53), UdpRoute(54, 9), UdpRoute(55, 0)),
        "weight": 4,
        "outbound_allowed": True,
        "allowed_outbound_ports": (25, 465),
    }
    return TokenRequest(stage=stage, nonce=nonce, **(fields | changes))


def backend(attestation: Attestation, **changes: Any) -> Backend:
    """The backend named mail, with these settings."""
    fields: dict[str, Any] = {"name": "mail", "tcp_ports": (25,)}
    return Backend(attestation=attestation, **(fields | changes))


def jwt(**claims: Any) -> str:
    """A token whose signature nobody checks."""
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    encoded = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJlLW9mLWEtdG9rZW4"])


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns or raises, whatever that is: a greenlet must not die of it. Blocks."""
    try:
        return function(*args)
    except BaseException as error:
        return error


def script(folder: Path, body: str, name: str = "command") -> str:
    """Write a shell script and return its path."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return str(file)


def until(condition: Callable[[], object], what: str, limit_s: float = 5) -> None:
    """Wait for what another process does; nothing but looking tells. Blocks."""
    with gevent.Timeout(limit_s, AssertionError(f"{what}: not within {limit_s} s")):
        while not condition():
            gevent.sleep(0.001)


def exists(pid: int) -> bool:
    """Whether there is such a process, be it only a zombie of this one."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" or pid in children()


def children() -> list[int]:
    """The children of this process, zombies included."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # a native thread that has just ended, and had no children
            pass
    return found


def pids(file: Path, count: int) -> list[int]:
    """Wait for ``count`` process ids in ``file``. Blocks."""

    def read() -> list[int]:
        text = file.read_text() if file.exists() else ""
        return [int(word) for word in text.split()] if text.endswith("\n") else []

    until(lambda: len(read()) >= count, f"{count} process ids in {file.name}")
    return read()


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Check that the body closes every descriptor that it opens."""
    gevent.sleep(0.001)  # a patched os.close takes effect in the loop's next turn
    before = descriptors()
    yield
    until(lambda: descriptors() == before, "every descriptor to be closed")


def descriptors() -> list[str]:
    """What every open descriptor of this process is."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # the one that reads the directory
            pass
    return sorted(found)
