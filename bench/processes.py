"""Processes that the benchmark starts, and what the kernel says about them.

It knows nothing of what they do. Each is ended by its id when its context ends, and by the kernel
when the benchmark itself is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench import Failed


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]

#: Importing everything takes 0.3 s on an idle machine; a loaded one is given its time.
ANNOUNCE_S = 20.0
#: From the polite signal to the one that cannot be caught: nobody needs what a graceful end saves.
STOP_S = 1.0
#: How much of a log is quoted when its process has failed.
TAIL_BYTES = 1000

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants have used, and hold now."""

    cpu_s: float
    rss_bytes: int
    peak_bytes: int
    descriptors: int


class Process:
    """One child process, its stderr in a log file. Use as a context."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> None:
        """``folder`` is for the log; ``piped``: stdin and stdout are pipes to this process."""
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            try:
                self._child = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=_environ(environ or {}),
                    stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if piped else log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                raise Failed(f"{name} cannot be started: {error.strerror}") from error
        self._rest = b""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._child.pid

    def stop(self) -> None:
        """End it, politely first. Blocks, for a while at most."""
        child = self._child
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            if not self.wait_end(STOP_S):
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until it has ended, ``timeout_s`` at most; whether it has. Blocks."""
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def check(self) -> None:
        """Raise Failed if it has ended."""
        if self._child.poll() is not None:
            raise Failed(f"{self.name} ended with {self._child.returncode}{self.tail()}")

    def tail(self) -> str:
        """The end of its log, to be put behind a message."""
        text = self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
        return f"\nIts log ends with:\n{text}" if text else ""

    # Talking to a piped one ------------------------------------------------------------------

    def read_line(self, timeout_s: float) -> str:
        """The next line of its output. Raises Failed when there is none in time. Blocks."""
        pipe, deadline = _pipe(self._child.stdout), time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([pipe], [], [], max(left_s, 0))
            data = os.read(pipe.fileno(), 65536) if ready else b""
            if not data:
                what = "ended" if ready else f"said nothing for {timeout_s:g} s"
                raise Failed(f"{self.name} {what}{self.tail()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    def read_rest(self, timeout_s: float) -> str:
        """All that it says until it ends. Raises Failed when that takes too long. Blocks."""
        try:
            output, _ = self._child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} is still running after {timeout_s:g} s") from None
        return bytes(output).decode(errors="replace")

    def read_answer(self, timeout_s: float = ANNOUNCE_S) -> dict[str, Any]:
        """The next line as a JSON object. Raises Failed, also for what its "error" says. Blocks."""
        line = self.read_line(timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            raise Failed(f"{self.name} said {line[:200]!r}, not JSON") from None
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return dict(answer)

    def close_input(self) -> None:
        """Let it read end of file."""
        _pipe(self._child.stdin).close()

    # What it uses ----------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What it and its descendants use. Raises Failed when it has ended."""
        self.check()
        cpu = rss = peak = descriptors = 0
        for pid in tree(self._child.pid):
            try:
                times = _stat(pid)[11:15]  # utime, stime, and those of children waited for
                memory = _memory(pid)
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            except (OSError, IndexError, KeyError):
                continue  # it ended meanwhile; its time is its parent's now
            cpu += sum(map(int, times))
            rss += memory["VmRSS"]
            peak += memory["VmHWM"]
        return Usage(cpu / _TICKS_PER_S, rss, peak, descriptors)

    def reset_peak(self) -> None:
        """Let the peak of the memory start again from what is used now (Linux 4.0)."""
        for pid in tree(self._child.pid):
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                pass  # it ended meanwhile, or changed its user: then the peak is since its start


def program(name: str, settings: Mapping[str, Any], folder: Path, label: str = "") -> Process:
    """Start ``bench.<name>``, one of the benchmark's own programs, with JSON ``settings``."""
    command = [sys.executable, "-m", f"bench.{name}", json.dumps(settings)]
    return Process(label or name, command, folder, piped=True)


def tree(root: int) -> list[int]:
    """``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                yield int(entry), int(_stat(int(entry))[1])
            except OSError:
                pass  # it ended meanwhile


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the state (3) on; before it is a name in brackets."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    pairs = (line.split() for line in lines if line.startswith("Vm"))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in pairs}


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "it was not started with pipes"
    return pipe


def _environ(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
    return {**kept, **extra}


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
