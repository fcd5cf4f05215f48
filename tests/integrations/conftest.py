"""Workers, a relay, and the files of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integrations.doubles import FakeWorker
from tests.support.running import Running, hurry


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of certificates for all tests."""
    return tmp_path_factory.mktemp("nexusg-dev")


@pytest.fixture
def running(certificate_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Starts relays, and ends them."""
    hurry(monkeypatch)
    with Running(certificate_folder) as running:
        yield running


@pytest.fixture
def make_worker() -> Iterator[Callable[..., FakeWorker]]:
    """Makes workers, and closes them."""
    made: list[FakeWorker] = []

    def make(*args: Any, **settings: Any) -> FakeWorker:
        made.append(FakeWorker(*args, **settings))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: Callable[..., FakeWorker]) -> FakeWorker:
    """A usual one."""
    return make_worker()
