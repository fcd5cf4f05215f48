from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nexusg.errors import ConfigError
from nexusg.integrations.leader import Leadership, default_path
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator

#: A process that leads until its stdin ends.
OTHER = """
import sys
from nexusg.integrations.leader import Leadership

print(Leadership(sys.argv[1]).take(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


#: The same, but that it dies at once and leaves a child.
PARENT = """
import os, sys
from nexusg.integrations.leader import Leadership

print(Leadership(sys.argv[1]).take(), flush=True)
if os.fork() == 0:
    sys.stdin.read()
os._exit(0)
"""


@contextmanager
def leading(path: str, program: str = OTHER) -> Iterator[subprocess.Popen[str]]:
    """Another process, which leads."""
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_one_leads_until_it_does_not(path: str) -> None:
    leadership = Leadership(path)
    assert not leadership.held
    assert leadership.take()
    assert leadership.take(), "still"
    assert leadership.held
    leadership.release()
    leadership.release()
    assert not leadership.held


def test_nobody_else_may_read_the_file(path: str) -> None:
    leadership = Leadership(path)
    leadership.take()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    leadership.release()


def test_when_the_leader_dies_another_may_lead(path: str) -> None:
    leadership = Leadership(path)
    with leading(path) as other:
        assert not leadership.take()
        assert not leadership.held
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert leadership.take()
    leadership.release()


def test_what_a_leader_has_forked_does_not_lead_on(path: str) -> None:
    """What a dead worker has left running must not keep the others from leading."""
    leadership = Leadership(path)
    with leading(path, PARENT) as parent:
        parent.wait()  # its child lives until the end of stdin
        assert leadership.take()
    leadership.release()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "lock"
    with pytest.raises(ConfigError, match=f"^the lock file {path} cannot be used: no such file"):
        Leadership(str(path)).take()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """In a folder that everybody may write to it may lead anywhere."""
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="too many levels of symbolic links"):
        Leadership(str(tmp_path / "lock")).take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(ConfigError, match="no locks available"):
        Leadership(path).take()


def test_the_default_is_the_same_for_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.yaml")
    assert default_path(str(tmp_path / "a.yaml")) == default_path(str(tmp_path / "link"))
    assert default_path(str(tmp_path / "a.yaml")) != default_path(str(tmp_path / "b.yaml"))
    assert Path(default_path("a.yaml")).suffix == ".lock"
