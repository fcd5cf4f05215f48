"""The one interface between a stream and a local service.

A target never queues: what it does not take at once stays with the stream, which counts it.
"""

from __future__ import annotations

from typing import Protocol


#: Local services are read in pieces of three of the largest frames: each read costs a turn of the
#: loop, and three fill a batch of the link.
READ_BYTES = 96 * 1024


class Target(Protocol):
    """A connected local service. One greenlet reads, one writes; OSError means it is gone."""

    #: What logs call it, for example ``127.0.0.1:8080`` or ``unix:/run/app.sock``.
    name: str

    def try_send(self, data: memoryview | bytes) -> int:
        """Take what fits at once and return how much, maybe 0. Never switches greenlets.

        Raises OSError when the service has gone.
        """

    def send(self, data: memoryview | bytes) -> int:
        """Take at least one byte and return how many. Blocks. Raises OSError."""

    def try_read(self, limit: int) -> memoryview | bytes | None:
        """At most ``limit`` bytes; empty at end of file; None when there is nothing yet.

        A view is valid until the next switch of greenlets. A target that cannot look without
        waiting may block here instead of ever returning None. Raises OSError.
        """

    def wait_readable(self) -> None:
        """Return when `try_read` may have something. Blocks. Raises OSError."""

    def unsent_bytes(self) -> int:
        """How much of what was taken the service's host has not acknowledged; 0 if unknown."""

    def shutdown_write(self) -> None:
        """Tell the service that no more comes, where its kind can. Never blocks or raises."""

    def close(self) -> None:
        """Close, and wake up whoever waits in a method. Never blocks or raises; idempotent."""
