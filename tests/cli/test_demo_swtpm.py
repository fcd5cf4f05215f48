from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import pytest

from nexusg.attest.tpm.device import PytssDevice
from nexusg.cli.demo_swtpm import SoftwareTpm
from nexusg.errors import TpmError
from tests.support import swtpm
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, because sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="nexusg-") as name:
        yield Path(name)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_can_be_used_at_once_and_is_gone_after(folder: Path) -> None:
    swtpm.require()
    with SoftwareTpm(folder) as tpm:
        device = PytssDevice(tpm.tcti, "ecc-p256")
        assert len(device.endorsement().fingerprint) == 64
        device.close()
        pid = tpm.pid
        assert os.getsid(pid) == pid, "Ctrl-C would reach it"
    assert not alive(pid)
    tpm.stop()  # once more does no harm


def test_it_dies_with_its_process(folder: Path) -> None:
    """Even when that is killed, and can do nothing about it."""
    swtpm.require()
    code = """
        import pathlib, sys, time
        from nexusg.cli.demo_swtpm import SoftwareTpm
        with SoftwareTpm(pathlib.Path(sys.argv[1])) as tpm:
            print(tpm.pid, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    with gevent.Timeout(5):
        while alive(pid):
            gevent.sleep(0.005)


def test_without_swtpm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(TpmError, match=r"packages swtpm and, .* libtss2-tcti-swtpm0") as caught:
        SoftwareTpm(folder).start()
    assert caught.value.code == "tpm_missing"


def test_a_folder_where_it_cannot_be(folder: Path) -> None:
    swtpm.require()
    long = folder / ("x" * 110)
    long.mkdir()
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        SoftwareTpm(long).start()
