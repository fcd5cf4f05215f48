"""Software TPMs for tests: real `swtpm` processes, each with a state directory of its own.

In a conftest.py: ``from tests.support.swtpm import swtpm, swtpm_with_certificate  # noqa: F401``.
A test that takes the fixture ``swtpm`` gets a running `Swtpm` with an empty state, and gives
``swtpm.tcti`` to what wants a TPM. Where swtpm, its TCTI or tpm2-pytss is missing the test is
skipped, or fails if the environment variable NEXUSG_REQUIRE_TPM is set.

The TSS connects to a swtpm anew for each command, so several devices may be open on one. But there
is no resource manager: they share three places for keys, and each may flush the others' keys.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest


if TYPE_CHECKING:
    from collections.abc import Iterator

#: Set where a missing software TPM must not go unnoticed: then nothing is skipped for it.
REQUIRE = "NEXUSG_REQUIRE_TPM"

# What swtpm_setup wants to know: its own authority, whose keys stay in the folder of the state.
_FILES = {
    "setup.conf": "create_certs_tool={tool}\n"
    "create_certs_tool_config={folder}/localca.conf\n"
    "create_certs_tool_options={folder}/localca.options\n",
    "localca.conf": "statedir={folder}/ca\n"
    "signingkey={folder}/ca/signkey.pem\n"
    "issuercert={folder}/ca/issuercert.pem\n"
    "certserial={folder}/ca/certserial\n",
    "localca.options": "--platform-manufacturer nexusg\n"
    "--platform-version 1\n"
    "--platform-model test\n",
}


class Swtpm:
    """One `swtpm` process on unix sockets. A context manager: it runs inside, and is gone after.

    ``tcti`` is what a TPM library connects to; it stays the same over restarts.
    """

    def __init__(self) -> None:
        # Not below pytest's own folders: a unix socket's path has hardly 100 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="swtpm-"))
        self.state = self.folder / "state"
        self.state.mkdir()
        self.socket = self.folder / "tpm"
        self.tcti = f"swtpm:path={self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it. It answers at once: its sockets listen before it runs. Blocks."""
        assert self._process is None, "it is running"
        # The control socket's name is what the TSS makes of the other's.
        data, control = _listen(self.socket), _listen(Path(f"{self.socket}.ctrl"))
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}"]
        command += ["--server", f"type=unixio,fd={data.fileno()}"]
        command += ["--ctrl", f"type=unixio,fd={control.fileno()}"]
        command += ["--flags", "startup-clear", "--log", f"file={self.folder / 'log'}"]
        with data, control:
            descriptors = (data.fileno(), control.fileno())
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
            )

    def kill(self) -> None:
        """End it without any warning, as a crash would: volatile state is lost. Blocks."""
        if self._process is not None:
            self._process.kill()  # also ends a paused one
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill and start it: a reset of the machine. Keys made before can be loaded again. Blocks.

        Connections break.
        """
        self.kill()
        self.start()

    def clear(self) -> None:
        """Restart it with an empty state: another TPM, to which no key is known. Blocks."""
        self.kill()
        shutil.rmtree(self.state)
        self.state.mkdir()
        self.start()

    def pause(self) -> None:
        """Stop it from answering, though connections stay (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again, beginning with what it was asked meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def make_certificate(self) -> Path:
        """Make persistent EKs and their certificates. It must not be running. Blocks for 1 s.

        Returns the folder with the certificates of the authority that signed them.
        """
        assert self._process is None, "it is running"
        tool = shutil.which("swtpm_localca")
        assert tool, "swtpm_localca is missing (package swtpm-tools)"
        for name, text in _FILES.items():
            (self.folder / name).write_text(text.format(tool=tool, folder=self.folder))
        command = ["swtpm_setup", "--tpm2", "--tpmstate", str(self.state)]
        command += ["--config", str(self.folder / "setup.conf")]
        command += ["--create-ek-cert", "--create-platform-cert"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.folder / "ca"

    def close(self) -> None:
        """Kill it and remove its files. Blocks."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Swtpm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def missing() -> str:
    """What is missing on this machine for tests with a software TPM; empty if nothing is."""
    if shutil.which("swtpm") is None:
        return "swtpm is not installed (Debian package swtpm)"
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        importlib.import_module("tpm2_pytss")
        ctypes.CDLL("libtss2-tcti-swtpm.so.0")
    except (ImportError, OSError) as error:
        return f"no TPM library (pip install 'nexusg[tpm]', libtss2-tcti-swtpm0): {error}"
    return ""


def require() -> None:
    """Skip the test where something is missing, or fail it if NEXUSG_REQUIRE_TPM is set."""
    reason = missing()
    if reason and os.environ.get(REQUIRE):
        pytest.fail(f"{REQUIRE} is set, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def swtpm() -> Iterator[Swtpm]:
    """A running software TPM with an empty state: no EK certificate, no persistent EK."""
    require()
    with Swtpm() as running:
        yield running


@pytest.fixture
def swtpm_with_certificate() -> Iterator[Swtpm]:
    """A running software TPM with a persistent EK and an EK certificate. Takes about 1 s.

    The certificates of the authority that made it are in ``folder / "ca"``.
    """
    require()
    made = Swtpm()
    try:
        made.make_certificate()
        made.start()
        yield made
    finally:
        made.close()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # what a killed one has left
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    return listener
