"""Writes ``docs/reference`` from the docstrings: ``python docs/build_reference.py``; ``--check`` fails if it is stale.

griffe reads the source, so nothing is imported. What is public is what ``__all__`` names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT, ROOT / "tools", ROOT / "workflows"]
PAGES: dict[str, tuple[str, ...]] = {
    "mixquant_agents": ("mixquant_agents", "mixquant_agents.errors"),
    "engines": ("mixquant_agents.engine.base", "mixquant_agents.engine.scripted"),
    "telemetry": (
        *("mixquant_agents.telemetry", "mixquant_agents.telemetry.metrics", "mixquant_agents.telemetry.tracing"),
        "mixquant_agents.telemetry.protocols",
    ),
    "mixquant_tools": tuple(
        f"mixquant_tools.{name}"
        for name in ("calculator", "clock", "file_tools", "files", "sql", "retrieval", "jail", "mcp_client", "errors")
    ),
    "mixquant_workflows": ("mixquant_workflows",),
}
"""Page → the modules whose ``__all__`` it documents."""


def public(module: griffe.Module) -> list[str]:
    """The names in ``__all__``, in its order."""
    return [str(name).strip("'\"") for name in module.exports or []]


def pages() -> dict[str, str]:
    """File name → Markdown."""
    loader = griffe.GriffeLoader(search_paths=SOURCES)
    for package in ("mixquant_agents", "mixquant_tools", "mixquant_workflows"):
        loader.load(package)
    loader.resolve_aliases(external=False)
    made = {}
    for page, modules in PAGES.items():
        lines = [f"# {page}", "", "Built from the docstrings by `docs/build_reference.py`.", ""]
        seen: set[str] = set()
        for path in modules:
            module = loader.modules_collection[path]
            names = [name for name in public(module) if name not in seen]
            seen |= set(names)
            lines += [f"## `{path}`", "", *text(_first_paragraphs(module)), ""]
            for name in names:
                lines += entry(name, module.members[name])
        made[f"{page}.md"] = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    index = [
        "# API reference",
        "",
        "Built from the docstrings by `docs/build_reference.py`; what is public is what `__all__` names.",
        "",
    ]
    for page, modules in PAGES.items():
        names = [name for path in modules for name in public(loader.modules_collection[path])]
        listed = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
        index.append(f"- [{page}]({page}.md): {listed}")
    return {"README.md": "\n".join(index) + "\n", **made}


def _first_paragraphs(module: Any) -> str:
    return module.docstring.value if module.docstring else ""


def entry(name: str, item: Any) -> Iterator[str]:
    """One public name: signature, docstring, and of a class its public methods."""
    item = item.final_target if item.is_alias else item
    yield f"### {name}"
    yield ""
    yield "```python"
    yield signature(name, item)
    yield "```"
    yield ""
    yield from docstring(item)
    if item.is_class:
        for member_name, member in item.members.items():
            if member_name.startswith("_") or member.is_alias or not member.docstring:
                continue
            if member.is_function or "property" in member.labels:
                yield f"#### {name}.{member_name}"
                yield ""
                if member.is_function:
                    yield "```python"
                    yield signature(member_name, member)
                    yield "```"
                    yield ""
                yield from docstring(member)
    yield ""


def signature(name: str, item: Any) -> str:
    """As it stands in the source, without ``self``."""
    if item.is_class:
        bases = ", ".join(str(base).rsplit(".", 1)[-1] for base in item.bases)
        head = f"class {name}({bases})" if bases else f"class {name}"
        made = item.members.get("__init__")
        # One for type checkers alone says no more than the attributes below.
        if made is not None and made.runtime and not made.is_alias and made.is_function:
            return f"{head}:\n    " + signature("__init__", made)
        return head
    if not item.is_function:
        annotation = f": {item.annotation}" if item.annotation is not None else ""
        return f"{name}{annotation}"
    parts: list[str] = []
    starred = False
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind.value if parameter.kind else ""
        if kind == "keyword-only" and not starred:
            parts.append("*")
            starred = True
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        starred = starred or prefix == "*"
        word = prefix + parameter.name
        if parameter.annotation is not None:
            word += f": {parameter.annotation}"
        if parameter.default is not None and not prefix:
            word += f" = {parameter.default}"
        parts.append(word)
    kind = "async def" if "async" in item.labels else "def"
    returns = f" -> {item.returns}" if item.returns is not None else ""
    line = f"{kind} {name}({', '.join(parts)}){returns}"
    if len(line) > 100:
        line = f"{kind} {name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return line


def field(item: Any, name: str) -> str:
    """An attribute of a class with its type and default, where the source has them in few words."""
    member = item.members.get(name) if item.is_class else None
    if member is None or member.is_alias or not member.is_attribute or member.annotation is None:
        return name
    annotation = re.sub(r"Annotated\[([^,\[\]]+(?:\[[^\]]*\])?), .*\]", r"\1", str(member.annotation))
    default = "" if member.value is None else f" = {member.value}"
    return f"{name}: {annotation}{default}" if len(annotation + default) <= 60 else name


def docstring(item: Any) -> Iterator[str]:
    """Its sections: text as it is, lists of arguments, attributes, returns and errors."""
    if item.docstring is None:
        return
    for section in griffe.parse_google(item.docstring, warnings=False, returns_named_value=False):
        kind = section.kind.value
        if kind == "text":
            yield from text(section.value)
        elif kind in ("parameters", "other parameters", "attributes", "raises"):
            yield {"parameters": "Arguments", "other parameters": "Arguments"}.get(kind, kind.capitalize()) + ":"
            yield ""
            for part in section.value:
                label = part.annotation if kind == "raises" else field(item, part.name)
                yield f"- `{label}`: " + " ".join(text(part.description))
        elif kind in ("returns", "yields"):
            yield f"{kind.capitalize()}: " + " ".join(" ".join(text(part.description)) for part in section.value)
        elif kind == "admonition":
            yield from text(section.value.description)
        else:
            raise SystemExit(f"{item.path}: a section {kind!r} that this script does not know")
        yield ""


def text(words: str) -> list[str]:
    """reStructuredText of the docstrings as Markdown: roles, literals and literal blocks."""
    words = re.sub(
        r":(?:class|meth|func|attr|mod|data|exc):`~?([^`]+)`", lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", words
    )
    words = re.sub(r"``([^`]+)``", r"`\1`", words)
    lines, block = [], False
    for line in words.splitlines():
        if line.rstrip().endswith("::"):
            lines.append(line.rstrip().removesuffix("::") + (":" if line.strip() != "::" else ""))
            block = True
            continue
        lines.append(line)
    return _fenced(lines) if block else lines


def _fenced(lines: list[str]) -> list[str]:
    """Indented lines as a code block."""
    made: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not inside:
            made.append("```python")
            inside = True
        if inside and line.strip() and not indented:
            made.append("```")
            inside = False
        made.append(line[4:] if inside and indented else line)
        if inside and number == len(lines) - 1:
            made.append("```")
    return made


def main() -> int:
    folder = ROOT / "docs" / "reference"
    wanted = pages()
    if "--check" in sys.argv[1:]:
        stale = [
            name
            for name, page in wanted.items()
            if not (folder / name).is_file() or (folder / name).read_text() != page
        ]
        for name in stale:
            sys.stderr.write(f"docs/reference/{name} is not up to date; run: python docs/build_reference.py\n")
        return 1 if stale else 0
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        path.unlink()
    for name, page in wanted.items():
        (folder / name).write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
