"""Reads the TPM's binary structures (TPM 2.0 Library, Part 2: big-endian, sized buffers).

It does not know what any structure means.
"""

from __future__ import annotations

import base64
import re


_BASE64 = re.compile("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class Malformed(Exception):
    """What a device sent is not what it should be. The parsers raise this and only this."""


class Reader:
    """Takes one field after the other. Every method raises Malformed when the bytes run out."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise Malformed(f"{self._what} ends after {len(self._data)} bytes")
        self._at += count
        return found

    def number(self, size_bytes: int) -> int:
        """The next unsigned integer."""
        return int.from_bytes(self.take(size_bytes), "big")

    def sized(self) -> bytes:
        """The next TPM2B: two bytes of size, then the contents."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        """Everything that has not been taken."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Nothing may follow. Raises Malformed."""
        if left := len(self._data) - self._at:
            raise Malformed(f"{left} bytes follow {self._what}")


def sized(data: bytes) -> bytes:
    """``data`` as a TPM2B; it is shorter than 64 KiB."""
    return len(data).to_bytes(2, "big") + data


def from_base64(text: str) -> bytes:
    """Standard base64 with padding, as strict as Go's StdEncoding. Raises Malformed."""
    if not _BASE64.fullmatch(text):
        raise Malformed("this is no base64")
    return base64.b64decode(text)
