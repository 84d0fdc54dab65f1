"""Short chat templates of our own in the manner of families, each with its way to call. None is a copy of a maker's."""

from __future__ import annotations

from dataclasses import dataclass

_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_LLAMA = '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
_COHERE = '{"tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
_PYTHON = (
    "{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
)
_QWEN_XML = (
    "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n{{ v }}\n"
    "</parameter>\n{% endfor %}</function>\n</tool_call>"
)
_DEEPSEEK_V3 = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments }}\n```<｜tool▁call▁end｜>"
)
_DEEPSEEK_V31 = "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments }}<｜tool▁call▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_GLM = (
    "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>"
)
_MINIMAX = (
    '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}<parameter name="{{ k }}">{{ v }}</parameter>\n'
    "{% endfor %}</invoke>\n"
)
_GEMMA4 = (
    "<|tool_call>call:{{ f.name }}{{ '{' }}{% for k, v in f.arguments | items %}{{ k }}:<|\"|>{{ v }}<|\"|>"
    "{{ ',' if not loop.last }}{% endfor %}{{ '}' }}<tool_call|>"
)
_SEED = (
    "<seed:tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>{{ v }}"
    "</parameter>\n{% endfor %}</function>\n</seed:tool_call>"
)
_KIMI = "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>"
_HARMONY = " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>"
_MISTRAL_IDS = "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
_ONE = "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}"


@dataclass(frozen=True)
class Family:
    """What tells a family's template from another's.

    Attributes:
        call: how a call is written; ``f`` is its function, ``c`` the call.
        parsers: the tool parser and the reasoning parser that must be found.
        around: before the first and after the last call.
        between: calls.
        adapted: cases that are adapted; the others give the template's own prompt.
        tools, results: whether the template writes schemas and results; ``system``: whether it takes such a message.
        turn: before each turn; ``{r}`` is the role.
        end: after each turn.
        generation: behind the role where the answer begins.
        check: raised at what the family refuses.
        hint: text that such templates hold.
    """

    call: str
    parsers: tuple[str, str | None]
    around: tuple[str, str] = ("", "")
    between: str = ""
    adapted: frozenset[str] = frozenset()
    tools: bool = True
    results: bool = True
    system: bool = True
    turn: str = "<|{r}|>\n"
    end: str = "<|end|>\n"
    generation: str = ""
    check: str = ""
    hint: str = ""
    thoughts: str = ""

    @property
    def template(self) -> str:
        """The Jinja source."""
        role = self.turn.replace("{r}", "{{ m.role }}")
        schemas = "{% if tools %}[tools]{{ tools | tojson }}[/tools]\n{% endif %}" if self.tools else ""
        system = "" if self.system else "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        results = "" if self.results else "{% if m.role == 'tool' %}{{ raise_exception('no tool role') }}{% endif %}"
        calls = (
            "{% if m.tool_calls %}"
            + self.check
            + self.around[0]
            + "{% for c in m.tool_calls %}{% set f = c.function %}"
            + self.call
            + (f"{{{{ '{self.between}' if not loop.last }}}}" if self.between else "")
            + "{% endfor %}"
            + self.around[1]
            + "{% endif %}"
        )
        return (
            f"{{# {self.hint} #}}{schemas}{{% for m in messages %}}{system}{results}{role}{self.thoughts}"
            f"{{{{ m.content }}}}{calls if self.call else ''}{self.end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{self.turn.replace('{r}', 'assistant')}{self.generation}{{% endif %}}"
        )


_TOOLS = frozenset(
    {
        *("with tools", "call and result", "two parallel calls", "call with thought", "result without name"),
        *("foreign call ids", "forced call", "final answer after tools"),
    }
)
_THINKS = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
FAMILIES: dict[str, Family] = {
    "Qwen 2.5": Family(f"<tool_call>\n{_JSON}\n</tool_call>", ("hermes", None), between="\\n"),
    "Qwen 3": Family(f"<tool_call>\n{_JSON}\n</tool_call>", ("hermes", "qwen3"), between="\\n", thoughts=_THINKS),
    "Qwen 3 Coder": Family(_QWEN_XML, ("qwen3_coder", None), between="\\n"),
    "Llama 3.1": Family(
        _LLAMA, ("llama3_json", None), check=_ONE, hint="header_start <|python_tag|>",
        adapted=frozenset({"two parallel calls", "foreign call ids"}),
    ),
    "Llama 4": Family(_PYTHON, ("pythonic", None), around=("[", "]"), between=", "),
    "Mistral": Family(
        _MISTRAL_IDS + _JSON, ("mistral", None), around=("[TOOL_CALLS][", "]"), between=", ",
        adapted=frozenset({"foreign call ids"}),
    ),
    "Magistral": Family(
        _MISTRAL_IDS + _JSON, ("mistral", "mistral"), around=("[TOOL_CALLS][", "]"), between=", ",
        hint="[THINK][/THINK]", adapted=frozenset({"foreign call ids"}),
    ),
    "DeepSeek V3": Family(_DEEPSEEK_V3, ("deepseek_v3", None), around=_DEEPSEEK, between="\\n"),
    "DeepSeek R1": Family(
        _DEEPSEEK_V3, ("deepseek_v3", "deepseek_r1"), around=_DEEPSEEK, between="\\n", tools=False,
        hint="<｜Assistant｜>", generation="<think>\n", adapted=_TOOLS,
    ),
    "DeepSeek V3.1": Family(_DEEPSEEK_V31, ("deepseek_v31", None), around=_DEEPSEEK, tools=False, adapted=_TOOLS),
    "Gemma 3": Family(
        "", ("hermes", None), tools=False, results=False, system=False,
        adapted=_TOOLS | {"several system messages"},
    ),
    "Gemma 4": Family(_GEMMA4, ("gemma4", "gemma4"), hint="<|channel>thought <channel|>"),
    "Phi 3": Family("", ("hermes", None), tools=False, results=False, adapted=_TOOLS),
    "Phi 4 mini": Family(_JSON, ("phi4_mini_json", None), around=("functools[", "]"), between=", "),
    "Granite": Family(_JSON, ("granite", None), around=("<|tool_call|>[", "]"), between=", "),
    "Granite 3.3": Family(
        "", ("granite", None), hint="<|tool_call|>",
        adapted=_TOOLS - {"with tools", "forced call"},
    ),
    "OLMo 3": Family(
        _PYTHON, ("olmo3", None), around=("<function_calls>\n", "\n</function_calls>"), between="\\n",
    ),
    "Nemotron": Family(_JSON, ("nemotron_json", None), around=("<TOOLCALL>[", "]</TOOLCALL>"), between=", "),
    "Nemotron 3": Family(
        _QWEN_XML, ("qwen3_coder", "nemotron_v3"), between="\\n", hint="<TOOLCALL>", thoughts=_THINKS,
    ),
    "gpt-oss": Family(
        _HARMONY, ("openai", "openai_gptoss"), turn="<|start|>{r}", end="<|end|>", check=_ONE,
        hint="<|channel|>analysis <|channel|>commentary",
        adapted=frozenset({"two parallel calls", "foreign call ids"}),
    ),
    "Hermes 3": Family(f"<tool_call>\n{_JSON}\n</tool_call>", ("hermes", None), between="\\n"),
    "Command R": Family(_COHERE, ("command_r", None), around=("Action:\n```json\n[", "]\n```"), between=", "),
    "Command R7B": Family(
        _COHERE, ("cohere_command3", "cohere_command3"), around=("<|START_ACTION|>[", "]<|END_ACTION|>"), between=", ",
        hint="<|START_THINKING|><|END_THINKING|>",
    ),
    "Hunyuan": Family(
        _JSON, ("hunyuan_a13b", "hunyuan_a13b"), around=("<tool_calls>[", "]</tool_calls>"), between=", ",
        hint="<answer>", thoughts=_THINKS,
    ),
    "MiniMax": Family(
        _MINIMAX, ("minimax_m2", "minimax_m2"), around=("<minimax:tool_call>\n", "</minimax:tool_call>"),
        hint="]~b]", generation="<think>\n",
    ),
    "GLM": Family(_GLM, ("glm47", "glm45"), hint="[gMASK]", thoughts=_THINKS),
    "Seed OSS": Family(_SEED, ("seed_oss", "seed_oss"), hint="<seed:think></seed:think>"),
    "Kimi K2": Family(
        _KIMI, ("kimi_k2", None), around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        adapted=_TOOLS - {"with tools", "forced call"},
    ),
}  # fmt: skip
"""Name → family."""
