"""Several targets of one route: which one a stream goes to, and which ones are down.

The target with the fewest connections, among those that work. One that could not be reached is
tried last, and is down after several failures in a row; but no stream is refused before each target
has been tried, because what is known of one may be out of date. It does not know how a target is
dialled or checked, makes no greenlets, and reports to whom it is told to.

Time: a target gets its timeout, and of what is left for all of them no more than its share, so that
one that does not answer leaves as much to each of those behind it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from nexusg.errors import TargetError


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


#: How long a target that failed is spared before a user is sent to it again, so that it is noticed
#: when it is back: the restart of a small service, doubled each time up to a minute.
PAUSE_S, MAX_PAUSE_S = 1.0, 60.0


class Member:
    """One target of a pool. Its figures are the pool's to change."""

    __slots__ = (
        "_checks_failed",
        "_dials_failed",
        "_pause_s",
        "_picked",
        "_trial_at",
        "connections",
        "down_since",
        "error",
        "target",
    )

    def __init__(self, target: str) -> None:
        self.target = target
        self.connections = 0  #: those that are being made, too
        self.error = ""  #: why it could not be reached last, empty when it could
        self.down_since: float | None = None  #: on the pool's clock
        self._dials_failed = self._checks_failed = 0  # in a row
        self._pause_s = PAUSE_S
        self._trial_at = 0.0
        self._picked = 0  # the number of the last choice that fell on it

    def release(self) -> None:
        """One of its connections has ended."""
        self.connections -= 1

    def __repr__(self) -> str:
        state = "up" if self.down_since is None else "down"
        return f"<Member {self.target}: {state}, {self.connections} connections>"


class Pool:
    """The targets of one route, their connections and their health.

    ``failures`` in a row of dials, or of checks, mark a target down. ``on_down`` and ``on_up`` are
    told of each change: of a member, and of a member and how many seconds it was down; they must
    not block. ``clock`` counts seconds and never goes back.
    """

    def __init__(
        self,
        targets: Sequence[str],
        failures: int,
        *,
        on_down: Callable[[Member], object],
        on_up: Callable[[Member, float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = tuple(Member(target) for target in targets)
        self._failures = failures
        self._on_down = on_down
        self._on_up = on_up
        self._clock = clock
        self._choices = 0

    def connect(
        self, dial: Callable[[str, float], T], timeout_s: float, total_s: float
    ) -> tuple[T, Member]:
        """What ``dial(target, timeout_s)`` returns for the best target that it reaches. Blocks.

        The connection counts as the member's until its `Member.release`. ``timeout_s`` is for each
        target, ``total_s`` for all. Raises TargetError naming every target and its cause.
        """
        ends = self._clock() + total_s
        left, errors = list(self.members), []
        while left:
            share_s = max(ends - self._clock(), 0.0) / len(left)
            member = self._choose(left)
            left.remove(member)
            try:
                connection = self._counted(member, dial, min(timeout_s, share_s))
            except TargetError as error:
                errors.append(error)
                self._dialled(member, error)
            else:
                self._dialled(member, None)
                return connection, member
        if len(errors) == 1:
            raise errors[0]
        raise _none_reached(errors) from errors[-1]

    def checked(self, member: Member, error: TargetError | None) -> None:
        """A check of ``member`` has found ``error``, or that it is well, which ends a failure.

        A dial that succeeds does not: a service may accept connections and be unfit all the same.
        """
        if error is None:
            member._dials_failed = member._checks_failed = 0
        else:
            member._checks_failed += 1
        self._judge(member, error)

    # Inside ----------------------------------------------------------------------------------

    def _choose(self, members: Sequence[Member]) -> Member:
        now = self._clock()
        best = min(members, key=lambda one: (_rank(one, now), one.connections, one._picked))
        self._choices += 1
        best._picked = self._choices
        if _due(best, now):  # one user at a time is enough to find out
            best._pause_s = min(2 * best._pause_s, MAX_PAUSE_S)
            best._trial_at = now + best._pause_s
        return best

    def _counted(self, member: Member, dial: Callable[[str, float], T], timeout_s: float) -> T:
        member.connections += 1
        connected = False
        try:
            connection = dial(member.target, timeout_s)
            connected = True
            return connection
        finally:  # the stream may be ended in the midst of it
            if not connected:
                member.connections -= 1

    def _dialled(self, member: Member, error: TargetError | None) -> None:
        if error is None:
            member._dials_failed = 0
        else:
            if not member._dials_failed:
                member._pause_s = PAUSE_S
            member._dials_failed += 1
            member._trial_at = self._clock() + member._pause_s
        self._judge(member, error)

    def _judge(self, member: Member, error: TargetError | None) -> None:
        """See whether ``member`` is up or down now, and tell if that is news."""
        failed = max(member._dials_failed, member._checks_failed)
        if error is not None:
            member.error = str(error)
        elif not failed:
            member.error = ""
        if failed >= self._failures:
            if member.down_since is None:
                member.down_since = self._clock()
                self._on_down(member)
        elif member.down_since is not None:
            down_s = self._clock() - member.down_since
            member.down_since = None
            self._on_up(member, down_s)


def _rank(member: Member, now: float) -> int:
    """Which members come first: due for a trial, well, failed lately, down."""
    if member.down_since is None and not (member._dials_failed or member._checks_failed):
        return 1
    if _due(member, now):
        return 0
    return 2 if member.down_since is None else 3


def _due(member: Member, now: float) -> bool:
    """Whether a user is to find out if it is back: not while checks say that it is not."""
    return bool(member._dials_failed) and not member._checks_failed and now >= member._trial_at


def _none_reached(errors: Sequence[TargetError]) -> TargetError:
    codes = {error.code for error in errors}
    causes = "; ".join(map(str, errors))
    return TargetError(
        f"no target could be reached: {causes}", codes.pop() if len(codes) == 1 else "io"
    )
