"""One short-lived child process: bounded output, and killed with all that it started.

It must not know what the process is run for.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, cast

from gevent import get_hub
from gevent.event import Event
from gevent.subprocess import DEVNULL, Popen

from nexusg.errors import TokenError


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


#: What is taken from stdout, and from stderr: more than any token and its explanations need.
OUTPUT_LIMIT_BYTES = 64 * 1024

#: After the child has exited, what it wrote is in the pipes; this is for its own children, which
#: may be about to write (a shell's background job), and must not be waited for (a daemon).
LINGER_S = 0.2

_READABLE = 1  # libev's EV_READ, the events argument of loop.io


class Process:
    """Runs ``argv`` once, without a shell and with an empty stdin, in a session of its own.

    ``stdout`` and ``stderr`` hold what has come so far, also when ``run`` was interrupted.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._argv = list(argv)
        self._environment = environment
        self._captures = (_Capture("stdout"), _Capture("stderr"))

    @property
    def stdout(self) -> bytes:
        """What the process has printed."""
        return bytes(self._captures[0].data)

    @property
    def stderr(self) -> bytes:
        """What the process has complained about."""
        return bytes(self._captures[1].data)

    def run(self) -> int:
        """Run it to its end and return its exit status, negative for a signal. Blocks.

        It has no deadline: put a gevent.Timeout around it. Whatever ends it early, a Timeout or
        GreenletExit included, kills the whole process group.

        Raises:
            TokenError: more than OUTPUT_LIMIT_BYTES were printed, or this is not the main thread.
            OSError: the process could not be started.
            ValueError: an argument or a variable cannot be passed to a process.
        """
        if not get_hub().loop.default:
            # gevent would fork first and raise then; only the default loop watches children.
            raise TokenError("a command can only be run from the thread of gevent's main hub")
        try:
            for capture in self._captures:
                capture.open()
            return self._finish(self._start())
        finally:
            for capture in self._captures:
                capture.close()

    def _start(self) -> _Child:
        out, err = self._captures
        try:
            return _Child(
                self._argv,
                stdin=DEVNULL,
                stdout=out.write_fd,
                stderr=err.write_fd,
                env=dict(self._environment),
                start_new_session=True,
            )
        finally:
            # The child must hold the only ones, or the end of its output is never seen.
            for capture in self._captures:
                capture.close_write()

    def _finish(self, child: _Child) -> int:
        try:
            return self._collect(child)
        except BaseException:  # Timeout and GreenletExit too: nothing may outlive them
            child.kill_group()
            raise

    def _collect(self, child: _Child) -> int:
        wake = Event()
        # Not in the stubs, and wait() would need a greenlet of its own beside the reading.
        cast("Any", child).rawlink(lambda _: wake.set())
        for capture in self._captures:
            capture.watch(wake.set)
        linger_until: float | None = None
        wait_s: float | None = None
        while True:
            # In this order: when the exit is known, what the child wrote can be read.
            status = child.returncode
            ended = [capture.drain() for capture in self._captures]
            if status is not None:
                if linger_until is None:
                    linger_until = time.monotonic() + LINGER_S
                wait_s = linger_until - time.monotonic()
                if all(ended) or wait_s <= 0:
                    return status
            wake.wait(wait_s)
            wake.clear()


class _Child(Popen[bytes]):
    """A Popen that leads a process group, and whose constructor may be interrupted.

    The constructor blocks until the child's exec; only the half-made object knows the pid then.
    """

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        self._started_in = os.getpid()
        try:
            super().__init__(argv, **options)
        except BaseException:  # Timeout and GreenletExit too, as above
            if getattr(self, "pid", None) is not None and self.returncode is None:
                self.kill_group()
            raise

    def kill_group(self) -> None:
        """Kill the child and everything in its group. gevent's child watcher reaps it.

        Without effect in a fork of the process that started it: there it is somebody else's.
        """
        if self._started_in != os.getpid():
            return
        # The child first: once that is done it cannot start the session any more, so that
        # either there is a group to be killed now or there never will be.
        if self.returncode is None:
            _kill(os.kill, self.pid)
        _kill(os.killpg, self.pid)


def _kill(send: Callable[[int, int], None], pid: int) -> None:
    try:
        send(pid, signal.SIGKILL)
    except OSError:  # gone, or of another user (a setuid command): nothing more can be done
        pass


class _Capture:
    """The pipe behind one output of the child, and what has come out of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = bytearray()
        self.write_fd = -1
        self._read_fd = -1
        self._watcher: Any = None

    def open(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)

    def watch(self, notify: Callable[[], None]) -> None:
        """Have ``notify`` called, by the hub, whenever there is something to read."""
        self._watcher = get_hub().loop.io(self._read_fd, _READABLE)
        self._watcher.start(notify)

    def drain(self) -> bool:
        """Take what is there, without blocking. True at, and after, the end of the output."""
        while self._read_fd >= 0:
            try:
                chunk = os.read(self._read_fd, OUTPUT_LIMIT_BYTES)
            except BlockingIOError:
                return False
            self.data += chunk
            if len(self.data) > OUTPUT_LIMIT_BYTES:
                raise TokenError(f"more than {OUTPUT_LIMIT_BYTES} bytes on {self.name}")
            if not chunk:
                self.close()
        return True

    def close_write(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        """Give up the pipe; ``data`` stays. The watcher goes before the descriptor it watches."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        self.close_write()
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1
