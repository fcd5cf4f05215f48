"""The settings of who may use the SOCKS5 server."""

from __future__ import annotations

import pytest

from nexusg.config.secret import Secret
from nexusg.config.socks5 import Socks5Auth


def test_one_form() -> None:
    made = Socks5Auth("me", "hunter2")  # type: ignore[arg-type]
    assert made.password == Secret("hunter2")
    assert "hunter2" not in repr(made)
    assert Socks5Auth("", Secret("")) == Socks5Auth()
    assert Socks5Auth().password is None


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        (Socks5Auth(), []),
        (Socks5Auth("u", Secret("p")), []),
        (Socks5Auth("ü" * 127, Secret("p" * 255)), []),
        (Socks5Auth("u"), ["() a username and a password or passwordFile belong together"]),
        (
            Socks5Auth(None, Secret("p")),
            ["() a username and a password or passwordFile belong together"],
        ),
        (
            Socks5Auth("ü" * 128, Secret("hunter2" * 40)),
            [
                "('username',) is longer than the 255 bytes that SOCKS5 can carry",
                "('password',) is longer than the 255 bytes that SOCKS5 can carry",
            ],
        ),
    ],
)
def test_findings(auth: Socks5Auth, said: list[str]) -> None:
    assert [f"{one.path} {one.text}" for one in auth.findings()] == said
    assert all(one.fatal for one in auth.findings())
