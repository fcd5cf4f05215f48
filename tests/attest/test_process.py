from __future__ import annotations

import errno
import os
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent import subprocess
from gevent.event import Event

from nexusg.attest import process
from nexusg.attest.process import OUTPUT_LIMIT_BYTES, Process, _Child
from nexusg.errors import TokenError
from tests.attest.doubles import (
    children,
    exists,
    no_descriptors_left,
    outcome,
    pids,
    script,
    until,
)


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    until(lambda: not children(), "every child to be reaped")


def run(*argv: str, **environment: str) -> tuple[int, bytes, bytes]:
    child = Process(argv, {"PATH": os.environ["PATH"], **environment})
    status = child.run()
    return status, child.stdout, child.stderr


def spawn(child: Process) -> gevent.Greenlet[[], int]:
    return gevent.Greenlet.spawn(child.run)


#: A script that hangs together with a background job; both keep the pipes open.
FAMILY = 'sleep 60 &\necho $$ $! > "$1"\nwait'


@pytest.fixture
def family(tmp_path: Path) -> tuple[Process, Path]:
    """A child with a child of its own, which both hang, and the file with their ids."""
    file = tmp_path / "pids"
    return Process([script(tmp_path, FAMILY), str(file)], os.environ), file


class TestToTheEnd:
    def test_the_two_outputs_are_kept_apart(self, tmp_path: Path) -> None:
        assert run(script(tmp_path, "echo out; echo err >&2")) == (0, b"out\n", b"err\n")

    def test_arguments_see_no_shell(self) -> None:
        arguments = ["$HOME", "two words", "", "*", "`id`"]
        assert run("printf", "%s|", *arguments)[1] == b"$HOME|two words||*|`id`|"

    def test_environment_is_the_one_given(self) -> None:
        status, out, _ = run("env", NAME="a value")
        assert status == 0
        assert set(out.decode().splitlines()) == {f"PATH={os.environ['PATH']}", "NAME=a value"}

    def test_stdin_is_empty(self) -> None:
        assert run("cat") == (0, b"", b"")

    def test_descriptors_are_not_inherited(self, tmp_path: Path) -> None:
        with (tmp_path / "secret").open("w") as held:
            os.set_inheritable(held.fileno(), True)
            assert b"secret" not in run("ls", "-l", "/proc/self/fd")[1]

    @pytest.mark.parametrize(("body", "status"), [("exit 3", 3), ("kill -TERM $$", -15)])
    def test_status(self, tmp_path: Path, body: str, status: int) -> None:
        assert run(script(tmp_path, f"echo early\n{body}")) == (status, b"early\n", b"")

    def test_status_is_waited_for_when_the_pipes_have_ended(self, tmp_path: Path) -> None:
        assert run(script(tmp_path, "exec >&- 2>&-; sleep 0.02; exit 4")) == (4, b"", b"")

    def test_many_at_once_leave_nothing(self) -> None:
        run("true")
        with no_descriptors_left():
            running = [spawn(Process(["true"], os.environ)) for _ in range(10)]
            gevent.joinall(running, raise_error=True)
        assert [greenlet.value for greenlet in running] == [0] * 10


class TestGrandchildren:
    def test_one_that_holds_the_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        started = time.monotonic()
        status, out, _ = run(script(tmp_path, "sleep 60 & echo $!"))
        assert time.monotonic() - started < 5
        daemon = int(out)
        try:
            assert status == 0
            assert exists(daemon)
        finally:
            os.kill(daemon, signal.SIGKILL)

    def test_one_that_is_about_to_write_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "LINGER_S", 10)
        command = script(tmp_path, "(sleep 0.02; echo late) & echo early")
        assert run(command) == (0, b"early\nlate\n", b"")


class TestOutputLimit:
    @pytest.mark.parametrize("redirect", ["", ">&2"], ids=["stdout", "stderr"])
    def test_is_inclusive(self, tmp_path: Path, redirect: str) -> None:
        status, out, err = run(
            script(tmp_path, f"head -c {OUTPUT_LIMIT_BYTES} /dev/zero {redirect}")
        )
        assert (status, len(out + err)) == (0, OUTPUT_LIMIT_BYTES)

    @pytest.mark.parametrize(
        ("redirect", "name"), [("", "stdout"), (">&2", "stderr")], ids=["stdout", "stderr"]
    )
    def test_ends_the_whole_group(self, tmp_path: Path, redirect: str, name: str) -> None:
        file = tmp_path / "pids"
        run("true")
        with no_descriptors_left(), pytest.raises(TokenError, match=f"65536 bytes on {name}"):
            run(script(tmp_path, f"yes {redirect} &\necho $$ $! > {file}\nwait"))
        family = pids(file, 2)
        until(lambda: not any(map(exists, family)), "both to be killed")

    def test_holds_for_what_grandchildren_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "LINGER_S", 10)
        file = tmp_path / "pids"
        with pytest.raises(TokenError, match="65536 bytes"):
            run(script(tmp_path, f"(sleep 0.02; exec yes) &\necho $! > {file}"))
        (grandchild,) = pids(file, 1)
        until(lambda: not exists(grandchild), "it to be killed")


class TestInterrupted:
    def test_by_a_timeout(self, family: tuple[Process, Path]) -> None:
        child, file = family
        run("true")
        with no_descriptors_left():
            greenlet = gevent.Greenlet.spawn(outcome, child.run)
            both = pids(file, 2)
            assert os.getsid(both[0]) == os.getpgid(both[1]) == both[0]
            timeout = gevent.Timeout()
            greenlet.kill(timeout)  # as its timer does
            until(lambda: not any(map(exists, both)), "both to be killed and reaped")
        assert greenlet.value is timeout

    def test_by_a_kill(self, family: tuple[Process, Path]) -> None:
        child, file = family
        run("true")
        with no_descriptors_left():
            greenlet = spawn(child)
            both = pids(file, 2)
            greenlet.kill()
            until(lambda: not any(map(exists, both)), "both to be killed and reaped")
        assert isinstance(greenlet.value, gevent.GreenletExit)

    def test_output_so_far_is_kept(self, tmp_path: Path) -> None:
        child = Process([script(tmp_path, "echo early; echo oh >&2; sleep 60")], os.environ)
        greenlet = spawn(child)
        until(lambda: (child.stdout, child.stderr) == (b"early\n", b"oh\n"), "the output")
        greenlet.kill()
        assert (child.stdout, child.stderr) == (b"early\n", b"oh\n")

    def test_before_exec(self, family: tuple[Process, Path]) -> None:
        """The constructor of Popen waits for exec; the child is there, the object is not."""
        child, _ = family
        run("true")
        with no_descriptors_left():
            with pytest.raises(gevent.Timeout), gevent.Timeout(0):
                child.run()
            until(lambda: not children(), "the child to be killed and reaped")

    def test_group_that_is_gone_is_no_error(self) -> None:
        killed = process._Child(["true"])
        killed.wait()
        killed.kill_group()

    def test_other_greenlets_run_meanwhile(self, family: tuple[Process, Path]) -> None:
        child, _ = family
        turned = Event()
        gevent.get_hub().loop.run_callback(turned.set)
        greenlet = spawn(child)
        assert turned.wait(5)
        greenlet.kill()


class TestCannotStart:
    @pytest.fixture(autouse=True)
    def nothing_left(self) -> Iterator[None]:
        run("true")
        with no_descriptors_left():
            yield

    def test_missing(self) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            run("/no/such/attestor")
        assert caught.value.filename == "/no/such/attestor"

    def test_not_executable(self, tmp_path: Path) -> None:
        file = tmp_path / "plain"
        file.write_text("")
        with pytest.raises(PermissionError):
            run(str(file))

    @pytest.mark.parametrize("argument", ["a\0b", "\ud800"], ids=["nul", "surrogate"])
    def test_unusable_argument(self, argument: str) -> None:
        with pytest.raises(ValueError, match=r"null byte|surrogates"):
            run("true", argument)

    def test_no_process_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fork(*_: object) -> int:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "fork_and_watch", fork)
        with pytest.raises(BlockingIOError):
            run("true")

    def test_no_descriptor_to_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe, calls = os.pipe, iter(range(1))

        def only_one() -> tuple[int, int]:
            if next(calls, None) is None:
                raise OSError(errno.EMFILE, "Too many open files")
            return pipe()

        monkeypatch.setattr(os, "pipe", only_one)
        with pytest.raises(OSError, match="Too many open files"):
            run("true")

    def test_elsewhere_than_in_the_main_thread(self) -> None:
        def elsewhere() -> str:
            try:
                run("true")
            except TokenError as error:
                return str(error)
            finally:
                gevent.get_hub().destroy()
            raise AssertionError("it ran")

        assert "main hub" in gevent.get_hub().threadpool.apply(elsewhere)

    def test_on_a_loop_that_does_not_watch_children(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As above, where coverage can see it."""
        hub = SimpleNamespace(loop=SimpleNamespace(default=False))
        monkeypatch.setattr(process, "get_hub", lambda: hub)
        with pytest.raises(TokenError, match="main hub"):
            run("true")


def test_a_fork_leaves_the_command_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork the greenlets end, but the command is the parent's."""
    child = _Child(["/bin/sleep", "30"], start_new_session=True)
    monkeypatch.setattr("os.getpid", lambda: child._started_in + 1)
    child.kill_group()
    assert child.poll() is None
    monkeypatch.undo()
    child.kill_group()
    assert child.wait() == -9
