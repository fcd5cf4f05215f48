from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING

import gevent

from nexusg.cli import version
from nexusg.version import __version__


if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.cli.conftest import Done


def test_for_people(nexusg: Callable[..., Done]) -> None:
    done = nexusg("version")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[:2] == [f"nexusg {__version__}", f"Python {platform.python_version()}"]
    assert f"gevent {gevent.__version__}" in lines
    assert any(line.startswith("OpenSSL ") for line in lines)


def test_for_programs(nexusg: Callable[..., Done]) -> None:
    found = json.loads(nexusg("version", "--json").out)
    assert found["nexusg"] == __version__
    assert {"python", "gevent", "openssl"} < set(found)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    assert version.versions()["gevent"] == "missing"
