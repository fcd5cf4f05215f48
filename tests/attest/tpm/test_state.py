"""The state file survives crashes, and whatever is in its place is never a crash."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexusg.attest.tpm import state as module
from nexusg.attest.tpm.state import Enrolment, TpmState
from nexusg.errors import TpmError
from tests.conftest import MS


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENROLMENT = Enrolment(
    authorizer_url="https://namek.example.com",
    ek_fingerprint="ab" * 32,
    ak_kind="ecc-p256",
    ak_public=b"\x00public",
    ak_private=b"\xffprivate",
    device_id="6a7c1c1e-0000-5000-8000-000000000000",
    hostname="slug.example.com",
    identity_class="unverified",
    nexus_endpoints=("wss://relay.example.com/connect",),
)

# Holds the lock until its stdin ends.
HOLDER = """
import sys
from nexusg.attest.tpm.state import TpmState
with TpmState(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> TpmState:
    """Nothing is there yet, not even the folder."""
    return TpmState(tmp_path / "var" / "tpm")


class Here:
    """A hub whose thread pool is this thread, where coverage sees what is done."""

    @property
    def threadpool(self) -> Here:
        """It."""
        return self

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call it now."""
        return function(*args)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written in this thread."""
    monkeypatch.setattr(module.gevent, "get_hub", Here)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_there_is_nothing_at_first(state: TpmState) -> None:
    assert state.load() is None
    assert (state.problem, state.note) == (None, None)


def test_what_is_saved_is_loaded(state: TpmState) -> None:
    state.save(ENROLMENT)
    assert TpmState(str(state.folder)).load() == ENROLMENT
    other = Enrolment("u", "f", "rsa2048", b"", b"\0", "d", "h", "c")
    state.save(other)
    assert state.load() is None, "an empty key is none"
    assert "private" not in repr(ENROLMENT)


def test_it_is_private_and_alone(state: TpmState) -> None:
    before = os.umask(0)
    try:
        state.save(ENROLMENT)
    finally:
        os.umask(before)
    assert (mode(state.path), mode(state.folder)) == (0o600, 0o700)
    assert os.listdir(state.folder) == ["state.json"]


@pytest.mark.usefixtures("here")
def test_the_old_file_stays_if_the_new_one_cannot_be_written(
    state: TpmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(ENROLMENT)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TpmError, match=r"state\.json cannot be written: No space left on device$"):
        state.save(Enrolment("u", "f", "rsa2048", b"1", b"2", "d", "h", "c"))
    assert state.load() == ENROLMENT
    assert os.listdir(state.folder) == ["state.json"]


@pytest.mark.usefixtures("here")
def test_it_is_on_the_disk_before_it_has_its_name_and_the_name_is_too(
    state: TpmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(old: str, new: str) -> None:
        order.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    state.save(ENROLMENT)
    assert order == ["file", "rename", "folder"]


def test_a_slow_disk_does_not_stop_the_loop(
    state: TpmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(os, "fsync", lambda _: os.read(read_fd, 1))
    saving = Greenlet.spawn(state.save, ENROLMENT)
    for _ in range(100):
        gevent.sleep(0)
    assert not saving.ready()
    os.write(write_fd, b"xx")
    saving.get()
    os.close(read_fd)
    os.close(write_fd)


def test_others_are_shut_out(state: TpmState) -> None:
    state.save(ENROLMENT)
    state.path.chmod(0o640)
    assert state.load() == ENROLMENT
    assert state.note == f"{state.path} was open to other users (mode 640): changed to 600"
    assert mode(state.path) == 0o600
    assert state.load() == ENROLMENT
    assert state.note is None


def test_or_it_is_said_that_they_cannot_be(
    state: TpmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(ENROLMENT)
    state.path.chmod(0o604)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert state.load() == ENROLMENT
    assert state.note is not None
    assert state.note.endswith("and that cannot be changed: Operation not permitted")


def changed(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: values | changes


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: [], "it is no JSON object"),
        (lambda _: {}, "its version is None, not 1"),
        (changed(version=2), "its version is 2, not 1"),
        (changed(version="1"), "its version is '1', not 1"),
        (changed(ak_kind="rsa4096"), "ak_kind is unknown"),
        (changed(ak_kind=[]), "ak_kind is unknown"),
        (changed(ak_public=7), "ak_public is no text"),
        (changed(ak_private="$"), None),
        (changed(ak_private="é"), None),
        (changed(device_id=None), "device_id is no text"),
        (changed(device_id=""), "device_id is no text"),
        (changed(nexus_endpoints="wss://x"), "nexus_endpoints is no list of texts"),
        (changed(nexus_endpoints=[1]), "nexus_endpoints is no list of texts"),
    ],
)
def test_a_file_that_is_not_ours_is_said_to_be_so(
    state: TpmState, change: Callable[[dict[str, Any]], object], problem: str | None
) -> None:
    state.save(ENROLMENT)
    values = json.loads(state.path.read_text())
    state.path.write_text(json.dumps(change(values)))
    assert state.load() is None
    assert state.problem is not None
    start = f"{state.path} is no enrollment: "
    assert state.problem.startswith(start)
    assert problem is None or state.problem == start + problem
    state.save(ENROLMENT)
    assert state.load() == ENROLMENT
    assert state.problem is None


def test_what_a_later_version_adds_does_not_matter(state: TpmState) -> None:
    state.save(ENROLMENT)
    values = json.loads(state.path.read_text())
    state.path.write_text(json.dumps(values | {"more": 1}))
    assert state.load() == ENROLMENT


def test_a_file_that_ends_too_early_is_no_enrollment(state: TpmState) -> None:
    state.save(ENROLMENT)
    data = state.path.read_bytes().rstrip()
    for end in range(len(data)):
        state.path.write_bytes(data[:end])
        assert state.load() is None
        assert state.problem is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.just(b"[" * 50_000) | st.just(b"1" * 5000))
def test_garbage_is_no_enrollment(state: TpmState, data: bytes) -> None:
    state.folder.mkdir(parents=True, exist_ok=True)
    state.path.write_bytes(data)
    assert state.load() is None
    assert state.problem is not None


def test_what_is_too_large_is_not_read(state: TpmState) -> None:
    state.save(ENROLMENT)
    with state.path.open("ab") as file:
        file.write(b" " * module.MAX_FILE_BYTES)
    assert state.load() is None
    assert str(state.problem).endswith("it has more than 65536 bytes")


def test_what_is_no_file_is_not_read(state: TpmState) -> None:
    state.folder.mkdir(parents=True)
    os.mkfifo(state.path)
    assert state.load() is None
    assert str(state.problem).endswith("it is not a file")
    state.path.unlink()
    state.path.symlink_to("elsewhere")
    assert state.load() is None
    assert str(state.problem).startswith(f"{state.path} cannot be read: ")
    state.save(ENROLMENT)
    assert state.load() == ENROLMENT


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state = TpmState(tmp_path / "file" / "tpm")
    with pytest.raises(TpmError, match=r"state\.json cannot be written: Not a directory"):
        state.save(ENROLMENT)
    with pytest.raises(TpmError, match="lock cannot be locked: Not a directory"), state.lock():
        pass
    assert state.load() is None
    assert str(state.problem).endswith("cannot be read: Not a directory")


def test_greenlets_take_turns(state: TpmState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_POLL_S", MS)
    inside = 0

    def enter() -> None:
        nonlocal inside
        with state.lock():
            inside += 1
            assert inside == 1
            gevent.sleep(MS)
            inside -= 1

    entering = [Greenlet.spawn(enter) for _ in range(5)]
    gevent.joinall(entering, raise_error=True)


def test_a_lock_that_is_not_given_back_is_an_error(state: TpmState) -> None:
    with state.lock():
        text = r"lock is locked by another part of this process, for more than 0.01 s$"
        with pytest.raises(TpmError, match=text), TpmState(state.folder).lock(0.01):
            pass
    with state.lock(0):
        pass


def test_it_is_given_back_whatever_happens(state: TpmState) -> None:
    with pytest.raises(ZeroDivisionError), state.lock():
        raise ZeroDivisionError
    locked = Event()

    def hold() -> None:
        with state.lock():
            locked.set()
            Event().wait()

    holder = Greenlet.spawn(hold)
    locked.wait()
    holder.kill()
    with state.lock(0):
        pass


def test_another_process_is_waited_for_and_named(state: TpmState) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(TpmError, match=f"is locked by process {holder.pid},"), state.lock(0.01):
            pass
        waiting = Greenlet.spawn(lambda: state.lock(20).__enter__())
        gevent.sleep(MS)
        assert not waiting.ready()
        holder.stdin.close()
        waiting.get()


def test_a_holder_that_has_not_said_who_it_is_stays_unnamed(state: TpmState) -> None:
    with state.lock():
        (state.folder / "lock").write_text("")
        with pytest.raises(TpmError, match="lock is locked, for more"), state.lock(0):
            pass


def test_a_file_system_without_locks_is_an_error(
    state: TpmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = module.fcntl.flock

    def refuse(descriptor: int, how: int) -> None:
        if how != module.fcntl.LOCK_UN:
            raise OSError(37, "No locks available")
        flock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.raises(TpmError, match="lock cannot be locked: No locks available"), state.lock():
        pass
