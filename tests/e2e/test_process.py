"""Agents in processes of their own: unpatched ones, and ones that fork (program.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout

from tests.support.relayed import AMPLE_S, HOST, SECRET
from tests.support.running import HEAD, Running, read_exactly
from tests.support.services import echo


if TYPE_CHECKING:
    from collections.abc import Iterator

    from nexusg.relay.server import DevRelay

#: Idle streams in the test of memory.
COUNT = 1000

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """A running program.py."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def line(self, word: str) -> list[str]:
        """The rest of the next line that begins with ``word``; no task may fail until then."""
        with Timeout(AMPLE_S, AssertionError(f"the program never said {word}")):
            while True:
                line = self._process.stdout.readline()
                assert line, f"the program ended without saying {word}"
                words = line.split()
                assert words[0] != "task.failed"
                if words[0] == word:
                    return list(words[1:])

    def resident_bytes(self) -> int:
        """The memory it has in use, on Linux."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def proceed(self) -> None:
        """Let it go on."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Its exit status."""
        with Timeout(AMPLE_S, AssertionError("the program does not end")):
            return int(self._process.wait())


@contextmanager
def program(
    relay: DevRelay, mode: str, *, patched: bool = False, **mapping: Any
) -> Iterator[Program]:
    """Run program.py as an agent of ``relay``."""
    settings = {
        **mapping,
        "url": relay.url,
        "ca_file": str(relay.ca_file),
        "secret": SECRET,
        "host": HOST,
    }
    kind = "patched" if patched else "unpatched"
    command = [sys.executable, "-m", "tests.e2e.program", kind, mode, json.dumps(settings)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


both = pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])


def test_in_an_unpatched_process(running: Running) -> None:
    """ARCHITECTURE.md, rule 9: the rest of the program may block in threads of its own."""
    relay = running.relay()
    with program(relay, "run") as child:
        assert child.line("patched") == ["False"]
        child.line("session.connected")
        assert running.talk(relay, bytes(200_000)) == bytes(200_000)
        child.proceed()
        assert child.line("outcome") == ["stopped"]
        assert child.end() == 0


@both
def test_started_after_a_fork(running: Running, patched: bool) -> None:
    """As in the workers of a pre-forking server."""
    relay = running.relay()
    with program(relay, "start_after_fork", patched=patched) as child:
        child.line("session.connected")
        assert running.talk(relay, b"hello") == b"hello"
        child.proceed()
        assert child.line("outcome") == ["stopped"]
        assert child.line("exit") == ["0", "False"]


@both
def test_a_fork_while_it_runs(running: Running, patched: bool) -> None:
    """A byte of the child's on the parent's TLS connection would be the end of it."""
    relay = running.relay()
    with program(relay, "fork_while_running", patched=patched) as child:
        child.line("session.connected")
        user = running.user(relay, b"before")
        assert read_exactly(user, len(HEAD) + 6).endswith(b"before")
        child.proceed()
        assert child.line("child") == ["False", "True", "None"]
        user.sendall(b"during")
        assert read_exactly(user, 6) == b"during"
        assert child.line("child") == ["0", "0", "False"]
        assert child.line("waited") == ["True"]
        user.sendall(b"after")
        assert read_exactly(user, 5) == b"after"
        assert running.talk(relay, b"new") == b"new"
        user.close()
        child.proceed()
        assert child.line("session.closed")
        assert child.line("outcome") == ["stopped"]
    events = [event for event, _ in relay.logged]  # type: ignore[attr-defined]
    assert events.count("agent.registered") == 1


def test_a_fork_that_starts_the_agent_again(running: Running) -> None:
    """Two agents then, in two processes."""
    relay = running.relay()
    with program(relay, "fork_and_start") as child:
        (parent,) = child.line("session.connected")
        child.proceed()
        assert child.line("session.connected") != [parent]
        assert child.line("child") == ["True"]
        assert child.line("child") == ["stopped"]
        assert child.line("waited") == ["True"]
        assert running.talk(relay, b"the parent") == b"the parent"
        child.proceed()
        assert child.line("outcome") == ["stopped"]


@both
def test_children_that_exec(running: Running, patched: bool) -> None:
    """gevent really forks for them, so the hook runs in each."""
    relay = running.relay()
    with program(relay, "children_that_exec", patched=patched) as child:
        child.line("session.connected")
        user = running.user(relay, b"before")
        assert read_exactly(user, len(HEAD) + 6).endswith(b"before")
        child.proceed()
        assert child.line("ran") == ["True"]
        user.sendall(b"after")
        assert read_exactly(user, 5) == b"after"
        user.close()
        child.proceed()
        assert child.line("outcome") == ["stopped"]
    events = [event for event, _ in relay.logged]  # type: ignore[attr-defined]
    assert events.count("agent.registered") == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_thousand_idle_streams(running: Running) -> None:
    """They are all there, and all alive; what each costs is printed (pytest -s), not judged."""
    relay = running.relay()
    service = running.service(echo)
    mapping = {"port": relay.public_ports[0], "target": service.target}
    with program(relay, "run", patched=True, **mapping) as child:
        child.line("session.connected")
        running.talk(relay)
        before = child.resident_bytes()
        users = [running.user(relay) for _ in range(COUNT)]
        for user in users:
            assert len(read_exactly(user, len(HEAD))) == len(HEAD)
        each = (child.resident_bytes() - before) / COUNT
        print(f"{each / 1024:.1f} KiB of memory for each idle stream")
        for user in users[::100]:
            user.sendall(b"alive")
            assert read_exactly(user, 5) == b"alive"
        for user in users:
            user.close()
        service.wait_open(0)
        child.proceed()
        assert child.line("outcome") == ["stopped"]
