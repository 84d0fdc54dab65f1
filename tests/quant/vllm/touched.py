"""What a folder's source touches of vLLM, read from its syntax trees.

In ``quant/vllm`` our own objects have types, and what is annotated ``Any`` (or is a class or function that was imported
from vLLM) is vLLM's. So names that hold vLLM's objects can be followed: parameters of type ``Any``, ``self`` of hooked
methods, what such an object gives, and what is made of it.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

__all__ = ["attributes", "imports", "patched"]

_PLAIN = {
    name
    for kind in (torch.Tensor, torch.nn.Linear(1, 1), np.ndarray, dict, list, str, int, tuple, set, type, object)
    for name in dir(kind)
}
"""Attributes of tensors, modules, arrays and builtins, which are nobody's in particular."""


@functools.cache
def _tree(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text())


def tree(path: Path) -> ast.Module:
    """The syntax tree of a file, read once until it changes."""
    return _tree(path, path.stat().st_mtime_ns)


def imports(path: Path) -> set[tuple[str, str]]:
    """``(module, name)`` of all that is imported from vLLM, wherever in the file; no name for ``import vllm``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
            found |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "vllm"}
    return found


def patched(path: Path) -> set[str]:
    """Names of vLLM that are replaced: the second argument of ``wrap``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "wrap":
            name = node.args[1]
            found.add(name.value if isinstance(name, ast.Constant) else f"<{ast.unparse(name)}>")
    return found


def attributes(path: Path) -> set[str]:
    """Attributes of vLLM's objects that are read, written or asked for by ``getattr``."""
    statements = tree(path).body
    upstream = {name for _, name in imports(path)} - {""}
    kept: set[str] = set()  # attributes of our own objects that hold vLLM's
    for _ in range(2):
        found: set[str] = set()
        _scope(statements, upstream, found, kept)
    return {name for name in found if name not in _PLAIN and not name.startswith("__")}


def _scope(body: list[ast.stmt], upstream: set[str], found: set[str], kept: set[str]) -> None:
    """Walk one function's or module's statements; ``upstream`` are names that hold objects of vLLM's."""
    names = upstream | {f".{name}" for name in kept}
    nodes = list(_own(body))
    for _ in range(3):  # names are made of names
        for node in nodes:
            _assign(node, names, kept)
    for node in nodes:
        if isinstance(node, ast.Attribute) and _is_upstream(node.value, names):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and _named(node.func) in ("getattr", "hasattr", "setattr", "wrap"):
            target, name = node.args[0], node.args[1]
            if _is_upstream(target, names) and isinstance(name, ast.Constant):
                found.add(str(name.value))
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    _scope(method.body, names | _parameters(method, hooked=False), found, kept)
        elif isinstance(node, ast.FunctionDef):
            _scope(node.body, names - _typed(node) | _parameters(node, hooked=True), found, kept)
        elif isinstance(node, ast.Lambda):
            _scope([ast.Expr(node.body)], names, found, kept)


def _own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes of a body, not those of functions and classes in it."""
    for statement in body:
        stack: list[ast.AST] = [statement]
        while stack:
            node = stack.pop()
            yield node
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
                stack.extend(ast.iter_child_nodes(node))


def _named(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _annotated(argument: ast.arg) -> bool:
    text = "" if argument.annotation is None else ast.unparse(argument.annotation)
    return text in ("Any", "Callable[..., Any]", "torch.nn.Module")


def _all(function: ast.FunctionDef) -> list[ast.arg]:
    args = function.args
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]


def _parameters(function: ast.FunctionDef, *, hooked: bool) -> set[str]:
    return {arg.arg for arg in _all(function) if _annotated(arg) and (hooked or arg.arg != "self")}


def _typed(function: ast.FunctionDef) -> set[str]:
    return {arg.arg for arg in _all(function) if not _annotated(arg)}


def _is_upstream(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression gives an object of vLLM's."""
    if isinstance(node, ast.Name):
        return node.id in names and not hasattr(builtins, node.id)
    if isinstance(node, ast.Attribute):
        return f".{node.attr}" in names or _is_upstream(node.value, names)
    if isinstance(node, ast.Subscript | ast.Starred):
        return _is_upstream(node.value, names)
    if isinstance(node, ast.Call):
        if _named(node.func) in ("getattr", "list", "tuple", "zip", "type", "bool", "int", "dict"):
            return any(_is_upstream(argument, names) for argument in node.args)
        return _is_upstream(node.func, names) or ast.unparse(node.func) == "sys.modules.get"
    if isinstance(node, ast.BoolOp):
        return any(_is_upstream(value, names) for value in node.values)
    if isinstance(node, ast.IfExp):
        return _is_upstream(node.body, names) or _is_upstream(node.orelse, names)
    return False


def _assign(node: ast.AST, names: set[str], kept: set[str]) -> None:
    pairs: list[tuple[ast.AST, ast.AST]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.For | ast.comprehension):
        pairs = [(node.target, node.iter)]
    elif isinstance(node, ast.NamedExpr):
        pairs = [(node.target, node.value)]
    for target, value in pairs:
        if _is_upstream(value, names):
            for leaf in ast.walk(target):
                if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store):
                    names.add(leaf.id)
                elif isinstance(leaf, ast.Attribute) and isinstance(leaf.ctx, ast.Store):
                    kept.add(leaf.attr)
