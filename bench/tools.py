"""The tools from the distribution: which of them are here, and what to install for the others."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


PACKAGES = {
    "wrk": "wrk",
    "iperf3": "iperf3",
    "nginx": "nginx-light",
    "nginx's stream module": "libnginx-mod-stream",
}
_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"  # not on every user's PATH


@dataclass(frozen=True)
class Tools:
    """Paths of the tools, None for those that are not here."""

    wrk: str | None = None
    iperf3: str | None = None
    nginx: str | None = None
    #: What nginx has to load for ``stream``: "" if that is built in, None if it is not to be had.
    stream_module: str | None = None

    @property
    def missing(self) -> list[str]:
        """The names in PACKAGES of what is not here."""
        found = (self.wrk, self.iperf3, self.nginx, self.stream_module)
        return [name for name, path in zip(PACKAGES, found, strict=True) if path is None]


def find() -> Tools:
    """Look for all of them."""
    wrk, iperf3, nginx = (_which(name) for name in ("wrk", "iperf3", "nginx"))
    return Tools(wrk, iperf3, nginx, None if nginx is None else _stream_module(nginx))


def install(name: str) -> str:
    """How to get ``name``, one of PACKAGES."""
    return f"{name} is not here: apt-get install {PACKAGES[name]}"


def versions(tools: Tools) -> dict[str, str]:
    """What the tools say of themselves."""
    asked = {"wrk": (tools.wrk, "-v"), "iperf3": (tools.iperf3, "-v"), "nginx": (tools.nginx, "-v")}
    return {name: _version(path, option) for name, (path, option) in asked.items() if path}


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PLACES)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _version(path: str, option: str) -> str:
    found = re.search(r"\d+\.\d+[\w.-]*", _output(path, option))
    return found[0] if found else "of unknown version"


def _stream_module(nginx: str) -> str | None:
    built = _output(nginx, "-V")
    if "--with-stream=dynamic" not in built:
        return "" if "--with-stream" in built else None
    folder = re.search(r"--modules-path=(\S+)", built)
    path = Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    return str(path) if path.exists() else None
