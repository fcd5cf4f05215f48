"""The answer to a request that is not granted."""

from __future__ import annotations


class Refusal(Exception):
    """``status`` and ``text`` are for the device; ``reason`` is only logged.

    namek tells a device hardly more than that something is wrong. A developer may ask here.
    """

    def __init__(
        self, status: int, text: str, *, reason: str = "", retry_after_s: int | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason or text
        self.retry_after_s = retry_after_s


def internal(reason: str) -> Refusal:
    """namek says no more than this about an AK or a certificate that it cannot parse."""
    return Refusal(500, "internal server error", reason=reason)
