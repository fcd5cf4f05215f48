"""The hook as gunicorn's master uses it. In a real one it is in tests/e2e/test_gunicorn.py."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.integrations import tunnel
from nexusg.integrations.gunicorn import serve
from nexusg.integrations.leader import default_path
from tests.integrations.doubles import Log


if TYPE_CHECKING:
    from pathlib import Path

ggevent = pytest.importorskip("gunicorn.workers.ggevent")

GOOD = """\
backends:
  - name: web
    hostnames: [app.example.com]
    nexusAddresses: ["ws://127.0.0.1:9/connect"]
    attestation: {hmacSecret: "${SECRET:-not a secret, but long enough for nobody}"}
    portMappings: {443: {default: "127.0.0.1:9"}}
"""


class GeventWorker(ggevent.GeventWorker):
    """One that is still in the master."""

    def __init__(self, age: int) -> None:
        self.age = age
        self.log = Log()
        self.served = 0

    def run(self) -> None:
        self.served += 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "nexusg.yaml"
    path.write_text(GOOD)
    path.chmod(0o600)
    return path


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers are to run beside their loops, which they only run here."""
    calls: list[Any] = []

    def run_beside(worker: Any, loop: Any, *rest: Any) -> None:
        calls.append((worker, *rest))
        loop()

    monkeypatch.setattr(tunnel, "run_beside", run_beside)
    return calls


def test_gunicorn_takes_it_for_pre_fork(path: Path) -> None:
    """And for post_fork: it counts the parameters."""
    from gunicorn.config import Config

    config = Config()
    hook = serve(path)
    for name in ("pre_fork", "post_fork"):
        config.set(name, hook)
    for name in ("on_starting", "when_ready", "post_worker_init"):
        with pytest.raises(TypeError, match="arity"):
            config.set(name, hook)
    assert len(inspect.signature(hook).parameters) == 2


def test_it_begins_in_the_workers_loop(path: Path, beside: list[Any]) -> None:
    worker = GeventWorker(3)
    serve(path, deliver="socket")(None, worker)
    assert not beside, "in the master"
    worker.run()
    [(found, config, deliver, leadership, generations)] = beside
    assert found is worker
    assert worker.served == 1
    assert config.backends[0].name == "web"
    assert (deliver, leadership) == ("socket", None)
    assert generations.announced >= 3
    assert not worker.log.lines


def test_one_per_host_has_a_lock(path: Path, tmp_path: Path, beside: list[Any]) -> None:
    for options in ({}, {"lock": tmp_path / "lock"}):
        worker = GeventWorker(1)
        serve(path, mode="one per host", **options)(None, worker)
        worker.run()
    assert [call[3].path for call in beside] == [default_path(str(path)), str(tmp_path / "lock")]


def test_generations_know_each_other(path: Path, beside: list[Any]) -> None:
    """A reload makes a hook of its own."""
    for age in (1, 2):
        worker = GeventWorker(age)
        serve(path)(None, worker)
        worker.run()
    assert beside[0][4] is beside[1][4]


def test_two_of_them_can_be_had(path: Path, beside: list[Any]) -> None:
    worker = GeventWorker(1)
    for _ in range(2):
        serve(path)(None, worker)
    worker.run()
    assert (len(beside), worker.served) == (2, 1)


def test_a_worker_of_another_kind(path: Path) -> None:
    worker = SimpleNamespace(log=Log(), run=None)
    serve(path)(None, worker)
    [line] = worker.log.lines
    assert line.startswith("error: nexusg: no tunnel, the agent needs a gevent worker")
    assert worker.run is None


def test_a_hook_of_another_kind(path: Path) -> None:
    """pre_request takes two arguments as well."""
    with pytest.raises(RuntimeError, match="hook for pre_fork"):
        serve(path)(GeventWorker(1), object())


@pytest.mark.parametrize("option", [{"deliver": "mail"}, {"mode": "all"}])
def test_options_that_do_not_exist(path: Path, option: Any) -> None:
    [name] = option
    with pytest.raises(ValueError, match=f"^{name} must be one of '"):
        serve(path, **option)


def test_a_configuration_that_cannot_be_used(path: Path) -> None:
    path.write_text(GOOD.replace("name: web", "name: []"))
    with pytest.raises(SystemExit) as caught:
        serve(path)
    first, problem, advice = str(caught.value).splitlines()
    assert first == "nexusg: no usable configuration:"
    assert problem.startswith(f"{path}:2:")
    assert advice == f"gunicorn has not started: mend {path}, and start it again"


def test_port_mappings_are_needed_only_if_they_decide(path: Path) -> None:
    path.write_text(GOOD[: GOOD.index("    portMappings")])
    serve(path)
    serve(path, deliver="socket")
    with pytest.raises(SystemExit, match="portMappings: is required"):
        serve(path, deliver="config")


def test_a_reload_with_one(path: Path, beside: list[Any]) -> None:
    """An exception would be the end of the master, and of all that it serves."""
    serve(path)
    path.write_text("backends: []")
    worker = GeventWorker(1)
    serve(path)(None, worker)
    worker.run()
    problem, fallback = worker.log.lines
    assert problem.startswith(f"error: nexusg: {path}:1:")
    assert fallback.endswith("so this worker does what it said before the reload")
    assert beside[0][1].backends[0].name == "web"
    path.write_text(GOOD.replace("name: web", "name: mended"))
    worker = GeventWorker(2)
    serve(path)(None, worker)
    worker.run()
    assert beside[1][1].backends[0].name == "mended"
    assert not worker.log.lines


def test_warnings_come_at_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(GOOD.replace("${SECRET:-", "").replace('nobody}"', 'nobody"'))
    path.chmod(0o644)
    serve(path)
    assert capsys.readouterr().err.startswith(f"nexusg: warning: {path}:5:")


def test_nothing_secret_is_shown(path: Path) -> None:
    """gunicorn prints its settings at debug level."""
    assert "not a secret" not in repr(vars(serve(path)))
