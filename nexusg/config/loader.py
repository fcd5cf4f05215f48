"""Reads a configuration file: ``load(path)``, or ``loads(text)``.

Every problem is found in one run, and named with file, line and column (PROTOCOL.md section 10).
The whole of the Go client's format is understood. No message quotes a value that may be a secret.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nexusg.errors import ConfigError

from . import nodes
from .attestation import Attestation
from .backend import Backend
from .checks import quoted
from .destination import Destination, TlsTerminate
from .expand import is_expanded
from .model import Config
from .report import Report
from .secret import Secret
from .setting import settings_of
from .socks5 import Socks5Auth
from .tls import RelayTls, TargetTls
from .tpm import Tpm
from .walker import Walker


if TYPE_CHECKING:
    from collections.abc import Mapping

    from yaml import Node

    from .validate import Path
    from .walker import Fold


MAX_FILE_BYTES = 1024 * 1024  # some 3000 backends
MAX_SECRET_BYTES = 64 * 1024  # a key file, not a device or a disk image

_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file holds. ``warnings`` are finished lines for the log."""

    config: Config
    warnings: tuple[str, ...]


def load(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] = os.environ,
    *,
    mapped: bool = False,
) -> Loaded:
    """Read a configuration file. ``environ`` is what ``${NAME}`` in it refers to.

    ``mapped`` says that the program finds the targets, so that portMappings may be missing. Raises
    ConfigError with every problem of the file. Blocks for the disk.
    """
    name = os.fspath(path)
    try:
        data, mode = _read(name, MAX_FILE_BYTES)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}:1: is not UTF-8 text"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{name}: {_reason(error)}"]) from error
    return _loads(text, name, environ, exposed=bool(mode & _READABLE_BY_OTHERS), mapped=mapped)


def loads(
    text: str,
    name: str = "configuration",
    environ: Mapping[str, str] = os.environ,
    *,
    mapped: bool = False,
) -> Loaded:
    """The same from YAML text. ``name`` stands for the file's in messages.

    Raises ConfigError with every problem of the text. Blocks for the disk if it names a secret
    file.
    """
    return _loads(text, name, environ, exposed=False, mapped=mapped)


def _loads(
    text: str, name: str, environ: Mapping[str, str], *, exposed: bool, mapped: bool
) -> Loaded:
    report = Report(name)
    unneeded = frozenset({"portMappings"} if mapped else ())
    folds: dict[Any, Fold] = {
        Attestation: partial(_secret, "hmacSecret", exposed),
        Backend: _hostname,
        Destination: _target,
        RelayTls: _tls_files,
        Socks5Auth: partial(_secret, "password", exposed),
        TargetTls: _tls_files,
        TlsTerminate: _tls_files,
        Tpm: _tpm,
    }
    config = None
    try:
        root = nodes.compose(text)
        if root is None or nodes.is_null(root):
            report.add(nodes.Mark(1, 1), (), "the file is empty: backends are required")
        else:
            config = Walker(report, environ, folds, unneeded).block(Config, root, ())
    except nodes.Broken as error:
        report.add(error.mark, (), str(error))
    if len(report) or not isinstance(config, Config):
        raise ConfigError(report.problems())
    return Loaded(config, tuple(report.warnings()))


def _read(path: str, limit_bytes: int) -> tuple[bytes, int]:
    """The content and, of a regular file, the mode. Raises OSError, or ValueError if too long."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno()).st_mode
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"is larger than {limit_bytes} bytes")
    return data, stat.S_IMODE(status) if stat.S_ISREG(status) else 0


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _secret(
    key: str,
    exposed: bool,
    walker: Walker,
    values: dict[str, Any],
    nodes_: Mapping[str, Node],
    path: Path,
) -> None:
    """The content of hmacSecretFile replaces hmacSecret (9.4), unless a command makes it idle.

    ``key`` is the secret's; ``exposed`` is whether others can read the configuration.
    """
    written = nodes_[key].value if exposed and key in values else ""
    if written and not is_expanded(written):
        text = f"stands in a file that others can read; use {key}File, or chmod 600 this file"
        walker.say((*path, key), text, fatal=False)
    file = values.pop(f"{key}File", None)
    if not file or values.get("command", "").strip():
        return
    here, shown = (*path, f"{key}File"), _shown(file)
    try:
        data, mode = _read(file, MAX_SECRET_BYTES)
        text = data.decode().strip()
    except UnicodeDecodeError:
        walker.say(here, f"{shown} is not UTF-8 text; encode a binary secret as base64")
    except (OSError, ValueError) as error:
        walker.say(here, f"cannot read {shown}: {_reason(error)}")
    else:
        values[key] = Secret(text)
        if not text:
            walker.say(here, f"{shown} is empty")
        if mode & _READABLE_BY_OTHERS:
            walker.say(here, f"others can read {shown}; chmod 600 it", fatal=False)


def _shown(file: str) -> str:
    """The name of a secret file, unless it may be the secret itself, put under the wrong key."""
    if os.path.isabs(file) or os.path.isdir(os.path.dirname(file)):
        return quoted(file)
    return "the file"


def _hostname(
    walker: Walker, values: dict[str, Any], _nodes: Mapping[str, Node], path: Path
) -> None:
    """hostname counts only if there are no hostnames (10.2)."""
    single = values.pop("hostname", None)
    if single and not values.get("hostnames"):
        owner = next(setting for setting in settings_of(Backend) if setting.key == "hostnames")
        walker.judge(owner, single, (*path, "hostname"))
        values["hostnames"] = (single,)


def _target(walker: Walker, values: dict[str, Any], nodes_: Mapping[str, Node], path: Path) -> None:
    """target is the short form of targets, and nobody means both."""
    single, targets = values.pop("target", None), values.get("targets", ())
    if "target" in nodes_ and "targets" in nodes_:
        walker.say((*path, "target"), "stands beside targets: write one of the two")
    elif single is not None:
        values["targets"] = (single,)
    for index, target in enumerate(targets):
        if target in targets[:index]:
            text = "is listed twice and counts once"
            walker.say((*path, "targets", index), text, fatal=False)


def _tpm(walker: Walker, values: dict[str, Any], nodes_: Mapping[str, Node], path: Path) -> None:
    """A block that says nothing but defaults is meant to be used, too."""
    _tls_files(walker, values, nodes_, path)
    here, url = (*path, "authorizerUrl"), nodes_.get("authorizerUrl")
    if nodes_ and (url is None or nodes.is_null(url)) and not walker.is_misspelt(here):
        walker.say(here, "is required")


def _tls_files(
    walker: Walker, values: dict[str, Any], _nodes: Mapping[str, Node], path: Path
) -> None:
    """A file that is missing now may be there at the dial, so this is only a warning."""
    for key in ("caFile", "certFile", "keyFile"):
        file = values.get(key)
        if file and not os.path.exists(file):
            walker.say((*path, key), f"{quoted(file)} does not exist", fatal=False)
