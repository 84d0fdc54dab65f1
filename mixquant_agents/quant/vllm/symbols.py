"""Finding names in Python source without importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Symbol", "missing", "parse"]


@dataclass(frozen=True, slots=True)
class Symbol:
    """One place where a name is expected.

    Attributes:
        module: dotted, ``"vllm.forward_context"``.
        name: a top-level name, or ``"Class.attribute"`` (method, field, class variable, or ``self.attribute = …``).
        parameters: names the function must take (``*args``/``**kwargs`` take any).
        passes: ``(callee, keywords)``: the function calls ``….callee`` with these keywords.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    passes: tuple[str, tuple[str, ...]] | None = None

    def __str__(self) -> str:
        takes = f"({', '.join(self.parameters)})" if self.parameters else ""
        calls = f" calling {self.passes[0]}({'=, '.join(self.passes[1])}=)" if self.passes else ""
        return f"{self.module}:{self.name}{takes}{calls}"


def parse(source: Path, module: str) -> ast.Module | None:
    """The module's syntax tree; ``None`` where there is no such file."""
    base = source.joinpath(*module.split("."))
    path = base.with_suffix(".py")
    path = path if path.is_file() else base / "__init__.py"
    return _tree(path.read_text(encoding="utf-8")) if path.is_file() else None


@functools.lru_cache(maxsize=128)
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def missing(tree: ast.Module | None, symbol: Symbol) -> str | None:
    """Why ``symbol`` is not in ``tree``, in one line; ``None`` when it is."""
    if tree is None:
        return f"{symbol}: no such module"
    owner, _, leaf = symbol.name.rpartition(".")
    scope: ast.Module | ast.ClassDef = tree
    if owner:
        owner_class = next((n for n in _flat(tree.body) if isinstance(n, ast.ClassDef) and n.name == owner), None)
        if owner_class is None:
            return f"{symbol}: no class {owner}"
        scope = owner_class
    functions = [
        n for n in _flat(scope.body) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == leaf
    ]
    if functions:
        return _mismatch(functions[-1], symbol)
    if symbol.parameters or leaf not in _names(scope):
        return f"{symbol}: not there"
    return None


def _mismatch(function: ast.FunctionDef | ast.AsyncFunctionDef, symbol: Symbol) -> str | None:
    args = function.args
    names = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    absent = [p for p in symbol.parameters if p not in names]
    if absent and not (args.vararg or args.kwarg):
        return f"{symbol}: no parameter {', '.join(absent)}"
    if symbol.passes:
        callee, keywords = symbol.passes
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == callee and {k.arg for k in node.keywords} >= set(keywords):
                return None
        return f"{symbol}: no such call"
    return None


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, looking into ``if``/``try`` blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat(node.body)
            yield from _flat(node.orelse)


@functools.lru_cache(maxsize=512)
def _names(scope: ast.Module | ast.ClassDef) -> frozenset[str]:
    """Names that a module or class binds; for classes also what methods assign to ``self``."""
    return frozenset(_bound(scope.body, in_class=isinstance(scope, ast.ClassDef)))


def _bound(body: list[ast.stmt], *, in_class: bool) -> Iterator[str]:
    for node in _flat(body):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _targets(node, owner=None)
        elif in_class and isinstance(node, ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Assign | ast.AnnAssign):
                    yield from _targets(inner, owner="self")


def _targets(node: ast.Assign | ast.AnnAssign, owner: str | None) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        for leaf in ast.walk(target):
            if owner is None and isinstance(leaf, ast.Name):
                yield leaf.id
            if isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name) and leaf.value.id == owner:
                yield leaf.attr
