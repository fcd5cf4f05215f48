"""``nexusg version``: the versions that a report of a problem should name."""

from __future__ import annotations

import json
import platform
import ssl
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nexusg.version import __version__

from .exits import Exit


if TYPE_CHECKING:
    import argparse

#: The packages whose version decides how an agent behaves.
PACKAGES = ("gevent", "greenlet", "websockets", "websocket-client", "PyJWT", "structlog")


def execute(given: argparse.Namespace) -> int:
    """Print the versions."""
    found = versions()
    if given.json:
        print(json.dumps({name.lower(): value for name, value in found.items()}))
    else:
        for name, value in found.items():
            print(f"{name} {value}")
    return Exit.OK


def versions() -> dict[str, str]:
    """All versions by name, that of nexusg first. Packages are not imported for it."""
    found = {
        "nexusg": __version__,
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.removeprefix("OpenSSL "),
        "system": platform.platform(),
    }
    for package in PACKAGES:
        found[package] = _installed(package)
    return found


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
