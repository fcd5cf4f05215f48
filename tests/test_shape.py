"""The size and manners of the source: small files, short functions, few broad excepts."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.support.source import ROOT, Module, assert_none, modules


if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # without the docstring
MAX_BROAD_EXCEPTS = 8  # in the whole package

# Source files without a test file of the same name, each with where its test is.
TESTED_ELSEWHERE = {
    "nexusg/__init__.py": "tests/test_package.py",
    "nexusg/__main__.py": "tests/test_package.py",
    "nexusg/version.py": "tests/test_package.py",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def body_lines(function: Function) -> int:
    """Return the lines of a function from its ``def`` on, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler also catches what nobody thought of."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds
    )


def gives_reason(line: str) -> bool:
    """Whether a source line ends in a comment that says more than ``noqa``."""
    comment = line.partition("#")[2].strip()
    return bool(comment) and not comment.startswith(("noqa", "pragma", "type:"))


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    """Yield the public functions and classes at the top level and in public classes."""
    for node in tree.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if is_accessory(node):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public(node)


def is_accessory(node: Documented) -> bool:
    """Whether the docstring stands at another definition of the same name."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(
        text in ("overload", "typing.overload") or text.endswith((".setter", ".deleter"))
        for text in decorators
    )


def test_file(source: str) -> str:
    """Return the path of the test file of ``nexusg/x/y.py``."""
    folder, _, name = source.removeprefix("nexusg/").rpartition("/")
    return "/".join(part for part in ("tests", folder, f"test_{name}") if part)


test_file.__test__ = False  # type: ignore[attr-defined]  # a helper with an unlucky name


def test_files_are_short() -> None:
    long = [
        f"{module.path}: {lines}"
        for module in modules()
        if (lines := len(module.text.splitlines())) > MAX_FILE_LINES
    ]
    assert_none(long)


def test_functions_are_short() -> None:
    long = [
        f"{module.path}:{node.lineno} {node.name}: {lines}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, FUNCTIONS) and (lines := body_lines(node)) > MAX_FUNCTION_LINES
    ]
    assert_none(long)


def broad_excepts() -> list[tuple[Module, int]]:
    return [
        (module, node.lineno)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]


def test_broad_excepts_are_few() -> None:
    found = [f"{module.path}:{line}" for module, line in broad_excepts()]
    assert len(found) <= MAX_BROAD_EXCEPTS, found


def test_broad_excepts_give_their_reason() -> None:
    silent = [
        f"{module.path}:{line}"
        for module, line in broad_excepts()
        if not gives_reason(module.text.splitlines()[line - 1])
    ]
    assert_none(silent)


def test_public_names_have_docstrings() -> None:
    bare = [
        f"{module.path}:{node.lineno} {node.name}"
        for module in modules()
        for node in public(module.tree)
        if not ast.get_docstring(node)
    ]
    assert_none(bare)


def test_files_say_what_they_are() -> None:
    assert_none([str(one.path) for one in modules() if not ast.get_docstring(one.tree)])


def test_every_source_file_has_its_test_file() -> None:
    missing = []
    for module in modules():
        source = module.path.as_posix()
        if source.endswith("/__init__.py") and source not in TESTED_ELSEWHERE:
            assert len(module.tree.body) == 1, f"{source} is a docstring, or it needs a test"
            continue
        expected = TESTED_ELSEWHERE.get(source, test_file(source))
        if not (ROOT / expected).exists():
            missing.append(f"{source} lacks {expected}")
    assert_none(missing)


def test_exemptions_are_needed() -> None:
    sources = {module.path.as_posix() for module in modules()}
    assert_none([source for source in TESTED_ELSEWHERE if source not in sources])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("except ValueError: pass", False),
        ("except (OSError, ValueError): pass", False),
        ("except Exception: pass", True),
        ("except BaseException as error: pass", True),
        ("except (OSError, Exception): pass", True),
        ("except: pass", True),
    ],
)
def test_is_broad(source: str, expected: bool) -> None:
    [statement] = ast.parse(f"try: pass\n{source}").body
    assert isinstance(statement, ast.Try)
    assert is_broad(statement.handlers[0]) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("except Exception:", False),
        ("except Exception:  # noqa: BLE001", False),
        ("except Exception:  # a handler of the host may raise anything", True),
    ],
)
def test_gives_reason(line: str, expected: bool) -> None:
    assert gives_reason(line) is expected


def test_body_lines_leave_the_docstring_out() -> None:
    [function] = ast.parse('def f():\n    """One\n\n    two."""\n    a = 1\n    return a\n').body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3
