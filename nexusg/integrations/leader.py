"""Which of several processes leads: the one that holds the lock on a file. Never blocks.

The kernel gives the lock back when its holder dies, however it dies. It must not know what is led.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile

from nexusg.errors import ConfigError


# No link that somebody else has put in a folder that all may write to.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

_TAKEN = (errno.EACCES, errno.EAGAIN)


class Leadership:
    """One process's claim. ``path`` is the same for all that are to have one leader."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this process leads."""
        return self._fd >= 0

    def take(self) -> bool:
        """Lead, unless another process does; whether this one does now.

        Raises ConfigError if the file cannot be used.
        """
        if self._fd < 0:
            self._fd = self._locked()
        return self.held

    def release(self) -> None:
        """Let another process lead; without effect if this one does not."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _locked(self) -> int:
        """A descriptor of the file with the lock, or -1."""
        try:
            fd = os.open(self.path, _FLAGS, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            # Not flock(): that one would live on in whatever this process forks.
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in _TAKEN:
                return -1
            raise self._unusable(error) from error
        return fd

    def _unusable(self, error: OSError) -> ConfigError:
        reason = (error.strerror or str(error)).lower()
        return ConfigError([f"the lock file {self.path} cannot be used: {reason}"])


def default_path(config: str) -> str:
    """Where all that share a configuration file keep their lock, unless they are told otherwise."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(config))).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"nexusg-{name}.lock")
