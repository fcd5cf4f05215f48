"""What a user of the package gets: its names, its manners on import, its metadata."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nexusg
from nexusg import errors
from tests.support.source import PACKAGE, ROOT


MAX_IMPORT_S = 0.030

# Run in a process of its own, after ``import nexusg`` and after every public name was used.
MANNERS = """
    import gc, logging, signal, socket, subprocess, sys, threading, time

    before = (socket.socket, threading.Thread, time.sleep, subprocess.Popen)
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    import nexusg
    early = sorted(name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet"))
    assert not early, f"import nexusg brings {early}"

    for name in nexusg.__all__:
        assert getattr(nexusg, name) is not None, name

    assert before == (socket.socket, threading.Thread, time.sleep, subprocess.Popen), "patched"
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == signals
    assert threading.active_count() == 1, threading.enumerate()
    assert logging.getLogger().handlers == [], "root logger configured"
    if "structlog" in sys.modules:
        assert not sys.modules["structlog"].is_configured(), "structlog configured"
    import gevent, gevent.monkey, gevent._hub_local
    assert not gevent.monkey.is_anything_patched()
    assert gevent._hub_local.get_hub_if_exists() is None, "something started the hub"
    greenlets = [found for found in gc.get_objects() if isinstance(found, gevent.Greenlet)]
    assert greenlets == [], greenlets
"""

TIMING = "import time; s = time.perf_counter(); import nexusg; print(time.perf_counter() - s)"


def run_python(code: str, *options: str) -> str:
    """Run ``code`` in a fresh interpreter that finds this checkout, and return its output."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_sorted_and_without_doubles() -> None:
    assert nexusg.__all__ == sorted(set(nexusg.__all__))


@pytest.mark.parametrize("name", nexusg.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(nexusg, name) is not None
    assert name in dir(nexusg)


def test_every_error_is_public() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if getattr(value, "__module__", "") == "nexusg.errors"
    }
    assert defined - {"annotations"} <= set(nexusg.__all__)


def test_the_lazy_names_are_those_a_type_checker_sees() -> None:
    """``if TYPE_CHECKING``, ``_HOMES`` and ``__all__`` tell the same story."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typed = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            renamed = f":{alias.name}" if alias.asname else ""
            typed[alias.asname or alias.name] = f"{statement.module}{renamed}"
    lazy = {name: home for name, home in typed.items() if home != "nexusg.errors"}
    assert lazy == nexusg._HOMES
    assert {*typed, "__version__"} == set(nexusg.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'nexusg' has no attribute 'Agnet'"):
        nexusg.Agnet  # noqa: B018 - the access is the test


def test_a_public_name_is_fetched_once() -> None:
    vars(nexusg).pop("NoRoute", None)
    assert nexusg.NoRoute is errors.NoRoute
    assert vars(nexusg)["NoRoute"] is errors.NoRoute


def test_import_patches_and_starts_nothing() -> None:
    run_python(MANNERS)


def test_import_is_quick() -> None:
    assert min(float(run_python(TIMING)) for _ in range(3)) < MAX_IMPORT_S


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", nexusg.__version__)


@pytest.fixture(scope="module")
def wheel() -> importlib.metadata.Distribution:
    """The wheel that tox has installed; a checkout that is only on the path has none."""
    for found in importlib.metadata.distributions(name="nexusg"):
        files = [str(file) for file in found.files or ()]
        if "nexusg/__init__.py" in files and any(file.endswith("/RECORD") for file in files):
            return found
    assert "TOX_ENV_NAME" not in os.environ, "tox must test the wheel"
    pytest.skip("nexusg is not installed as a wheel here; tox does that")


def test_the_wheel_holds_the_package_and_nothing_else(
    wheel: importlib.metadata.Distribution,
) -> None:
    files = {file.as_posix() for file in wheel.files or ()}
    extra = {file for file in files if not re.match(r"nexusg(/|-[^/]+\.dist-info/)", file)}
    assert {Path(file).name for file in extra} <= {"nexusg"}, "only the console script"
    source = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {file for file in files if re.match(r"nexusg/.*(?<!\.pyc)$", file)} == source
    assert any(file.endswith("LICENSE") for file in files)


def test_the_wheel_describes_itself(wheel: importlib.metadata.Distribution) -> None:
    assert wheel.version == nexusg.__version__
    assert wheel.metadata["Requires-Python"] == ">=3.10"
    [script] = [point for point in wheel.entry_points if point.group == "console_scripts"]
    assert (script.name, script.value) == ("nexusg", "nexusg.__main__:main")
    assert set(wheel.metadata.get_all("Provides-Extra") or ()) == {"dev", "relay", "tpm"}
    needed = [need for need in wheel.requires or () if "extra ==" not in need]
    assert {name_of(need) for need in needed} == {name_of(line) for line in requirement_lines()}
    assert not any("#" in need for need in needed)


def name_of(requirement: str) -> str:
    """Return the normalised project name of a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def requirement_lines() -> list[str]:
    """Return the lines of requirements.txt that name a requirement."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_every_requirement_says_what_its_floor_bought() -> None:
    silent = [line for line in requirement_lines() if not re.search(r">=.+ # \w", line)]
    assert silent == []
