"""The command with a real agent and a real relay, in this process; then as a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import IO, TYPE_CHECKING, Any

import gevent
import pytest
from gevent.event import Event

from nexusg.cli import app, run
from nexusg.cli.example import agent_yaml
from nexusg.cli.exits import Exit
from nexusg.cli.master import Worker
from nexusg.cli.orders import Order, Orders
from nexusg.cli.signals import Signals
from nexusg.config.model import Logging
from nexusg.observe.stdout import StdoutLog
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig
from tests.cli.conftest import GOOD, SECRET, Done, start
from tests.support.manager import Manager
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nexusg.cli.board import Board
    from nexusg.cli.master import Master


@pytest.fixture
def relay() -> Iterator[DevRelay]:
    config = RelayConfig(secret=SECRET, tls=False, on_log=lambda _event, _fields: None)
    with DevRelay(config) as relay:
        yield relay


@pytest.fixture
def config(relay: DevRelay, tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration for the relay, and more lines; returns its path."""

    def write(more: str = "", secret: str = SECRET) -> str:
        for name, text in (("secret", secret), ("config.yaml", "")):
            (tmp_path / name).write_text(text, encoding="utf-8")
            (tmp_path / name).chmod(0o600)
        targets = {relay.public_ports[0]: "127.0.0.1:1"}
        text = agent_yaml(relay.url, None, tmp_path / "secret", targets)
        (tmp_path / "config.yaml").write_text(text + more, encoding="utf-8")
        return str(tmp_path / "config.yaml")

    return write


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager.at(tmp_path) as manager:
        yield manager


class Running:
    """``nexusg run`` in a greenlet of this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> None:
        self._capfd = capfd
        self._greenlet = gevent.Greenlet.spawn(app.main, arguments)

    def end(self, *signals: int) -> Done:
        for number in signals:
            os.kill(os.getpid(), number)
        code = self._greenlet.get(timeout=10)
        return Done(code, *self._capfd.readouterr())


@pytest.fixture
def running(capfd: pytest.CaptureFixture[str]) -> Callable[..., Running]:
    return lambda *arguments: Running(capfd, *arguments)


def events(done: Done) -> list[str]:
    return [json.loads(line)["event"] for line in done.out.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_until_a_signal(
    running: Callable[..., Running],
    config: Callable[..., str],
    relay: DevRelay,
    number: int,
    freezes: list[str],
) -> None:
    command = running("--config", config())
    assert relay.wait_agents()
    assert freezes == ["freeze"]
    done = command.end(number)
    assert (done.code, done.err) == (0, "")
    named = events(done)
    assert named[:3] == ["agent.started", "session.connected", "agent.stopping"]
    assert named[-1] == "agent.stopped"


def test_options_win_over_the_configuration(
    running: Callable[..., Running], config: Callable[..., str], relay: DevRelay
) -> None:
    path = config("logging: {level: error, format: json}\n")
    command = running("run", "--config", path, "--log-level", "debug", "--log-format", "console")
    assert relay.wait_agents()
    assert "] session.connecting backend=demo relay=" in command.end(signal.SIGTERM).out


def test_a_refused_agent_ends_by_itself_if_told_to(
    running: Callable[..., Running], config: Callable[..., str]
) -> None:
    path = config("reconnect: {giveUpAfterRejections: 1}\n", secret="another " * 8)
    done = running("--config", path).end()
    assert done.code == 3
    assert "session.rejected" in events(done)
    assert "another" not in done.out + done.err


def test_warnings_and_advice_come_first(
    running: Callable[..., Running],
    write: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
    command = running("--config", write(GOOD.replace("tcpPorts: [22]", "tcpPorts: [22, 23]")))
    gevent.sleep(0)  # the handlers of signals are there
    done = command.end(signal.SIGTERM)
    warning, advice = (json.loads(line) for line in done.out.splitlines()[:2])
    assert (warning["event"], warning["level"]) == ("config.warning", "warning")
    assert "port 23 has no entry" in warning["message"]
    assert advice["event"] == "supervisor.detected"
    assert advice["message"].startswith("stopwaitsecs must be more than ")
    assert SECRET not in done.out + done.err


def test_the_service_manager_is_told(
    running: Callable[..., Running],
    config: Callable[..., str],
    relay: DevRelay,
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ready at once: the network may be late, and systemd would wait for nothing else."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    command = running("--config", config())
    manager.wait_line("READY=1")
    manager.wait_line("STATUS=1 of 1 sessions, 0 streams")
    assert "NOTIFY_SOCKET" not in os.environ
    done = command.end(signal.SIGTERM)
    assert done.code == 0
    assert events(done)[-1] == "agent.stopped"
    manager.wait_line("STOPPING=1")
    manager.wait_line("STATUS=done, or stopped as asked")
    assert all("WATCHDOG=1" in message for message in manager.told)


def test_the_service_manager_is_told_why_it_ended(
    running: Callable[..., Running],
    config: Callable[..., str],
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    path = config("reconnect: {giveUpAfterRejections: 1}\n", secret="another " * 8)
    assert running("--config", path).end().code == 3
    manager.wait(lambda line: line.startswith("STATUS=the relay kept refusing"))


def test_a_configuration_that_cannot_be_used(
    nexusg: Callable[..., Done], write: Callable[[str], str]
) -> None:
    done = nexusg("--config", write(f"backends: [{{attestation: {{hmacSecret: '{SECRET}'}}}}]"))
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) > 2
    assert SECRET not in done.err


class FakeAgent:
    """An agent whose stop takes until it is told a second time."""

    outcome = ""

    def __init__(self) -> None:
        self.started = Event()
        self.stopping = Event()
        self.ended = Event()

    def start(self) -> None:
        self.started.set()

    def join(self) -> None:
        self.ended.wait()

    def stop(self) -> None:
        if self.stopping.is_set():
            self.outcome = self.outcome or "stopped"
            self.ended.set()
        self.stopping.set()
        self.ended.wait()


class Lines(StdoutLog):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(Logging())
        self.kept: list[tuple[str, str, dict[str, Any]]] = []
        self.written = Event()

    def _write(self, level: str, name: str, _at: float, fields: dict[str, Any]) -> None:
        self.kept.append((level, name, fields))
        self.written.set()


@pytest.fixture
def log() -> Iterator[Lines]:
    log = Lines()
    yield log
    assert log.close()


def serve(agent: Any, log: Lines) -> gevent.Greenlet[[Any, Any], int]:
    serving = gevent.Greenlet.spawn(run.serve, agent, log)
    assert agent.started.wait(5)
    return serving


def test_a_second_signal_ends_the_wait(log: Lines) -> None:
    agent = FakeAgent()
    serving = serve(agent, log)
    os.kill(os.getpid(), signal.SIGTERM)
    assert agent.stopping.wait(5)
    assert not serving.ready()
    os.kill(os.getpid(), signal.SIGTERM)
    assert serving.get(timeout=5) == 0


def test_an_agent_that_has_failed_is_an_exit_code(log: Lines) -> None:
    agent = FakeAgent()
    serving = serve(agent, log)
    agent.outcome = "failed"
    agent.stopping.set()
    agent.ended.set()
    assert serving.get(timeout=5) == 1


def test_a_hangup_is_ignored_and_said(log: Lines) -> None:
    agent = FakeAgent()
    serving = serve(agent, log)
    for _ in range(2):
        log.written.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        assert log.written.wait(5)
    assert [name for _, name, _ in log.kept] == ["signal.ignored"] * 2
    assert not serving.ready()
    agent.stopping.set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert serving.get(timeout=5) == 0


def test_a_stop_that_fails_is_not_hidden(log: Lines) -> None:
    class Failing(FakeAgent):
        def stop(self) -> None:
            raise ValueError("bug")

    agent = Failing()
    agent.ended.set()
    with pytest.raises(ValueError, match="bug"):
        run.serve(agent, log)  # type: ignore[arg-type]


def test_a_helper_that_fails_is_a_line(log: Lines) -> None:
    run._failed(log, "SIGHUP", ValueError("bug"))
    assert log.kept == [("error", "task.failed", {"task": "SIGHUP", "error": "ValueError: bug"})]


class TidyOrders(Orders):
    """Orders of a process that does not end afterwards."""

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        Signals.__exit__(self, *exception)


@pytest.fixture
def as_worker(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., str], running: Callable[..., Running]
) -> Iterator[tuple[Running, IO[bytes]]]:
    """The command as worker 1, and where its master writes to."""
    reader, writer = os.pipe()
    monkeypatch.setattr(run.Master, "run", lambda _master: Worker(1, reader))
    monkeypatch.setattr(run, "Orders", TidyOrders)
    with open(reader, "rb"), open(writer, "wb", buffering=0) as master:
        yield running("--config", config("workers: 2\n")), master


def test_as_a_worker(as_worker: tuple[Running, IO[bytes]], relay: DevRelay) -> None:
    command, master = as_worker
    assert relay.wait_agents()
    master.write(Order.STOP.value)
    done = command.end()
    assert (done.code, done.err) == (0, "")
    assert {json.loads(line)["worker"] for line in done.out.splitlines()} == {1}
    assert events(done)[-1] == "agent.stopped"


def test_a_worker_tells_its_master_instead(
    monkeypatch: pytest.MonkeyPatch,
    config: Callable[..., str],
    running: Callable[..., Running],
    manager: Manager,
) -> None:
    boards: list[Board] = []

    def fork(master: Master) -> Worker:
        assert master._board is not None
        boards.append(master._board)
        return Worker(1, reader)

    reader, writer = os.pipe()
    monkeypatch.setattr(run.Master, "run", fork)
    monkeypatch.setattr(run, "Orders", TidyOrders)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with open(reader, "rb"), open(writer, "wb", buffering=0) as master:
        command = running("--config", config("workers: 2\n"))
        with gevent.Timeout(5):
            while not boards or boards[0]._column(2) != [0.0, 1.0]:  # sessions
                gevent.sleep(0.005)
        master.write(Order.STOP.value)
        assert command.end().code == 0
    assert manager.take() == []


def test_a_worker_without_a_master_says_so_and_stops(
    as_worker: tuple[Running, IO[bytes]], relay: DevRelay
) -> None:
    command, master = as_worker
    assert relay.wait_agents()
    master.close()
    done = command.end()
    assert (done.code, done.err) == (0, "")
    assert "master.gone" in events(done)


def test_as_a_master(
    monkeypatch: pytest.MonkeyPatch,
    nexusg: Callable[..., Done],
    write: Callable[[str], str],
    manager: Manager,
) -> None:
    monkeypatch.setattr(run.Master, "run", lambda _master: Exit.REFUSED)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    text = GOOD.replace("tcpPorts: [22]", "tcpPorts: [22, 23]")
    done = nexusg("--config", write(text + "workers: 2\n"))
    assert (done.code, done.err) == (3, "")
    assert events(done) == ["config.warning"], "once, and not by each worker"
    assert [line[:40] for line in manager.take()[0]] == [
        "STOPPING=1",
        "STATUS=the relay kept refusing the crede",
    ]


def test_as_a_process(config: Callable[..., str], relay: DevRelay) -> None:
    process = start("-config", config("logging: {level: debug}\n"))
    assert relay.wait_agents()
    with open(f"/proc/{process.pid}/cmdline", "rb") as file:
        assert SECRET.encode() not in file.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b"")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["event"] == "agent.started"
    assert lines[-1]["event"] == "agent.stopped"
    assert SECRET.encode() not in out


def test_nobody_reads_its_output(config: Callable[..., str], relay: DevRelay) -> None:
    """A full stdout pipe keeps it neither from working nor from stopping."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as unread, open(writer, "wb", buffering=0) as full:
        fcntl.fcntl(full, 1031, 4096)  # F_SETPIPE_SZ
        full.write(b"-" * 4096)
        process = start("--config", config(), stdout=full)
        assert relay.wait_agents()
        process.send_signal(signal.SIGTERM)
        assert (process.wait(timeout=10), process.communicate()[1]) == (0, b"")
        assert unread.readable()


BUG = """
    import sys
    import nexusg.cli.run
    from nexusg.__main__ import main

    def agent(config, on_event):
        return {}[config.backends[0].attestation.hmac_secret]

    nexusg.cli.run.Agent = agent
    main(["run", "--config", sys.argv[1]])
"""


def test_a_bug_shows_no_secret(good: str) -> None:
    """Tracebacks go to stderr, and hold no values of variables."""
    command = [sys.executable, "-c", textwrap.dedent(BUG), good]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert "KeyError: Secret(" in done.stderr
    assert SECRET not in done.stdout + done.stderr
