"""What a run was made on: processor, kernel, versions."""

from __future__ import annotations

import datetime as dt
import os
import platform
import ssl
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from bench import tools as known


if TYPE_CHECKING:
    from bench.tools import Tools

PACKAGES = ("nexusg", "gevent", "websockets", "websocket-client")


def describe(tools: Tools) -> dict[str, str]:
    """Facts by name, as text."""
    packages = [f"{name} {_version(name)}" for name in PACKAGES]
    found = [f"{name} {version}" for name, version in known.versions(tools).items()]
    return {
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{_memory_gib():.0f} GiB",
        "system": f"{_system()}, Linux {platform.release()}, {platform.machine()}",
        "Python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "packages": ", ".join(packages),
        "tools": ", ".join(found) or "none, all built in",
    }


def load_average() -> float:
    """How many processes wanted to run in the last minute: a busy machine measures itself."""
    return os.getloadavg()[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(from the checkout)"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
