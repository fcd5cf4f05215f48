"""A service manager for tests: a real datagram socket that keeps what it is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gevent import Timeout, socket


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

#: Long enough never to be reached by a passing test, even if a process has to be started first.
PATIENCE_S = 15.0


class Manager:
    """Listens at a path, or with ``@`` at an abstract name. Use as a context."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[list[str]] = []  #: the lines of each message
        self._path = address if address.startswith("/") else None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address if self._path else f"\0{address[1:]}")

    @classmethod
    def at(cls, folder: Path) -> Manager:
        """One at a path."""
        return cls(str(folder / "notify"))

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self._path is not None:
            os.unlink(self._path)

    def take(self) -> list[list[str]]:
        """Read the messages that are there already, and return them."""
        self._socket.settimeout(0)
        before = len(self.told)
        try:
            while True:
                self._read()
        except BlockingIOError:
            return self.told[before:]
        finally:
            self._socket.settimeout(None)

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for so long. Blocks."""
        self._socket.settimeout(seconds)
        try:
            self._read()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(None)
        return False

    def wait(self, holds: Callable[[str], object]) -> str:
        """Read until a line is what is waited for, and return it. Blocks."""
        with Timeout(PATIENCE_S, AssertionError(f"was never told; before: {self.told}")):
            while True:
                for line in self._read():
                    if holds(line):
                        return line

    def wait_line(self, line: str) -> None:
        """Read until this line has come. Blocks."""
        self.wait(line.__eq__)

    def lines(self) -> Iterable[str]:
        """All lines that were read."""
        return [line for message in self.told for line in message]

    def _read(self) -> list[str]:
        lines = self._socket.recv(4096).decode().split("\n")
        self.told.append(lines)
        return lines
