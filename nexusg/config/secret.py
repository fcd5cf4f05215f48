"""A text that must not be seen. It shows itself only through ``reveal()``."""

from __future__ import annotations

import hmac
from typing import NoReturn


_MASK = "********"  # one length for all: the length of a secret is nobody's business


class Secret:
    """Wraps a secret text so that no log line, traceback, ``repr()`` or pickle holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself. Hand it to what needs it, and keep no copy."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, _spec: str) -> str:
        return _MASK  # also for '{:.3}', which would cut a prefix out of a str

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _memo: object) -> Secret:
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: its text would leave the process in clear")

    def _bytes(self) -> bytes:
        return self._value.encode("utf-8", "surrogatepass")
