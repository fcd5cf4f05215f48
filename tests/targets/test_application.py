"""Names of applications, and what is said about those that lead nowhere."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nexusg.errors import ConfigError
from nexusg.targets.application import check, load


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Write = Callable[..., None]

SHOP = """
class Shop:
    def __call__(self, environ, start_response):
        return []

    def serve(self, environ, start_response):
        return []

    secret = "of the shop"

app = Shop()

def application(environ, start_response):
    return []

def create_app():
    return app

def broken():
    raise LookupError("no price list")

async def asgi(scope, receive, send):
    pass

class Asgi:
    async def __call__(self, scope, receive, send):
        pass

fast = Asgi()
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules where they are found, and forgets them at the end."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def write(**modules: str) -> None:
        for name, text in modules.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def shop(write: Write) -> Any:
    write(shop=SHOP, wsgi=SHOP, web__wsgi=SHOP)
    import shop  # type: ignore[import-not-found]

    return shop


def problem(text: str) -> str:
    """The one line that is said about it."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wsgi:shop:app", "app"),
        ("wsgi:shop:app.serve", "app.serve"),
        ("wsgi:shop", "application"),
        ("wsgi:shop:application", "application"),
        ("wsgi:shop:create_app()", "app"),
    ],
)
def test_a_name_leads_to_an_application(shop: Any, text: str, found: str) -> None:
    expected = functools.reduce(getattr, found.split("."), shop)
    assert load(text) == expected


@pytest.mark.parametrize("text", ["wsgi:wsgi:app", "wsgi:wsgi", "wsgi:web.wsgi:app"])
def test_a_module_may_be_called_wsgi(shop: Any, text: str) -> None:
    assert callable(load(text))


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("wsgi:shpo:app", "shpo"),
        ("wsgi:shop.wsgi:app", "shop.wsgi"),
        ("wsgi:nothing.here:app", "nothing"),
        ("wsgi::app", ""),
    ],
)
def test_a_module_that_is_not_there(shop: Any, text: str, missing: str, tmp_path: Path) -> None:
    line = problem(text)
    assert line.startswith(f"{text}: there is no module {missing!r} here ({tmp_path}): run nexusg")
    assert "PYTHONPATH" in line


def test_a_module_that_fails_is_told_from_one_that_is_not_there(
    write: Write, tmp_path: Path
) -> None:
    write(
        needy="\nimport nowhere_to_be_found\n",
        crooked="def (:\n",
        broken="\n\nraise LookupError('no price list')\n",
    )
    head = "cannot be imported: "
    assert problem("wsgi:needy") == (
        f"wsgi:needy: module 'needy' {head}ModuleNotFoundError: No module named "
        f"'nowhere_to_be_found' ({tmp_path}/needy.py:2)"
    )
    assert f"{head}LookupError: no price list ({tmp_path}/broken.py:3)" in problem("wsgi:broken")
    crooked = problem("wsgi:crooked")
    assert f"{head}SyntaxError: " in crooked
    assert crooked.endswith("(crooked.py, line 1)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wsgi:shop:ap", "module 'shop' has no 'ap'; did you mean 'app'?"),
        ("wsgi:shop:app.serv", "'Shop' has no 'serv'; did you mean 'serve'?"),
        ("wsgi:shop:zzz", "module 'shop' has no 'zzz'; did you mean 'app'?"),
        ("wsgi:empty", "module 'empty' has no 'application'"),
        ("wsgi:shop:app.secret", "is of type str, and a WSGI application is something to call"),
        ("wsgi:shop:asgi", "is asynchronous (ASGI): wrap it for WSGI, for example with a2wsgi"),
        ("wsgi:shop:fast", "is asynchronous (ASGI): wrap it for WSGI, for example with a2wsgi"),
        ("wsgi:shop:broken()", "the factory failed: LookupError: no price list ("),
        ("wsgi:shop:Shop.serve()", "the factory failed: TypeError: "),
    ],
)
def test_what_is_no_application(shop: Any, write: Write, text: str, said: str) -> None:
    write(empty="")
    assert problem(text).startswith(f"{text}: {said}")


def test_a_factory_that_is_not_called(shop: Any) -> None:
    line = problem("wsgi:shop:create_app")
    assert "cannot be called with environ and start_response: too many" in line
    assert line.endswith("; for a factory write wsgi:shop:create_app()")


def test_a_function_with_other_arguments() -> None:
    with pytest.raises(ConfigError, match=r"^mine: cannot be called with .*argument[^;]*$"):
        check(lambda one: [], "mine")


def test_a_function_that_does_not_tell_its_arguments() -> None:
    check(max, "from C")


def test_an_interrupt_is_not_the_modules_fault(write: Write) -> None:
    write(stopped="raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load("wsgi:stopped")
