"""TLS contexts for the targets, and the contract's asserts in pytest's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gevent import ssl

from tests.support.certs import Authority


if TYPE_CHECKING:
    from tests.targets.pairs import Contexts

pytest.register_assert_rewrite("tests.targets.conformance")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that everybody trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "nexusg stranger")


@pytest.fixture(scope="session")
def contexts(authority: Authority) -> Contexts:
    """A client's and a server's context that trust each other."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.ca_file)
    return client, authority.server_context()
