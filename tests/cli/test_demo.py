from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import gevent
import pytest

from nexusg.cli import app, demo, demo_client, example
from nexusg.config.loader import load


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fixed ports and no folder of the checkout in tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "free_port", lambda _wanted: 0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    return lambda name, value: monkeypatch.setattr(demo_client, name, value)


def steps(text: str) -> list[str]:
    return re.findall(r"^\d\. (\S+)", text, re.MULTILINE)


def test_once(nexusg: Callable[..., Done]) -> None:
    done = nexusg("demo", "--once")
    assert (done.code, done.err) == (0, "")
    assert steps(done.out) == ["relay", "service", "agent", "HTTP", "WebSocket", "TLS"]
    assert done.out.count("200 OK") == 2
    assert "curl -H 'Host: demo.localhost' http://127.0.0.1:" in done.out
    assert not os.listdir(), "nothing is left behind"


def test_it_stays_until_it_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    running = gevent.Greenlet.spawn(app.main, ["demo"])
    text = ""
    with gevent.Timeout(10):
        while "Ctrl-C ends it." not in text:
            gevent.sleep(0.002)
            text += capfd.readouterr().out
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", text)[1])  # type: ignore[index]
    assert demo_client.fetch(example.HOSTNAME, port).status == "200 OK"
    assert not running.ready()
    os.kill(os.getpid(), signal.SIGINT)
    assert running.get(timeout=5) == 0


def test_keep_leaves_a_configuration_that_can_be_used(nexusg: Callable[..., Done]) -> None:
    assert nexusg("demo", "--once", "--keep").code == 0
    kept = {name: os.path.join("nexusg-dev", name) for name in os.listdir("nexusg-dev")}
    assert set(kept) == {"ca.pem", "relay.pem", "secret", "config.yaml"}
    assert load(kept["config.yaml"]).config.backends[0].name == "demo"


def test_the_log_is_shown_if_asked_for(nexusg: Callable[..., Done]) -> None:
    assert '"event": ' not in nexusg("demo", "--once").out
    done = nexusg("--log-format", "json", "demo", "--once")
    assert '"event": "session.connected"' in done.out
    assert done.code == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("echo", lambda *_: "hullo", "request    failed: the echo of 'hello' was 'hullo'"),
        ("fetch", lambda *_: demo_client.Reply("502 Bad", "", 0), "failed: the page said 502 Bad"),
        ("TIMEOUT_S", 0.001, "request    failed: timed out"),
    ],
)
def test_what_does_not_work_is_said(
    nexusg: Callable[..., Done],
    broken: Callable[[str, object], None],
    name: str,
    value: object,
    said: str,
) -> None:
    broken(name, value)
    done = nexusg("demo")
    assert done.code == 1
    assert said in done.out
    assert "Try it yourself" not in done.out


def test_an_agent_that_cannot_connect(
    nexusg: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = example.agent_yaml
    monkeypatch.setattr(
        example, "agent_yaml", lambda _relay, *more: yaml("wss://127.0.0.1:1/", *more)
    )
    monkeypatch.setattr(demo, "CONNECT_S", 0.1)
    done = nexusg("demo")
    assert done.code == 1
    assert re.search(r"^3\. agent +could not connect: .*refused", done.out, re.MULTILINE)


def test_only_one_of_the_two_is_kept(nexusg: Callable[..., Done]) -> None:
    done = nexusg("demo", "--tpm", "--keep")
    assert done.code == 2
    assert "not allowed with argument --tpm" in done.err
