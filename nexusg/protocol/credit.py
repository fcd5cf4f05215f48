"""Flow control: permission to send, permission given, and the flush barrier (PROTOCOL.md 5, 6.4).

The unit is one data message, not bytes. A `SendWindow` is permission we have from the peer, a
`Granter` is permission we give, a `FlushBarrier` uses the peer's grants as acknowledgements.

Invariants of SendWindow
  W1  ``available`` is never negative.
  W2  a credit is taken if and only if a frame is committed to the output.
  W3  a grant of zero or less changes nothing; one grant adds at most MAX_GRANT; ``available``
      never exceeds MAX_GRANT.
  W4  ``0 <= unacknowledged <= sent``: no grant acknowledges a frame that was not sent.

Invariants of Granter
  G1  the credits given are at most the window plus one for each frame consumed that has cost one,
      plus one for each advance not yet made up for.
  G2  every grant after the first is at least a batch, except an advance, which is exactly one.
  G3  nothing is given before the first grant or while held; nothing is lost by holding.

A `FlushBarrier` always ends: with everything acknowledged, GRANT_TIMEOUT_S after the last grant, or
BARRIER_LIMIT_S after its start.
"""

from __future__ import annotations

import enum

from nexusg.errors import LocalProtocolError


#: First window and replenishing batch of every server since v0.3.7 (PROTOCOL.md section 5).
WINDOW, BATCH = 64, 8
#: For UDP streams. A relay without credits blocks the reader of the whole port, so there are many
#: (section 5.7); but not as many as the relay's lane to this agent holds messages: in a flood the
#: lane overflows with 1024, and users of TCP lose their streams, too (section 4.4).
UDP_WINDOW, UDP_BATCH = 192, 16
#: Both sides clamp a grant to this.
MAX_GRANT = 1 << 20

#: A fresh Linux socket takes this much before its first acknowledgement (PROTOCOL.md section 6.4),
#: so a reply this short cannot be cut off by the relay's short flush.
UNFLUSHED_BYTES = 8 * 1024
#: A stall this long with 1 to 7 frames unacknowledged means that the batches are out of phase.
STALL_S = 0.2
#: Without a grant for this long the user takes nothing, and the barrier gives up.
GRANT_TIMEOUT_S = 30.0
#: Even with grants: a full window of 2 MiB to a user at 4 KB/s is worth waiting for, not more.
BARRIER_LIMIT_S = 600.0


class SendWindow:
    """Credits to send data messages; unlimited when the peer grants none (PROTOCOL.md 5.1)."""

    __slots__ = ("acknowledged", "available", "sent", "unlimited")

    def __init__(self, credits: int | None) -> None:
        """``credits`` is the first window; None means unlimited."""
        self.unlimited = credits is None
        self.available = min(max(credits or 0, 0), MAX_GRANT)
        self.sent = 0
        self.acknowledged = 0

    @property
    def ready(self) -> bool:
        """Whether a frame may be sent now."""
        return self.available > 0 or self.unlimited

    @property
    def unacknowledged(self) -> int:
        """Frames sent that no grant has covered yet; 0 when unlimited."""
        return 0 if self.unlimited else self.sent - self.acknowledged

    def take(self) -> None:
        """Pay for one frame. Raises LocalProtocolError without a credit."""
        if not self.unlimited:
            if self.available < 1:
                raise LocalProtocolError("a data message needs a credit")
            self.available -= 1
        self.sent += 1

    def grant(self, credits: int) -> None:
        """Add the peer's ``credits``."""
        if credits > 0:
            credits = min(credits, MAX_GRANT)
            self.available = min(self.available + credits, MAX_GRANT)
            self.acknowledged = min(self.acknowledged + credits, self.sent)


class CappedWindow(SendWindow):
    """The relay's rule for forward data: unlimited until the first grant fixes the capacity.

    The capacity is max(64, first grant); later grants above it are discarded (PROTOCOL.md 5.2).
    """

    __slots__ = ("capacity",)

    def __init__(self) -> None:
        super().__init__(None)
        self.capacity = 0

    def grant(self, credits: int) -> None:
        """Add the agent's ``credits``, up to the capacity."""
        if credits > 0 and not self.capacity:
            self.unlimited = False
            self.capacity = max(WINDOW, min(credits, MAX_GRANT))
        super().grant(credits)
        self.available = min(self.available, self.capacity)


class Granter:
    """Credits given to the peer: a first window, then a batch for each batch consumed."""

    __slots__ = (
        "_batch",
        "_consumed",
        "_exempt",
        "_first_due",
        "_threshold",
        "_unsure",
        "doubt",
        "given",
        "held",
        "limit",
        "window",
    )

    def __init__(self, window: int = WINDOW, batch: int = BATCH, *, second: int = 0) -> None:
        """``second``: how many frames the second grant waits for, if the first one may be lost.

        The relay announces a stream before it records it, and ignores a grant in between
        (PROTOCOL.md section 5.4). The first that it sees fixes the capacity for good, and is all
        the credit there is. So the second grant must do as a first one; if the first was seen, it
        gives back what was used, and not a credit more.
        """
        self.window = window
        self.held = False  #: while true nothing is due
        self.given = 0  #: credits given so far
        self.limit = MAX_GRANT  #: above so many at a time the relay may discard what it is given
        self.doubt = window - second if second else 0  #: so many may have been lost
        self._batch = min(batch, window)  # a window smaller than a batch would never be refilled
        self._threshold = max(second, self._batch)
        self._unsure = second > 0
        self._consumed = 0
        self._exempt = 0  # frames to be consumed that bring no credits
        self._first_due = True

    def first(self, uncounted: int = 0) -> int:
        """The first window, once; 0 afterwards, and while held.

        ``uncounted`` frames came before it. They cost the peer nothing and bring no credits.
        """
        if not self._first_due or self.held:
            return 0
        self._first_due = False
        self.given += self.window
        self._forgo(uncounted)
        return self.window

    def consume(self, frames: int = 1) -> bool:
        """Count ``frames`` that their receiver has taken; whether there may be something due."""
        if self._exempt:
            exempt = min(frames, self._exempt)
            self._exempt -= exempt
            frames -= exempt
        self._consumed += frames
        return self._consumed >= self._threshold

    def due(self, most: int = MAX_GRANT) -> int:
        """Credits to give now, 0 or at least a batch; the caller must send what this returns.

        What is above ``most``, or everything if that is less than a batch, comes later.
        """
        if self._consumed < self._threshold or self.held or self._first_due:
            return 0
        credits = min(self._consumed, most, MAX_GRANT)
        if credits < self._batch:
            return 0
        self._consumed -= credits
        self._give(credits)
        return credits

    def advance(self) -> int:
        """One credit ahead of consumption, for a receiver that stalls; 0 while held.

        The relay gives up a stream that it cannot credit for long (PROTOCOL.md section 5.2).
        """
        if self.held or self._first_due:
            return 0
        self._forgo(1)
        self._give(1)
        return 1

    def overrun(self, frames: int) -> None:
        """The peer has sent ``frames`` more than it had credits: they bring none.

        It had not seen a grant yet, so the next one is not put off.
        """
        self._forgo(frames)
        self._threshold = self._batch

    def _forgo(self, frames: int) -> None:
        consumed = min(frames, self._consumed)
        self._consumed -= consumed
        self._exempt += frames - consumed

    def _give(self, credits: int) -> None:
        self.given += credits
        if self._unsure:
            self._unsure = False
            self._threshold = self._batch
            self.limit = max(WINDOW, credits) + self.doubt


class BarrierStep(enum.Enum):
    """What the flush barrier asks for."""

    PAD = "pad"  #: send one empty data frame, then ask again
    WAIT = "wait"  #: until a grant, or until ``FlushBarrier.deadline``
    DONE = "done"  #: everything has reached the user's kernel, or waiting longer is of no use


class FlushBarrier:
    """Waits until the relay has handed every frame to the user's kernel (PROTOCOL.md section 6.4).

    On a disconnect the relay gives its own buffer only 50 ms, so the tail of a response to a slow
    user would be lost. Its grants come in batches of eight frames written, so:

    1. pad with empty frames until the number unacknowledged is a multiple of eight;
    2. wait until it is zero;
    3. if it stalls between one and seven, the batches are out of phase: pad again.
    """

    __slots__ = (
        "_acknowledged",
        "_batch",
        "_changed_at",
        "_end",
        "_padding",
        "_window",
        "deadline",
    )

    def __init__(self, window: SendWindow, now: float, batch: int = BATCH) -> None:
        self._window = window
        self._batch = batch
        self._acknowledged = window.acknowledged
        self._changed_at = now
        self._end = now + BARRIER_LIMIT_S
        self._padding = True
        self.deadline = now  #: when to ask again without a grant

    @staticmethod
    def needed(window: SendWindow, sent_bytes: int) -> bool:
        """Whether a stream that sent ``sent_bytes`` in all must wait at its end."""
        return sent_bytes > UNFLUSHED_BYTES and window.unacknowledged > 0

    def step(self, now: float) -> BarrierStep:
        """What to do at ``now`` (seconds, monotonic)."""
        left = self._window.unacknowledged
        if left == 0:
            return BarrierStep.DONE
        if self._window.acknowledged != self._acknowledged:
            self._acknowledged, self._changed_at = self._window.acknowledged, now
        # Moments, not durations, are compared: rounding must not make a deadline come too early.
        end = min(self._changed_at + GRANT_TIMEOUT_S, self._end)
        if now >= end:
            return BarrierStep.DONE
        stalled_at = self._changed_at + STALL_S
        if left < self._batch and now >= stalled_at:
            self._padding = True
        if left % self._batch == 0:
            self._padding = False
        if self._padding and self._window.ready:
            return BarrierStep.PAD
        self.deadline = min(stalled_at, end) if left < self._batch and now < stalled_at else end
        return BarrierStep.WAIT
