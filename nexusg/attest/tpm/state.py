"""What a device keeps of its enrollment: one file, and a lock for those who would change it.

It must not know the TPM, nor the authorizer. Losing the file costs one enrollment: so a file that
is no use is never an error, and is replaced by the next one.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent

from nexusg.errors import TpmError

from .templates import AK_KINDS
from .worker import outcome


if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = "state.json"
LOCK_NAME = "lock"
VERSION = 1

#: A state is 2 kB with an RSA key; whatever is larger is something else.
MAX_FILE_BYTES = 64 * 1024

#: How long the holder of the lock may take: an enrollment with a slow TPM and authorizer.
LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.05

_KEYS = ("ak_public", "ak_private")
_TEXTS = ("authorizer_url", "ek_fingerprint", "ak_kind", "device_id", "hostname", "identity_class")

_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A device as one authorizer knows it, with its attestation key as only its TPM can read it."""

    authorizer_url: str
    ek_fingerprint: str
    ak_kind: str
    ak_public: bytes = field(repr=False)
    ak_private: bytes = field(repr=False)
    device_id: str
    hostname: str
    identity_class: str
    nexus_endpoints: tuple[str, ...] = ()
    version: int = VERSION


class TpmState:
    """The file ``state.json`` in ``folder``.

    After `load`, ``problem`` says why a file that is there was not used (None: there is no file,
    or it is fine), and ``note`` what was mended on the way. Both are finished log lines.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        self.problem: str | None = None
        self.note: str | None = None

    def load(self) -> Enrolment | None:
        """Read the enrollment; None when there is none that can be used. Never raises."""
        self.problem = self.note = None
        try:
            return _parse(self._read())
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problem = f"{self.path} cannot be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            self.problem = f"{self.path} is no enrollment: {error}"
        return None

    def save(self, enrolment: Enrolment) -> None:
        """Replace the file, so that there is either the old one or the new one. Blocks.

        Raises:
            TpmError: it cannot be written.
        """
        data = _text(enrolment).encode()
        # Only this thread pool's other work waits for a slow disk, not the hub.
        done, value = gevent.get_hub().threadpool.apply(outcome, (self._write, data))
        if not done:
            raise TpmError(f"{self.path} cannot be written: {value.strerror}") from value

    @contextlib.contextmanager
    def lock(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Keep others out, of this process and of others, that lock the same folder. Blocks.

        Raises:
            TpmError: somebody else had it for ``timeout_s``; or the folder cannot be used.
        """
        path = self.folder / LOCK_NAME
        try:
            self._make_folder()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _PRIVATE_FILE)
        except OSError as error:
            raise TpmError(f"{path} cannot be locked: {error.strerror}") from error
        try:
            _acquire(descriptor, path, timeout_s)
            os.pwrite(descriptor, b"%d" % os.getpid(), 0)
            yield
        finally:
            # Not only closed: a process that was forked meanwhile would keep the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)

    def _read(self) -> bytes:
        # NONBLOCK, so that a FIFO in its place cannot stop everything.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is not a file")
            if found.st_mode & _OTHERS:
                self.note = self._tighten(descriptor, stat.S_IMODE(found.st_mode))
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        return data

    def _tighten(self, descriptor: int, mode: int) -> str:
        text = f"{self.path} was open to other users (mode {mode:o})"
        try:
            os.fchmod(descriptor, _PRIVATE_FILE)
        except OSError as error:
            return f"{text}, and that cannot be changed: {error.strerror}"
        return f"{text}: changed to {_PRIVATE_FILE:o}"

    def _write(self, data: bytes) -> None:
        self._make_folder()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}-", dir=self.folder)
        try:
            with open(descriptor, "wb") as file:  # mkstemp has made it private
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, self.path)
        except OSError:
            os.unlink(temporary)
            raise
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # or a power failure could bring the old file back
        finally:
            os.close(folder)


def _acquire(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise TpmError(f"{path} cannot be locked: {error.strerror}") from error
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TpmError(f"{path} is locked{_holder(descriptor)}, for more than {timeout_s:g} s")
        gevent.sleep(min(LOCK_POLL_S, left_s))


def _holder(descriptor: int) -> str:
    """Who has written its number into the lock file."""
    text = os.pread(descriptor, 20, 0)
    if not text.isdigit():
        return ""
    pid = int(text)
    return " by another part of this process" if pid == os.getpid() else f" by process {pid}"


def _text(enrolment: Enrolment) -> str:
    values = asdict(enrolment)
    for name in _KEYS:
        values[name] = base64.b64encode(values[name]).decode()
    return json.dumps(values, indent=1) + "\n"


def _parse(data: bytes) -> Enrolment:
    """Read the file's text; ValueError for whatever is not as `_text` writes it."""
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    if values.get("version") != VERSION:
        raise ValueError(f"its version is {values.get('version')!r:.20}, not {VERSION}")
    if values.get("ak_kind") not in AK_KINDS:
        raise ValueError("ak_kind is unknown")
    endpoints = values.get("nexus_endpoints")
    if not isinstance(endpoints, list) or not all(isinstance(one, str) for one in endpoints):
        raise ValueError("nexus_endpoints is no list of texts")
    known: dict[str, Any] = {"nexus_endpoints": tuple(endpoints)}
    for name in _TEXTS:
        known[name] = _value(values, name)
    for name in _KEYS:
        known[name] = base64.b64decode(_value(values, name), validate=True)
    return Enrolment(**known)


def _value(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is no text")
    return value
