"""Turns at a pipe that several processes write to.

A write of up to PIPE_BUF bytes is atomic (pipe(7)), so short lines never mix. A longer one is
written in pieces, and between two pieces nobody else may write: each takes its turn by a lock on
the descriptor. A lock ends with its process.
"""

from __future__ import annotations

import fcntl
import os
import stat


class Turns:
    """The turns of this process at ``fd``. The other processes must take theirs, too."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            mode = 0  # closed: there is nothing to mix
        # Files and terminals take each write as a whole.
        self._needed = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def begin(self, *, wait: bool = True) -> bool:
        """Take the turn; whether it was had. With ``wait`` it always is: blocks the thread."""
        if not self._needed:
            return True
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            return False
        except OSError:
            pass  # without locks a long line may be split, which is better than none
        return True

    def end(self) -> None:
        """Let the others write."""
        if self._needed:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
            except OSError:
                pass  # as there was none
