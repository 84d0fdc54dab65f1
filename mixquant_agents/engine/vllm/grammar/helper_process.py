"""The process that tries expensive grammars: ``python -m … SECONDS BYTES``.

Reads JSON lines: first xgrammar's ``TokenizerInfo`` (or ``null``), then structural tags. Answers each tag with one line
``{"error": …, "convert_seconds": …}``. A tag that takes more CPU time or memory than allowed ends the process, which is
the answer. Ends with its input.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from mixquant_agents.engine.vllm.grammar.checker import reason


def main() -> None:
    """Serve until the input ends."""
    import xgrammar

    seconds, extra = int(sys.argv[1]), int(sys.argv[2])
    vocabulary = json.loads(sys.stdin.readline())
    compiler = None
    if vocabulary is not None:
        info = xgrammar.TokenizerInfo.deserialize_json(vocabulary)
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    for line in sys.stdin:
        _limit(seconds, extra)
        print(json.dumps(_try(compiler, json.loads(line))), flush=True)  # noqa: T201  the answer goes to the pipe


def _try(compiler: object, tag: str) -> dict[str, object]:
    import xgrammar

    began = time.process_time()
    error = None
    converted = began
    try:
        xgrammar.Grammar.from_structural_tag(tag)
        converted = time.process_time()
        if isinstance(compiler, xgrammar.GrammarCompiler):
            compiler.compile_structural_tag(tag)
    except Exception as problem:  # xgrammar raises RuntimeError, ValueError and classes of its own
        error = reason(problem)
    return {"error": error, "convert_seconds": max(0.0, converted - began)}


def _limit(seconds: int, extra: int) -> None:
    """From now on: so much CPU time, so much memory."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, hard))
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, hard))


if __name__ == "__main__":
    main()
