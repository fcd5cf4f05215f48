"""Where the software TPM is missing, that is said; and where it must not be, it is a failure."""

from __future__ import annotations

import ctypes
import importlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import swtpm as module


if TYPE_CHECKING:
    from collections.abc import Callable


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("where", "name", "stand_in", "reason"),
    [
        (shutil, "which", lambda _: None, "Debian package swtpm"),
        (importlib, "import_module", raising(ImportError("no tpm2_pytss")), "no tpm2_pytss"),
        (ctypes, "CDLL", raising(OSError("no tcti")), "no tcti"),
    ],
)
def test_a_test_is_skipped_or_fails(
    where: Any, name: str, stand_in: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "swtpm")
    monkeypatch.setattr(where, name, stand_in)
    monkeypatch.delenv(module.REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=reason):
        module.require()
    monkeypatch.setenv(module.REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{module.REQUIRE} is set, but .*{reason}"):
        module.require()


def test_nothing_is_missing_where_everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "swtpm")
    monkeypatch.setattr(importlib, "import_module", lambda _: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)
    monkeypatch.setenv(module.REQUIRE, "1")
    assert module.missing() == ""
    module.require()
