"""Imports point down only; names on one row do not import each other.

Imports for typing only count like any other: a layer that needs a type from above knows too much.
"""

from __future__ import annotations

import ast
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.source import Module, assert_none, modules


if TYPE_CHECKING:
    from collections.abc import Iterator

# From the top down. The first row is the package itself, which only names what others hold.
ROWS = [
    ("nexusg", "nexusg.__main__"),
    ("nexusg.cli",),
    ("nexusg.relay", "nexusg.observe", "nexusg.integrations"),
    ("nexusg.agent",),
    ("nexusg.attest", "nexusg.targets", "nexusg.outbound"),
    ("nexusg.transport", "nexusg.config"),
    ("nexusg.protocol",),
    ("nexusg.errors", "nexusg.version"),
]
LAYERS = {layer: height for height, row in enumerate(reversed(ROWS)) for layer in row}

# What the sans-I/O core may use: nothing with a socket, a clock, a log or randomness in it.
# Whole modules, or single names of one.
PROTOCOL_MAY_IMPORT = {
    "__future__",
    "abc",
    "array",
    "base64",
    "binascii",
    "bisect",
    "codecs",
    "collections",
    "collections.abc",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "types",
    "typing",
    "nexusg.errors",
    "nexusg.protocol",
    "nexusg.version",
    "websockets.frames.apply_mask",
    "websockets.speedups.apply_mask",
}

# The modules through which gevent makes greenlets of our functions.
GREENLET_MAKERS = {
    "gevent.Greenlet",
    "gevent.greenlet",
    "gevent.pool",
    "gevent.spawn",
    "gevent.spawn_later",
    "gevent.spawn_raw",
}
MAKES_GREENLETS = {"nexusg.agent.tasks"}


class Import(NamedTuple):
    """One imported name: ``module.name``, or only ``module`` for ``import module``."""

    module: str
    name: str | None
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def imports(tree: ast.AST, package: str = "", typing_only: bool = False) -> Iterator[Import]:
    """Yield every import below ``tree``, in functions too; ``package`` is where ``.`` points."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield Import(origin, alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.body, []), package, True)
            yield from imports(ast.Module(node.orelse, []), package, typing_only)
        else:
            yield from imports(node, package, typing_only)


def within(name: str, packages: set[str] | dict[str, int]) -> str | None:
    """Return the one of ``packages`` that ``name`` is, or is in; the longest."""
    while name:
        if name in packages:
            return name
        name = name.rpartition(".")[0]
    return None


def layer(name: str) -> str | None:
    """Return the layer of a dotted name, or None for one of another package.

    A name of the package itself, such as ``nexusg.Agent``, belongs to the first row.
    """
    return within(name, LAYERS)


def all_imports() -> list[tuple[Module, Import]]:
    found = [(module, one) for module in modules() for one in imports(module.tree, module.package)]
    assert len(found) > 20, "the import scan found next to nothing"
    return found


ALL = all_imports()


def offences(rule: object) -> list[str]:
    """Return ``file:line imports name`` for every import for which ``rule(module, import)``."""
    assert callable(rule)
    return [f"{module.path}:{one.line} imports {one}" for module, one in ALL if rule(module, one)]


def test_every_module_has_a_layer() -> None:
    """A new top-level package is put into ROWS on purpose, not by falling through to the first."""
    homeless = [
        module.name
        for module in modules()
        if module.name != "nexusg" and layer(module.name) in (None, "nexusg")
    ]
    assert_none(homeless)


def test_imports_point_down_only() -> None:
    def upward(module: Module, one: Import) -> bool:
        here, there = layer(module.name), layer(str(one))
        if there is None or here == there:
            return False
        assert here is not None
        return LAYERS[there] >= LAYERS[here]

    assert_none(offences(upward))


def test_protocol_imports_only_what_it_may() -> None:
    def forbidden(module: Module, one: Import) -> bool:
        return layer(module.name) == "nexusg.protocol" and not within(str(one), PROTOCOL_MAY_IMPORT)

    assert_none(offences(forbidden))


@pytest.mark.parametrize("package", ["nexusg.config", "nexusg.errors", "nexusg.version", "nexusg"])
def test_gevent_is_not_imported_by(package: str) -> None:
    def uses_gevent(module: Module, one: Import) -> bool:
        return layer(module.name) == package and one.module.split(".")[0] == "gevent"

    assert_none(offences(uses_gevent))


def test_only_the_command_line_patches() -> None:
    may = ("nexusg.__main__", "nexusg.cli")

    def patches(module: Module, one: Import) -> bool:
        return layer(module.name) not in may and str(one).startswith("gevent.monkey.patch_")

    calls = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("patch_")
        and layer(module.name) not in may
    ]
    assert_none(offences(patches) + calls)


def test_only_tasks_makes_greenlets() -> None:
    def makes(module: Module, one: Import) -> bool:
        return (
            module.name not in MAKES_GREENLETS
            and not one.typing_only
            and within(str(one), GREENLET_MAKERS) is not None
        )

    calls = [
        f"{module.path}:{node.lineno} uses {ast.unparse(node)}"
        for module in modules()
        if module.name not in MAKES_GREENLETS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in GREENLET_MAKERS
    ]
    assert_none(offences(makes) + calls)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", ["a.b"]),
        ("from a import b, c as d", ["a.b", "a.c"]),
        ("from . import b", ["pack.age.b"]),
        ("from .a import b", ["pack.age.a.b"]),
        ("from ..a import b", ["pack.a.b"]),
        ("def f():\n    import a", ["a"]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", ["a", "b"]),
        ("try:\n    import a\nexcept ImportError:\n    import b", ["a", "b"]),
    ],
)
def test_the_scan_sees(source: str, expected: list[str]) -> None:
    assert [str(one) for one in imports(ast.parse(source), "pack.age")] == expected


def test_the_scan_tells_typing_imports_apart() -> None:
    source = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c"
    assert [one.typing_only for one in imports(ast.parse(source))] == [False, True, False]
