"""A session on a bench, and agents with everything around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.peer import Bench
from tests.support.running import Running, hurry


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """One session against a relay that the test plays."""
    hurry(monkeypatch)
    bench = Bench(monkeypatch)
    yield bench
    bench.stop()


@pytest.fixture(scope="session")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of certificates for all tests."""
    return tmp_path_factory.mktemp("nexusg-dev")


@pytest.fixture
def running(certificate_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Starts relays, services and agents, and ends them."""
    hurry(monkeypatch)
    with Running(certificate_folder) as running:
        yield running
