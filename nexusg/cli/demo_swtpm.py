"""The software TPM of the demo: a `swtpm` process that does not outlive this one."""

from __future__ import annotations

import ctypes
import shutil
import signal
from functools import partial
from typing import TYPE_CHECKING

from gevent import socket, subprocess

from nexusg.errors import TpmError


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

MISSING = (
    "there is no swtpm, the software TPM that this needs: on Debian it is in the packages swtpm "
    "and, for the TPM library to reach it, libtss2-tcti-swtpm0"
)

PR_SET_PDEATHSIG = 1  # prctl(2)


class SoftwareTpm:
    """A context manager. Sockets and state of the TPM are in ``folder``, which is left behind.

    ``tcti`` is how the TPM library reaches it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "tpm"
        self.tcti = f"swtpm:path={self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it can be used at once. Raises TpmError when it is not installed, OSError."""
        program = shutil.which("swtpm")
        if program is None:
            raise TpmError(MISSING, "tpm_missing")
        state = self._folder / "tpm-state"
        state.mkdir()
        # The control socket must have this name, or the library does not find it.
        with _listening(self._socket) as data, _listening(f"{self._socket}.ctrl") as control:
            descriptors = (data.fileno(), control.fileno())
            command = [program, "socket", "--tpm2", "--tpmstate", f"dir={state}"]
            command += ["--server", f"type=unixio,fd={descriptors[0]}"]
            command += ["--ctrl", f"type=unixio,fd={descriptors[1]}", "--flags", "startup-clear"]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for this process: the story ends in order
                preexec_fn=_dying_with(ctypes.CDLL(None)),
            )

    def stop(self) -> None:
        """End it. Blocks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None, "it is not running"
        return int(self._process.pid)

    def __enter__(self) -> SoftwareTpm:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _listening(path: object) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen(8)
    except OSError:
        sock.close()
        raise
    return sock


def _dying_with(libc: ctypes.CDLL) -> Callable[[], object]:
    """What makes the child die with its parent, even if that is killed. Runs in the child."""
    return partial(libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
