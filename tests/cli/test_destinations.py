"""What is said about a destination beside its targets."""

from __future__ import annotations

import pytest

from nexusg.cli.destinations import line, remarks
from nexusg.config.model import Destination, TlsTerminate


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (Destination(("a:1", "b:1")), []),
        (Destination(("a:1",), "v1"), ["PROXY protocol v1"]),
        (
            Destination(("a:1",), "v2", tls_terminate=TlsTerminate("a.pem")),
            ["PROXY protocol v2", "TLS ended here, with a.pem"],
        ),
    ],
)
def test_remarks(to: Destination, said: list[str]) -> None:
    assert remarks(to) == said


def test_line() -> None:
    assert line(Destination(("a:1", "b:1"))) == "a:1, b:1"
    assert line(Destination(("a:1",), "v1")) == "a:1 (PROXY protocol v1)"
