"""The configuration as frozen data: who may use a backend's SOCKS5 server (PROTOCOL.md 11.4)."""

# ruff: noqa: RUF009 - setting() and block() return dataclasses.field()

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .secret import Secret
from .setting import Finding, Kind, Setting, Settings, setting


if TYPE_CHECKING:
    from collections.abc import Iterator


MAX_BYTES = 255  # of a user, and of a password (RFC 1929 section 2)


@dataclass(frozen=True, slots=True)
class Socks5Auth(Settings):
    """The user and password that clients must know (RFC 1929). Without: whoever can connect."""

    username: str | None = setting(
        "username",
        Kind.TEXT,
        None,
        "The user that clients must name.",
        expand=True,
        example="proxy",
    )
    password: Secret | None = setting(
        "password",
        Kind.SECRET,
        None,
        "The password of that user.",
        expand=True,
        example='"${SOCKS5_PASSWORD}"',
        also=Setting(
            "passwordFile",
            Kind.TEXT,
            None,
            "A file with the password instead, read once at the start. It wins over password.",
            expand=True,
            example="/etc/nexusg/socks5-password",
        ),
    )

    def __post_init__(self) -> None:
        password: Secret | str | None = self.password
        if isinstance(password, str):
            password = Secret(password)
        self._set(username=self.username or None, password=password or None)

    def findings(self) -> Iterator[Finding]:
        """Both or none, and no longer than SOCKS5 can carry."""
        involves = ("username", "password", "passwordFile")
        if bool(self.username) != bool(self.password):
            text = "a username and a password or passwordFile belong together"
            yield Finding((), text, involves=involves)
        password = self.password.reveal() if self.password else ""
        for key, value in (("username", self.username or ""), ("password", password)):
            if len(value.encode(errors="replace")) > MAX_BYTES:
                text = f"is longer than the {MAX_BYTES} bytes that SOCKS5 can carry"
                yield Finding((key,), text, involves=involves)
