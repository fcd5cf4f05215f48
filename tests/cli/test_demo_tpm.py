from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent.event import Event

from nexusg.cli import app, demo_client, demo_tpm
from nexusg.cli.demo_parts import Watch
from nexusg.relay.authorizer.server import Authorizer
from tests.cli.test_demo_swtpm import alive
from tests.support import swtpm
from tests.support.source import ROOT


if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Done

# The demo as a process of its own, without fixed ports.
DEMO = """
    import sys
    from gevent import monkey
    monkey.patch_all()
    from nexusg.__main__ import main
    from nexusg.cli import demo_tpm

    demo_tpm.free_port = lambda _wanted: 0
    sys.exit(main(["demo", "--tpm"]))
"""

STORY = ["TPM", "relay", "authorizer", "service", "enrolled", "agent", "HTTP", "reauth", "reauth"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fixed ports and no folder of the checkout in tests; nothing without a software TPM."""
    swtpm.require()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_tpm, "free_port", lambda _wanted: 0)


def steps(text: str) -> list[str]:
    return re.findall(r"^\d\. (\S+)", text, re.MULTILINE)


def tpms(parent: int) -> list[int]:
    """The swtpm processes that ``parent`` has, or that nobody else has."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, _state, ppid = status.read_text().split()[:4]
        except OSError:
            continue
        if name == "(swtpm)" and int(ppid) == parent:
            found.append(int(pid))
    return found


def test_once(nexusg: Callable[..., Done]) -> None:
    done = nexusg("demo", "--tpm", "--once")
    assert (done.code, done.err) == (0, ""), done
    assert steps(done.out) == STORY
    assert "200 OK" in done.out
    assert re.search(r"^5. enrolled   as [0-9a-z]{20}\.localhost$", done.out, re.MULTILINE)
    assert "curl -H 'Host: " in done.out
    assert not os.listdir(), "nothing is left behind"
    assert not tpms(os.getpid())


def test_it_stays_until_it_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_tpm, "RENEWALS", 0)
    running = gevent.Greenlet.spawn(app.main, ["demo", "--tpm"])
    text = ""
    with gevent.Timeout(10):
        while "Ctrl-C ends it." not in text:
            gevent.sleep(0.002)
            text += capfd.readouterr().out
    [found] = re.findall(r"Host: (\S+)' http://127\.0\.0\.1:(\d+)/", text)
    assert demo_client.fetch(found[0], int(found[1])).status == "200 OK"
    assert tpms(os.getpid())
    os.kill(os.getpid(), signal.SIGINT)
    assert running.get(timeout=5) == 0
    assert not tpms(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_ended_in_the_middle(number: int) -> None:
    """No process is left behind; of SIGKILL only the folder."""
    with tempfile.TemporaryDirectory(prefix="nexusg-") as folder:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder}
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", textwrap.dedent(DEMO)]
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(b"4. service"):
                    break
            [tpm] = tpms(process.pid)
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
        if number != signal.SIGKILL:
            assert os.listdir(folder) == []
    assert process.returncode == (-number if number == signal.SIGKILL else 0), err
    assert b"failed" not in out
    assert err == b""
    with gevent.Timeout(5):
        while alive(tpm):
            gevent.sleep(0.005)


def test_without_swtpm(nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    done = nexusg("demo", "--tpm", "--once")
    assert done.code == 1
    assert "nexusg: there is no swtpm" in done.err
    assert "libtss2-tcti-swtpm0" in done.err
    assert steps(done.out) == []


def test_without_the_library(nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    done = nexusg("demo", "--tpm", "--once")
    assert done.code == 1
    assert "pip install 'nexusg[tpm]'" in done.err
    assert "libtss2-esys" in done.err
    assert not tpms(os.getpid())


def test_an_agent_that_cannot_connect(
    nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Authorizer):
        def __init__(self, secret: str, *more: Any, **settings: Any) -> None:
            super().__init__(secret[::-1], *more, **settings)

    monkeypatch.setattr(demo_tpm, "Authorizer", Forgetful)
    monkeypatch.setattr(demo_tpm, "CONNECT_S", 0.5)
    done = nexusg("demo", "--tpm")
    assert done.code == 1
    assert "5. agent      could not connect: token signature is invalid" in done.out


def test_a_request_that_fails(nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    reply = demo_client.Reply("502 Bad", "", 0)
    monkeypatch.setattr(demo_client, "fetch", lambda *_: reply)
    done = nexusg("demo", "--tpm")
    assert done.code == 1
    assert "7. request    failed: the page said 502 Bad" in done.out


def test_a_relay_that_does_not_ask_again(
    nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_tpm, "REAUTH_S", 300)
    monkeypatch.setattr(demo_tpm, "REAUTH_TIMEOUT_S", 0.05)
    done = nexusg("demo", "--tpm")
    assert done.code == 1
    assert "8. reauth     failed: the relay has not asked" in done.out


def test_refusals_are_said() -> None:
    demo = demo_tpm.TpmDemo(Path(), Watch(None), Event())
    demo._note("authorizer.refused", {"why": "another nonce"})
    demo._note("authorizer.started", {})
    assert demo._refusal == "the authorizer refused: another nonce"


def test_a_wait_ends_when_it_is_stopped(capfd: pytest.CaptureFixture[str]) -> None:
    stop = Event()
    demo = demo_tpm.TpmDemo(Path(), Watch(None), stop)
    waiting = gevent.Greenlet.spawn(demo._until, lambda: False, 5)
    gevent.idle()
    stop.set()
    assert waiting.get(timeout=1) is False
    assert demo._ended("agent", "did not come in time")
    assert capfd.readouterr().out == ""


def test_a_wait_goes_on_until_it_is_true() -> None:
    watch = Watch(None)
    demo = demo_tpm.TpmDemo(Path(), watch, Event())
    waiting = gevent.Greenlet.spawn(demo._until, lambda: len(watch.renewals) > 1, 5)
    for _ in range(2):
        gevent.idle()
        assert not waiting.ready()
        watch.renewals.append(0.1)
        watch.changed.set()
    assert waiting.get(timeout=1) is True
