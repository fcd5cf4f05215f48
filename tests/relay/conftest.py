"""Relays on port 0, stopped after their test."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.support.relayed import SECRET


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    StartRelay = Callable[..., DevRelay]


@pytest.fixture(scope="session")
def certificate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of certificates for all tests."""
    return tmp_path_factory.mktemp("nexusg-dev")


@pytest.fixture
def start_relay(certificate_folder: Path) -> Iterator[StartRelay]:
    """A function that starts a relay with settings of the test's, plain ws unless it asks for TLS.

    What the relay logs is in ``relay.logged``.
    """
    with ExitStack() as stack:

        def start(**settings: Any) -> DevRelay:
            logged: list[tuple[str, dict[str, object]]] = []
            usual: dict[str, Any] = {
                "secret": SECRET,
                "tls": False,
                "certificates": certificate_folder,
                "sniff_timeout_s": 0.02,
                "on_log": lambda event, fields: logged.append((event, fields)),
            }
            relay = DevRelay(RelayConfig(**{**usual, **settings}))
            stack.enter_context(relay)
            relay.logged = logged  # type: ignore[attr-defined]  # for the tests only
            return relay

        yield start
