"""A clock that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """Called, it returns the time; stands in for ``time.monotonic`` or ``time.time``."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on by ``seconds`` and return the new time."""
        assert seconds >= 0, "this clock never goes back"
        self.now += seconds
        return self.now
