"""The master of several workers: its steps with a system that the test plays; then as processes."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout

from nexusg.cli import master as module
from nexusg.cli.example import HOSTNAME, agent_yaml
from nexusg.cli.exits import Exit
from nexusg.cli.master import Master, Wakeups, Worker
from nexusg.cli.workers import Workers
from nexusg.config.model import Logging
from nexusg.observe.stdout import MasterLog
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.cli.conftest import GOOD, SECRET, start
from tests.support.relayed import http_get, user
from tests.support.services import Service, ask, hold


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# The master, step by step ----------------------------------------------------------------------

Step = tuple[float, Any]


class Log(MasterLog):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        reader, self.fd = os.pipe()
        self.reader = open(reader, "rb")  # noqa: SIM115 - closed by the fixture
        super().__init__(Logging(), self.fd)
        self.kept: list[tuple[str, str, dict[str, Any]]] = []

    def _write(self, level: str, name: str, _at: float, fields: dict[str, Any]) -> None:
        self.kept.append((level, name, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The fields of every line with this name."""
        return [fields for _, found, fields in self.kept if found == name]


class System:
    """What the master calls. ``steps`` are played while it waits: (seconds later, what happens).

    What happens is signals, or a dictionary of processes that end: number of the child to status.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.log = Log()
        self.steps: list[Step] = []
        self.children: list[int] = []  # by the order of their starts; 0 when it has ended
        self.fork_error: OSError | None = None
        self.be_worker = -1  # the fork in whose child the test goes on
        self.closed: list[int] = []
        self._forks = 0
        self._ended: list[tuple[int, int]] = []
        self._pipes: list[tuple[int, int]] = []
        for name in ("fork", "close", "waitpid"):
            monkeypatch.setattr(module, f"_{name}", getattr(self, name))
        pipe = os.pipe
        monkeypatch.setattr(os, "pipe", lambda: self._pipes.append(pipe()) or self._pipes[-1])
        monkeypatch.setattr(os, "kill", self.kill)
        monkeypatch.setattr(module, "Wakeups", lambda: self)

    def master(self, count: int = 2, grace_s: float = 30.0) -> Master:
        return Master(Workers(count), grace_s, self.log, lambda: self.now)

    def fork(self) -> int:
        if self.fork_error is not None:
            raise self.fork_error
        self._forks += 1
        if self._forks - 1 == self.be_worker:
            return 0
        self.children.append(5000 + len(self.children))
        return self.children[-1]

    def close(self, fd: int) -> None:
        self.closed.append(fd)  # later, so that the test sees who closes what

    def waitpid(self, pid: int, how: int) -> tuple[int, int]:
        assert (pid, how) == (-1, os.WNOHANG)
        if self._ended:
            return self._ended.pop(0)
        if not any(self.children):
            raise ChildProcessError
        return 0, 0

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.steps.insert(0, (0, {self.children.index(pid): number}))

    def end(self, statuses: dict[int, int]) -> None:
        for child, status in statuses.items():
            self._ended.append((self.children[child], status))
            self.children[child] = 0

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout_s: float) -> bytes:
        if not self.steps or self.steps[0][0] > timeout_s:
            assert math.isfinite(timeout_s), "it would wait for ever"
            self.steps[:1] = (
                [(self.steps[0][0] - timeout_s, self.steps[0][1])] if self.steps else []
            )
            self.now += timeout_s
            return b""
        after_s, what = self.steps.pop(0)
        self.now += after_s
        if isinstance(what, dict):
            self.end(what)
            return bytes((signal.SIGCHLD,))
        return bytes(what)

    def orders(self, child: int) -> bytes:
        """All that this child was told."""
        reader = self._pipes[child][0]
        os.set_blocking(reader, False)
        try:
            return os.read(reader, 100)
        except BlockingIOError:
            return b""

    def finish(self) -> None:
        """Close everything."""
        for fd in (end for pipe in self._pipes for end in pipe):
            with open(fd, "rb"):
                pass
        with self.log.reader, open(self.log.fd, "wb"):
            pass


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patch:
        system = System(patch)
        yield system
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    system.finish()


TERM, HUP = [signal.SIGTERM], [signal.SIGHUP]


def test_two_are_started_and_stopped(system: System) -> None:
    system.steps = [(5, TERM), (1, {0: 0}), (1, {1: 0})]
    assert system.master().run() is Exit.OK
    assert system.log.kept[:2] == [
        ("info", "worker.started", {"worker": 0, "pid": 5000}),
        ("info", "worker.started", {"worker": 1, "pid": 5001}),
    ]
    assert system.log.kept[2:] == [
        ("info", "worker.exited", {"worker": 0, "pid": 5000, "code": 0, "duration_s": 6}),
        ("info", "worker.exited", {"worker": 1, "pid": 5001, "code": 0, "duration_s": 7}),
    ]
    assert [system.orders(child) for child in (0, 1)] == [b"s", b"s"]


def test_a_second_signal_is_passed_on(system: System) -> None:
    system.steps = [(0, TERM), (1, [signal.SIGINT]), (1, {0: 0, 1: 0})]
    assert system.master().run() is Exit.OK
    assert system.orders(1) == b"sa"


def test_two_signals_in_one_moment_are_two(system: System) -> None:
    system.steps = [(0, TERM + TERM), (1, {0: 0, 1: 0})]
    system.master().run()
    assert system.orders(0) == b"sa"


def test_a_hangup_is_passed_on(system: System) -> None:
    system.steps = [(0, HUP), (0, TERM), (1, {0: 0, 1: 0})]
    assert system.master().run() is Exit.OK
    assert system.orders(0) == b"hs"


def test_who_does_not_stop_is_killed(system: System) -> None:
    system.steps = [(0, TERM), (1, {0: 0})]
    assert system.master(grace_s=30).run() is Exit.FAILED
    assert system.now == 1040
    assert system.log.named("worker.killed") == [{"worker": 1, "pid": 5001}]
    assert system.log.named("worker.exited")[1]["signal"] == "SIGKILL"


def test_at_once_takes_no_grace(system: System) -> None:
    system.steps = [(0, TERM), (1, TERM)]
    assert system.master(grace_s=300).run() is Exit.FAILED
    assert system.now == 1011


def test_the_dead_are_replaced(system: System) -> None:
    system.steps = [(5, {0: signal.SIGSEGV}), (3, TERM), (0, {1: 0, 2: 0})]
    assert system.master().run() is Exit.OK
    level, _, fields = system.log.kept[2]
    assert level == "error"
    assert fields == {"worker": 0, "pid": 5000, "signal": "SIGSEGV", "duration_s": 5}
    assert system.log.kept[3:5] == [
        ("warning", "worker.restarting", {"worker": 0, "in_s": 1}),
        ("info", "worker.started", {"worker": 0, "pid": 5002}),
    ]
    assert system.orders(2) == b"s"


def test_a_worker_that_somebody_has_stopped_is_replaced(system: System) -> None:
    system.steps = [(5, {0: 0}), (3, TERM), (0, {1: 0, 2: 0})]
    assert system.master().run() is Exit.OK
    assert system.log.kept[2][:2] == ("warning", "worker.exited")
    assert system.log.named("worker.started")[2]["worker"] == 0


def test_a_signal_without_a_name(system: System) -> None:
    system.steps = [(5, {0: signal.SIGRTMIN + 1}), (0, TERM)]
    assert system.master(1).run() is Exit.OK
    assert system.log.named("worker.exited")[0]["signal"] == str(signal.SIGRTMIN + 1)


def test_orphans_of_a_container_are_reaped(system: System) -> None:
    system.master()
    system._ended.append((1, 0))
    system.steps = [(5, TERM), (0, {0: 0, 1: 0})]
    assert system.master().run() is Exit.OK
    assert len(system.log.named("worker.exited")) == 2


def test_all_are_refused(system: System) -> None:
    system.steps = [(5, {0: 3 << 8}), (500, {1: 3 << 8})]
    assert system.master().run() is Exit.REFUSED
    assert [line["worker"] for line in system.log.named("worker.refused")] == [0, 1]
    assert system.log.named("worker.restarting") == []


def test_an_unusable_configuration_stops_all(system: System) -> None:
    system.steps = [(0, {0: 2 << 8}), (1, {1: 0})]
    assert system.master().run() is Exit.USAGE
    assert system.orders(1) == b"s"


def test_a_fork_that_fails_is_tried_again(system: System) -> None:
    system.fork_error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def recover(timeout_s: float) -> bytes:
        system.fork_error = None
        del system.wait  # type: ignore[method-assign]
        return system.wait(timeout_s)

    system.wait = recover  # type: ignore[method-assign]
    system.steps = [(3, TERM), (0, {0: 0})]
    assert system.master(1).run() is Exit.OK
    assert system.log.kept[0] == (
        "error",
        "worker.failed",
        {"worker": 0, "error": "Resource temporarily unavailable"},
    )
    assert system.log.named("worker.started") == [{"worker": 0, "pid": 5000}]


def test_a_worker_that_is_gone_cannot_be_told(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_fd: int, _data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
    system.steps = [(0, TERM), (0, {0: 0})]
    assert system.master(1).run() is Exit.OK


def test_the_child_is_told_what_it_is(system: System) -> None:
    system.be_worker = 1
    fate = system.master().run()
    assert fate == Worker(1, system._pipes[1][0])
    ends_of_the_master = [writer for _, writer in system._pipes]
    assert set(ends_of_the_master) < set(system.closed), "or its end would go unnoticed"
    assert fate.orders not in system.closed
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "until it listens"


def test_signals_are_not_blocked_in_the_master(system: System) -> None:
    system.steps = [(0, TERM), (0, {0: 0, 1: 0})]
    system.master().run()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_lines_that_wait_are_tried_again_soon(system: System) -> None:
    os.set_blocking(system.log.fd, False)
    os.write(system.log.fd, b"-" * 100_000)  # more than it takes
    system.log.writer.write(b"last\n")
    system.steps = [(0.01, []), (1, TERM), (0, {0: 0})]
    master = system.master(1)
    assert master._pause_s() <= 0.05
    assert master.run() is Exit.OK


# With a service manager ------------------------------------------------------------------------


class FakeBoard:
    """What the master writes and asks."""

    every_s = 2.0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.hanging: list[int] = []

    def expect(self, number: int) -> None:
        self.calls.append(("expect", number))

    def silent(self, number: int) -> bool:
        if number in self.hanging:
            self.hanging.remove(number)
            return True
        return False

    def tell(self, running: int, *, stopping: bool) -> None:
        self.calls.append(("tell", running, stopping))


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


def watched(system: System, board: FakeBoard, count: int = 2) -> Master:
    return Master(Workers(count), 30.0, system.log, lambda: system.now, board)  # type: ignore[arg-type]


def test_the_board_is_looked_at_again_and_again(system: System, board: FakeBoard) -> None:
    system.steps = [(3, TERM), (1, {0: 0}), (1, {1: 0})]
    assert watched(system, board).run() is Exit.OK
    assert board.calls == [
        ("expect", 0),
        ("expect", 1),
        ("tell", 2, False),  # after 2 s
        ("tell", 2, True),
        ("expect", 0),
        ("tell", 1, True),
        ("expect", 1),
        ("tell", 0, True),
    ]


def test_a_worker_that_hangs_is_replaced(system: System, board: FakeBoard) -> None:
    board.hanging = [1]
    system.steps = [(9, TERM), (0, {0: 0, 2: 0})]
    assert watched(system, board).run() is Exit.OK
    assert system.log.named("worker.silent") == [{"worker": 1, "pid": 5001}]
    assert system.log.named("worker.exited")[0]["signal"] == "SIGKILL"
    assert system.log.named("worker.started")[2]["worker"] == 1


def test_a_worker_that_hangs_while_it_stops_has_its_grace(system: System, board: FakeBoard) -> None:
    system.steps = [(0, TERM), (5, {0: 0})]
    board.hanging = [0]
    assert watched(system, board, 1).run() is Exit.OK
    assert system.log.named("worker.silent") == []


# Its signals -----------------------------------------------------------------------------------


@pytest.fixture
def wakeups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wakeups]:
    # SIGCHLD belongs to gevent in this process.
    monkeypatch.setattr(module, "HELD", {signal.SIGHUP, signal.SIGTERM})
    before = signal.getsignal(signal.SIGHUP)
    with Wakeups() as wakeups:
        yield wakeups
    assert signal.getsignal(signal.SIGHUP) == before


def test_signals_wake_the_master_in_their_order(wakeups: Wakeups) -> None:
    assert wakeups.wait(0.0) == b""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        signal.raise_signal(number)
    assert wakeups.wait(math.inf) == bytes((signal.SIGTERM, signal.SIGHUP, signal.SIGTERM))
    assert wakeups.wait(0.001) == b""


# As processes ----------------------------------------------------------------------------------

PATIENCE_S = 20.0  # three processes have to start, on a machine that may be busy


class Command:
    """``nexusg run`` as a process, and what it logs."""

    def __init__(self, path: str) -> None:
        self.process = start("--config", path)
        self.lines: list[dict[str, Any]] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        """Read until the ``count``-th line of that name, and return it. Blocks."""
        with Timeout(PATIENCE_S, AssertionError(f"no {event}: {self.lines}")):
            while len(self.named(event)) < count:
                assert self._read(), f"no {event}: {self.lines}"
        return self.named(event)[count - 1]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def end(self, *signals: int) -> tuple[int, str]:
        """Send signals, read to the end; exit code and stderr. Blocks."""
        for number in signals:
            os.kill(self.pid, number)
        assert self.process.stderr
        with Timeout(PATIENCE_S, AssertionError(f"it does not end: {self.lines}")):
            while self._read():  # to the end of the last worker
                pass
            return self.process.wait(), self.process.stderr.read().decode()

    def clean_up(self) -> None:
        """Leave nothing behind, whatever the test has come to."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()

    def _read(self) -> bool:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            self.lines.append(json.loads(line))
        return bool(line)


@pytest.fixture
def relay() -> Iterator[DevRelay]:
    config = RelayConfig(secret=SECRET, tls=False, on_log=lambda _event, _fields: None)
    with DevRelay(config) as relay:
        yield relay


@pytest.fixture
def config(relay: DevRelay, tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration of two workers for the relay; returns its path."""

    def write(more: str = "", target: str = "127.0.0.1:1", secret: str = SECRET) -> str:
        """``more`` may begin with settings of the backend."""
        file = tmp_path / "secret"
        file.write_text(secret)
        file.chmod(0o600)
        text = agent_yaml(relay.url, None, file, {relay.public_ports[0]: target})
        (tmp_path / "config.yaml").write_text(f"{text}{more}workers: 2\n")
        return str(tmp_path / "config.yaml")

    return write


@pytest.fixture
def run(config: Callable[..., str]) -> Iterator[Callable[..., Command]]:
    """Starts the command with such a configuration."""
    commands = []

    def run(**settings: str) -> Command:
        commands.append(Command(config(**settings)))
        return commands[-1]

    yield run
    for command in commands:
        command.clean_up()


def test_two_workers_share_the_users(relay: DevRelay, run: Callable[..., Command]) -> None:
    with Service(ask(http_get(HOSTNAME), b"hello")) as service:
        command = run(target=service.target)
        assert relay.wait_agents(2)
        for _ in range(24):
            sock = user(relay, http_get(HOSTNAME))
            assert sock.recv(5) == b"hello"
            sock.close()
        command.wait("stream.closed", 24)
        shares = [line["worker"] for line in command.named("stream.connected")]
        assert (shares.count(0), shares.count(1)) == (12, 12)
        assert command.end(signal.SIGTERM) == (0, "")
    assert [line["code"] for line in command.named("worker.exited")] == [0, 0]
    assert len(command.named("agent.stopped")) == 2


def test_a_stop_waits_for_the_download_of_one_worker(
    relay: DevRelay, run: Callable[..., Command]
) -> None:
    size = 4 * 1024 * 1024
    with Service(ask(http_get(HOSTNAME), b"x" * size)) as service:
        command = run(target=service.target)
        assert relay.wait_agents(2)
        sock = user(relay, http_get(HOSTNAME))
        received = len(sock.recv(1000))
        os.kill(command.pid, signal.SIGTERM)
        command.wait("worker.exited")  # the one that has nothing to do
        while data := sock.recv(65536):
            received += len(data)
        sock.close()
        assert received == size
        assert command.end() == (0, "")
    stopping = sorted(line["streams"] for line in command.named("agent.stopping"))
    assert stopping == [0, 1]


def test_a_second_signal_ends_all_at_once(relay: DevRelay, run: Callable[..., Command]) -> None:
    with Service(hold) as service:
        command = run(target=service.target)
        assert relay.wait_agents(2)
        socks = [user(relay, http_get(HOSTNAME)) for _ in range(2)]
        command.wait("stream.connected", 2)
        os.kill(command.pid, signal.SIGINT)
        command.wait("agent.stopping", 2)
        assert command.end(signal.SIGINT) == (0, "")
        assert [line["cut"] for line in command.named("agent.stopped")] == [1, 1]
        for sock in socks:
            sock.close()


def test_signals_to_the_whole_group_are_not_counted_twice(
    relay: DevRelay, run: Callable[..., Command]
) -> None:
    """As a terminal sends Ctrl-C, and supervisord with stopasgroup."""
    command = run()
    assert relay.wait_agents(2)
    workers = [line["pid"] for line in (command.wait("worker.started", n) for n in (1, 2))]
    for pid in (command.pid, *workers):
        os.kill(pid, signal.SIGINT)
    assert command.end() == (0, "")
    assert len(command.named("agent.stopping")) == 2


def test_a_worker_that_is_killed_is_replaced(relay: DevRelay, run: Callable[..., Command]) -> None:
    command = run()
    assert relay.wait_agents(2)
    command.wait("session.connected", 2)
    os.kill(command.wait("worker.started")["pid"], signal.SIGKILL)
    gone = command.wait("worker.exited")
    assert (gone["worker"], gone["signal"], gone["level"]) == (0, "SIGKILL", "error")
    assert command.wait("worker.restarting")["in_s"] == 1
    command.wait("session.connected", 3)
    assert command.end(signal.SIGTERM) == (0, "")


def test_without_their_master_the_workers_stop(
    relay: DevRelay, run: Callable[..., Command]
) -> None:
    command = run()
    assert relay.wait_agents(2)
    code, err = command.end(signal.SIGKILL)
    assert (code, err) == (-signal.SIGKILL, "")
    assert sorted(line["worker"] for line in command.named("master.gone")) == [0, 1]
    assert sorted(line["worker"] for line in command.named("agent.stopped")) == [0, 1]


def test_a_bad_configuration_is_said_once(write: Callable[[str], str]) -> None:
    process = start("--config", write(GOOD.replace("hostnames", "hostnamez") + "workers: 2\n"))
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (2, b"")
    assert err.count(b"hostnamez") == 2, "one line for each backend"


def test_refused_by_the_relay(run: Callable[..., Command]) -> None:
    more = "reconnect: {giveUpAfterRejections: 1}\n"
    command = run(more=more, secret="another secret of more than 32 bytes")
    assert command.end() == (3, "")
    assert sorted(line["worker"] for line in command.named("worker.refused")) == [0, 1]


def test_nobody_reads_what_it_logs(relay: DevRelay, config: Callable[..., str]) -> None:
    """A full pipe keeps the master neither from passing a signal on nor from its end."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0) as full:
        full.write(b"-" * 65536)
        process = start("--config", config(), stdout=full)
        assert relay.wait_agents(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        process.communicate()


def test_the_master_has_one_thread_and_no_sockets(
    relay: DevRelay, run: Callable[..., Command]
) -> None:
    command = run()
    assert relay.wait_agents(2)
    assert len(os.listdir(f"/proc/{command.pid}/task")) == 1
    folder = f"/proc/{command.pid}/fd"
    files = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
    assert not [file for file in files if file.startswith(("socket:", "anon_inode:"))]
    assert command.end(signal.SIGTERM) == (0, "")


def test_they_share_a_socks_port(run: Callable[..., Command]) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*reserved.getsockname())
        command = run(more=f"    socks5ListenAddr: {address}\n")
        command.wait("socks.listening", 2)
    assert {line["worker"] for line in command.named("socks.listening")} == {0, 1}
    assert {line["address"] for line in command.named("socks.listening")} == {address}
    assert command.end(signal.SIGTERM) == (0, "")


def test_the_first_one_owns_a_socks_file(
    relay: DevRelay, run: Callable[..., Command], tmp_path: Path
) -> None:
    command = run(more=f"    socks5ListenAddr: unix:{tmp_path}/socks\n")
    assert relay.wait_agents(2)
    assert command.wait("socks.listening")["worker"] == 0
    assert command.end(signal.SIGTERM) == (0, "")
    assert len(command.named("socks.listening")) == 1
    assert command.named("socks.failed") == []
