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
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """A client's and a server's context that trust each other."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.ca_file)
    return client, authority.server_context()
