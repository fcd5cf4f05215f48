"""Memory counted in bytes at the moment of queueing: one budget for all streams of an agent."""

from __future__ import annotations


class Budget:
    """Bytes of forward data that wait for local services."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @property
    def exceeded(self) -> bool:
        """Whether streams that queue more have to be held back."""
        return self.used_bytes > self.limit_bytes

    def add(self, size_bytes: int) -> None:
        """``size_bytes`` more are queued."""
        self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """``size_bytes`` are queued no longer."""
        self.used_bytes -= size_bytes
