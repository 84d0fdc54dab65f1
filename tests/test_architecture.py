"""The floor plan, read from the source: who imports whom, and habits that no other tool sees.

import-linter keeps the rules among packages (``pyproject.toml``); this file keeps what it cannot say. What still breaks
a rule stands in ``KNOWN`` with the rule's name; an entry that no longer breaks it fails, so the list only shrinks.
"""

from __future__ import annotations

import ast
import collections
import functools
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = {
    "mixquant_agents": ROOT / "mixquant_agents",
    "mixquant_tools": ROOT / "tools" / "mixquant_tools",
    "mixquant_workflows": ROOT / "workflows" / "mixquant_workflows",
}
PACKAGES = {**SHIPPED, "mixquant_training": ROOT / "training" / "mixquant_training"}

KNOWN: dict[str, set[str]] = {
    "import circle": set(),
    "getattr on our own object": set(),
    "module-level environment": set(),
    "suppression without a reason": set(),
    "test folder without a source": set(),
    "prefix of three": set(),
}

FOREIGN = {
    "HF_HUB_OFFLINE": "huggingface_hub's constants",
    "GPUModelRunner": "vLLM's runner modules: one of two, by release",
    "__metadata__": "typing's Annotated",
    "_inheriting": "multiprocessing's process, while it is being spawned",
    "body": "openai's APIError",
    "decode_context_parallel_size": "vLLM's parallel configuration, of later releases",
    "input_quant_key": "vLLM's NVFP4 kernels, of later releases",
    "kernel_block_sizes": "vLLM's block tables, of earlier releases",
    "get_chat_template": "transformers' tokenizers; mistral's have none",
    "get_text_config": "transformers' configurations, of later releases",
    "hidden_size": "a checkpoint's configuration",
    "kv_transfer_params": "vLLM's request output, of later releases",
    "max_num_active_reqs": "vLLM's scheduler, of later releases",
    "num_attention_heads": "a checkpoint's configuration",
    "num_hidden_layers": "a checkpoint's configuration",
    "num_key_value_heads": "a checkpoint's configuration",
    "num_preemptions": "vLLM's request metrics, of later releases",
    "num_skipped_waiting_reqs": "vLLM's scheduler statistics, of later releases",
    "num_spec_tokens_to_schedule": "vLLM's step, of later releases",
    "num_speculative_tokens": "vLLM's configuration, of later releases",
    "page_content": "a document of any retriever",
    "prefill_context_parallel_size": "vLLM's parallel configuration, of later releases",
    "quantization_config": "a checkpoint's configuration",
    "register_at_fork": "os, where the platform has it",
    "reload_weights": "vLLM's model runner, of later releases",
    "is_heterogeneous": "a checkpoint's configuration, of later releases of transformers",
    "initialize_kv_cache": "vLLM's model runner, of the releases in which twins draft",
    "sched_getaffinity": "os, where the platform has it",
    "setpgrp": "os, where the platform has it",
    "sqlite_errorcode": "sqlite3's errors, some of which have none",
    "structured_content": "an MCP result",
    "tool_call_chunks": "a chunk of any chat model",
    "use_ubatching": "vLLM's parallel configuration, of later releases",
}
"""Attributes that ``getattr`` may ask for by a constant name, and whose they are; no class of ours defines them."""

FOREIGN_HERE = {
    "mixquant_agents/engine/vllm: chat_template": "vLLM's tokenizer wrappers",
    "mixquant_agents/engine/vllm: detokenizer": "vLLM's state of a request",
    "mixquant_agents/engine/vllm: head_dim": "a checkpoint's configuration",
    "mixquant_agents/engine/vllm: reasoning": "the delta of vLLM's own reasoning parsers",
    "mixquant_agents/engine/vllm: stream": "vLLM's detokenizers",
    "mixquant_agents/engine/vllm: version": "mistral's tokenizer",
    "mixquant_agents/quant: __name__": "a class or a module of vLLM",
    "mixquant_agents/quant: name": "vLLM's compilation mode: an enum or a number, by release",
    "mixquant_agents/quant: quant_config": "vLLM's configuration",
    "mixquant_agents/quant: runtime": "the configuration of any quantization method; only ours has a runtime",
    "mixquant_agents/telemetry: content": "what any tool gave",
    "mixquant_agents/telemetry: status": "what any tool gave",
    "mixquant_tools: text": "a part of an MCP result",
    "mixquant_tools: type": "a part of an MCP result",
    "mixquant_workflows/suites: value": "a key of τ²-bench's dictionaries: an enum or a string",
}
"""The same for names that classes of ours have, too: only in this folder they are another's."""

SYS_PATH = {
    "mixquant_tools/jail/child.py": "the child process that runs a model's code sees what its jail allows",
    "mixquant_workflows/runner/peers/llama.py": "a process of its own, which reads --llama-packages",
}
"""Who may change ``sys.path``, and why. Nobody puts the caller's folder on it."""


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of ``package``."""
    root = PACKAGES[package]
    for path in sorted(root.rglob("*.py")):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file: walking takes longer than parsing, and most tests look at each."""
    return tuple(ast.walk(tree(path)))


def shipped_files() -> list[tuple[str, Path]]:
    """``package/folder/file.py`` and path of every shipped file."""
    files = [(package, path) for package in SHIPPED for _, path in modules(package)]
    return [(f"{package}/{path.relative_to(SHIPPED[package]).as_posix()}", path) for package, path in files]


def folder_of(name: str) -> str:
    """The part of a file's name that names its room: two folders in ``engine``, one elsewhere."""
    parts = name.split("/")[:-1]
    return "/".join(parts[: 3 if parts[1:2] == ["engine"] else 2])


def imported(module: str, path: Path, known: set[str]) -> set[str]:
    """Modules of ``known`` that a file imports: at its top, in functions, and for type checkers alone."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in nodes(path):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
                names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
    return (names & known) - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: strongly connected components of more than one (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


def check_known(rule: str, broken: set[str]) -> None:
    """Fail on what breaks a rule and is not known, and on what is known and breaks it no more."""
    assert not broken - KNOWN[rule], f"{rule}: {sorted(broken - KNOWN[rule])}"
    assert not KNOWN[rule] - broken, f"no longer needed in KNOWN[{rule!r}]: {sorted(KNOWN[rule] - broken)}"


def test_circle_finder_finds_circles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}, "g": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_imports_form_no_circles() -> None:
    files = [pair for package in PACKAGES for pair in modules(package)]
    known = {module for module, _ in files}
    graph = {module: imported(module, path, known) for module, path in files}
    assert sum(map(len, graph.values())) > 500, "the imports were not read"
    check_known("import circle", {" ".join(group) for group in circles(graph)})


def test_shipped_code_imports_no_training() -> None:
    for name, path in shipped_files():
        for node in nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            for value in names:
                first = value.partition(".")[0]
                assert first not in ("training", "mixquant_training") or " " in value, f"{name} names {value!r}"


def is_import_path(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="sys"), attr="path"):
            return True
        case ast.Subscript(value=owner):
            return is_import_path(owner)
    return False


def changes_the_import_path(node: ast.AST) -> bool:
    """Whether a node writes to ``sys.path``, calls one of its methods, hands it on, or adds a folder by ``site``."""
    match node:
        case ast.Attribute(attr="addsitedir"):
            return True
        case ast.ImportFrom(module="sys", names=names):
            return "path" in {alias.name for alias in names}
        case ast.Attribute(value=owner):
            return is_import_path(owner)
        case ast.Call(args=arguments):
            return any(map(is_import_path, arguments))
        case ast.Assign(targets=targets):
            return any(map(is_import_path, targets))
        case ast.AugAssign(target=target):
            return is_import_path(target)
    return False


def test_import_path_finder_knows_writing_from_reading() -> None:
    writing = ("sys.path.append(x)", "sys.path[:] = []", "sys.path += [x]", "sys.path = []", "site.addsitedir(x)")
    reading = ("for x in sys.path: pass", "x = [y for y in sys.path]", "x in sys.path", "os.path.join(x)")
    assert all(any(map(changes_the_import_path, ast.walk(ast.parse(code)))) for code in writing)
    assert not any(any(map(changes_the_import_path, ast.walk(ast.parse(code)))) for code in reading)


def test_shipped_code_leaves_the_import_path_alone() -> None:
    users = {name for name, path in shipped_files() if any(map(changes_the_import_path, nodes(path)))}
    assert users == SYS_PATH.keys()


def own_names() -> set[str]:
    """Names of methods, fields and attributes that classes of the shipped packages define."""
    names: set[str] = set()
    for _, path in shipped_files():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                        names.add(part.name)
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        names.add(part.target.id)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            ):
                names.add(node.attr)
    return names


def constant_getattrs() -> set[str]:
    """``room: attribute`` of every ``getattr`` and ``hasattr`` with a constant name."""
    return {
        f"{folder_of(name)}: {node.args[1].value}"
        for name, path in shipped_files()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    }


def test_own_objects_are_asked_by_attribute() -> None:
    """Whose an object is, the source cannot say: an attribute counts as ours unless it is named above as another's."""
    asked = constant_getattrs()
    ours = {each for each in asked if each not in FOREIGN_HERE and each.partition(": ")[2] not in FOREIGN}
    check_known("getattr on our own object", ours)
    unused = (FOREIGN_HERE.keys() - asked) | (FOREIGN.keys() - {each.partition(": ")[2] for each in asked})
    assert not unused, f"nobody asks for it any more: {sorted(unused)}"
    both = FOREIGN.keys() & own_names()
    assert not both, f"classes of ours have it, too, so it belongs into FOREIGN_HERE: {sorted(both)}"


def test_environment_is_not_read_at_import() -> None:
    def at_import(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.ClassDef):
                yield from at_import(node.body)
            else:
                yield from ast.walk(node)

    check_known(
        "module-level environment",
        {
            name
            for name, path in shipped_files()
            for node in at_import(tree(path).body)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
        },
    )


def test_prefix_used_three_times_is_a_folder() -> None:
    repeated = set()
    for package, root in PACKAGES.items():
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
            names = [path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
            counts = collections.Counter(name.partition("_")[0] for name in names if not name.startswith("_"))
            place = "/".join([package, *folder.relative_to(root).parts])
            repeated |= {f"{place}: {prefix}" for prefix, count in counts.items() if count > 2}
    check_known("prefix of three", repeated)


def test_every_package_stands_on_a_floor() -> None:
    """Each module of the library and of the workflows has its place in a layers contract, which import-linter keeps."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {
        f"{container}.{name.strip(' ()')}"
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract["containers"]
        for layer in contract["layers"]
        for name in layer.replace(":", "|").split("|")
    }
    for package in ("mixquant_agents", "mixquant_workflows"):
        tops = {
            f"{package}.{path.stem}"
            for path in SHIPPED[package].iterdir()
            if (path.suffix == ".py" and path.stem not in ("__init__", "__main__")) or (path / "__init__.py").exists()
        }
        assert tops == {name for name in layers if name.startswith(f"{package}.")}


def test_suppressions_give_their_reason() -> None:
    """Behind ``noqa`` and ``type: ignore`` stands why, on the same line or in a comment right above it."""
    silent = set()
    for name, path in shipped_files():
        text = path.read_text()
        if not re.search(r"noqa|type: ignore", text):
            continue
        lines = text.splitlines()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT or not re.search(r"# *(noqa|type: ignore)", token.string):
                continue
            reason = re.sub(r"#|noqa(: *[A-Z]+\d+(, *[A-Z]+\d+)*)?|type: ignore(\[[\w, -]+\])?", "", token.string)
            above = lines[token.start[0] - 2].strip() if token.start[0] > 1 else ""
            if not re.search(r"[a-z]{2}", reason) and not above.startswith("#"):
                silent.add(name)
    check_known("suppression without a reason", silent)


def test_test_folders_mirror_the_source() -> None:
    """``tests/engine/vllm`` tests ``mixquant_agents/engine/vllm``; tools and workflows have a folder of their own."""
    apart = {"gpu": "needs a GPU", "langchain_standard": "LangChain's own tests of any chat model"}
    tests, unlike = ROOT / "tests", set()
    for folder in sorted(path for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        top, *rest = folder.relative_to(tests).parts
        if top in apart or not any(folder.glob("*.py")):
            continue
        root = {"tools": SHIPPED["mixquant_tools"], "workflows": SHIPPED["mixquant_workflows"]}.get(top)
        source = root.joinpath(*rest) if root else SHIPPED["mixquant_agents"].joinpath(top, *rest)
        if not source.is_dir():
            unlike.add(folder.relative_to(ROOT).as_posix())
    check_known("test folder without a source", unlike)


def test_tests_are_collected_without_triton() -> None:
    """Every run of pytest imports every test file; only a machine with a GPU has Triton. So kernels, in files named
    ``*_triton``, are imported by the tests that run them."""
    early: list[str] = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts = {part for name in names for part in name.split(".")}
            early += [str(path.relative_to(ROOT)) for part in parts if part == "triton" or part.endswith("_triton")]
    assert not early
