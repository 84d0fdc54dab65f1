"""Messages → token ids: the model's own template wherever it can, the nearest adaptation where it cannot."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.parsers import parser_names
from mixquant_agents.engine.vllm.render import Renderer, bundled_template
from mixquant_agents.errors import ConfigError, ContextOverflowError, InvalidMessagesError, RequestError
from tests.engine.vllm.byte_tokenizer import byte_tokenizer
from tests.engine.vllm.chat_format.family_templates import TEMPLATES

TOOL = {
    "type": "function",
    "function": {
        "name": "depth",
        "description": "Depth of a lake in metres.",
        "parameters": {"type": "object", "properties": {"lake": {"type": "string"}}, "required": ["lake"]},
    },
}
OWN_ID = "call_0123456789abcdef01234567"


def call(arguments: str = '{"lake": "Inari"}', call_id: str | None = OWN_ID, name: str = "depth") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_turns(*ids: str | None, text: str = "") -> list[dict[str, Any]]:
    """A question, one answer with a call per id, and a result for each."""
    lakes = ["Inari", "Saimaa", "Oulu"]
    calls = [call(json.dumps({"lake": lake}), call_id) for lake, call_id in zip(lakes, ids, strict=False)]
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": f"{lake}: deep"}
        for lake, call_id in zip(lakes, ids, strict=False)
    ]
    return [
        {"role": "user", "content": "How deep?"},
        {"role": "assistant", "content": text, "tool_calls": calls},
        *results,
    ]


def renderer(tokenizer: Any, **settings: Any) -> Renderer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm.tokenizers.get_tokenizer", lambda *_, **__: tokenizer)
        return Renderer("path", EngineConfig(model="m", **settings))


@functools.cache
def of_trait(template: str) -> Renderer:
    return renderer(byte_tokenizer(template))


def prompt(template: Any, messages: Any, tools: Any = (), **settings: Any) -> str:
    plain = isinstance(template, str) and not settings
    made = of_trait(template) if plain else renderer(byte_tokenizer(template), **settings)
    return str(made.tokenizer.decode(made.render(messages, tools)))


PLAIN = {
    "question": [{"role": "user", "content": "hello"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    "five turns": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "three"},
    ],
}


@pytest.mark.parametrize("messages", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("trait", TEMPLATES)
def test_plain_chat_is_the_tokenizers_own_prompt(trait: str, messages: list[dict[str, Any]]) -> None:
    made = of_trait(TEMPLATES[trait])
    given = messages
    if trait == "parts":
        given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    elif trait == "strict_turns" and messages[0]["role"] == "system":
        given = [{"role": "user", "content": "Be brief.\n\nhello"}]  # the template refuses the role
    own = made.tokenizer.apply_chat_template(given, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert made.render(messages) == own


@pytest.mark.parametrize("trait", TEMPLATES)
def test_smollm_is_nowhere_but_in_the_embedded_models_prompt(trait: str) -> None:
    assert "SmolLM" not in prompt(TEMPLATES[trait], PLAIN["question"])
    assert "SmolLM" not in prompt(TEMPLATES[trait], tool_turns(OWN_ID), [TOOL])
    assert "SmolLM" in prompt(bundled_template(), PLAIN["question"])


@pytest.mark.parametrize("trait", TEMPLATES)
@pytest.mark.parametrize("arguments", ['{"lake": "Inari"}', '{"lake":"Inari"}'])
def test_call_and_result_are_in_the_prompt(trait: str, arguments: str) -> None:
    turns = tool_turns(OWN_ID)
    turns[1]["tool_calls"] = [call(arguments)]
    text = prompt(TEMPLATES[trait], turns, [TOOL])
    behind = text.partition("How deep?")[2] or text
    assert "depth" in behind
    assert "Inari" in behind
    assert "{'lake'" not in text
    assert '\\"lake\\"' not in text
    assert "Inari: deep" in text
    assert "Depth of a lake in metres." in text
    assert "None" not in text


@pytest.mark.parametrize("trait", TEMPLATES)
@pytest.mark.parametrize("text", ["", "I look it up."])
def test_parallel_calls_with_text_lose_nothing(trait: str, text: str) -> None:
    written = prompt(TEMPLATES[trait], tool_turns("a", "b", text=text), [TOOL])
    for part in (
        text,
        '"lake"' if trait != "named_results" else "lake=",
        "Inari",
        "Saimaa",
        "Inari: deep",
        "Saimaa: deep",
    ):
        assert part in written


def test_deepseeks_arguments_are_joined_as_text() -> None:
    written = prompt(TEMPLATES["text_calls"], tool_turns(OWN_ID), [TOOL])
    assert '<calls><call>depth<sep>{"lake": "Inari"}</call></calls>' in written


def test_a_call_beside_text_is_a_message_of_its_own_where_the_template_would_drop_it() -> None:
    written = prompt(TEMPLATES["text_calls"], tool_turns(OWN_ID, text="I look."), [TOOL])
    assert '<Assistant>I look.</s><Assistant><calls><call>depth<sep>{"lake": "Inari"}</call></calls></s>' in written


def test_schemas_are_listed_in_the_templates_own_call_form_where_it_has_no_place_for_them() -> None:
    made = of_trait(TEMPLATES["text_calls_no_schemas"])
    assert made.tool_form == "listed"
    written = made.tokenizer.decode(made.render(tool_turns(OWN_ID), [TOOL]))
    assert '<call>FUNCTION<sep>{"PARAMETER": "VALUE"}</call>' in written
    assert '<call>depth<sep>{"lake": "Inari"}</call>' in written
    assert "<tool_call>" not in written


def test_calls_are_the_answers_text_where_the_template_leaves_them_to_it() -> None:
    made = of_trait(TEMPLATES["spoken_calls"])
    assert made.tool_form == "spoken"
    written = made.tokenizer.decode(made.render(tool_turns("a", "b"), [TOOL]))
    first, second = (
        '{"name": "depth", "arguments": {"lake": "Inari"}}',
        '{"name": "depth", "arguments": {"lake": "Saimaa"}}',
    )
    assert f"[assistant]<|tool_call|>[{first}, {second}][end][tool]Inari: deep[end]" in written


def test_prompted_tools_keep_the_templates_roles_and_markers() -> None:
    made = of_trait(TEMPLATES["any_role"])
    assert made.tool_form == "prompted"
    turns = [{"role": "system", "content": "Be brief."}, *tool_turns("a", "b", text="Wait.")]
    written = made.tokenizer.decode(made.render(turns, [TOOL]))
    assert written.startswith("<|system|>\nBe brief.\n\n# Functions\n")
    assert json.dumps(TOOL["function"]) in written
    assert (
        '<|assistant|>\nWait.\n<tool_call>\n{"name": "depth", "arguments": {"lake": "Inari"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "depth", "arguments": {"lake": "Saimaa"}}\n</tool_call><|end|>\n'
        "<|user|>\n<tool_response>\nInari: deep\n</tool_response>\n"
        "<tool_response>\nSaimaa: deep\n</tool_response><|end|>\n"
        "<|assistant|>\n"
    ) in written


def test_prompted_tools_join_the_first_user_turn_where_there_is_no_system_role() -> None:
    turns = [*tool_turns("a"), {"role": "user", "content": "Sure?"}]
    written = prompt(TEMPLATES["strict_turns"], turns, [TOOL])
    assert written.startswith("<s>[user]# Functions\n")
    assert written.endswith("Inari: deep\n</tool_response>\n\nSure?[end][model]")


def test_prompted_arguments_are_the_text_that_the_model_wrote() -> None:
    turns = tool_turns("a")
    turns[1]["tool_calls"] = [call('{"a":1,  "b": 2}')]
    assert '"arguments": {"a":1,  "b": 2}}' in prompt(TEMPLATES["any_role"], turns, [TOOL])


@pytest.mark.parametrize("trait", [t for t in TEMPLATES if t != "nine_ids"])
def test_a_longer_conversation_begins_with_the_shorter_prompt(trait: str) -> None:
    """What the prefix cache lives on (the end, where the answer begins, is left out)."""
    made = of_trait(TEMPLATES[trait])
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *tool_turns("a")]
    conversation += [{"role": "assistant", "content": "Deep."}, {"role": "user", "content": "Thanks"}]
    prompts = [
        made.tokenizer.decode(made.render(conversation[:end], [TOOL]))
        for end in range(1, len(conversation) + 1)
        if conversation[end - 1]["role"] in ("user", "tool")
    ]
    for shorter, longer in itertools.pairwise(prompts):
        kept = shorter[: max(shorter.rfind("[assistant]"), shorter.rfind("<Assistant>"), shorter.rfind("[model]"), 1)]
        assert longer.startswith(kept.rstrip())


@pytest.mark.parametrize("ids", [("a", "a"), (None, None), (OWN_ID, "1"), ("call_PTLP8x", "abcDEF123"), ("ü", "")])
def test_mistral_ids_have_nine_characters_and_match(ids: tuple[str | None, str | None]) -> None:
    written = prompt(TEMPLATES["nine_ids"], tool_turns(*ids), [TOOL])
    calls = [part[:9] for part in written.split('"id": "')[1:]]
    results = [part[:9] for part in written.split('"call_id": "')[1:]]
    assert calls == results
    assert all(new.isascii() and new.isalnum() for new in calls)
    assert len(set(calls)) == 2
    assert "abcDEF123" in calls or "abcDEF123" not in ids
    assert written == prompt(TEMPLATES["nine_ids"], tool_turns(*ids), [TOOL])


@pytest.fixture(scope="module", params=["tekken_240911.json", "mistral_instruct_tokenizer_240323.model.v3"])
def mistral(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """mistral_common's own tokenizer, as vLLM loads it."""
    import mistral_common
    from vllm.tokenizers.mistral import MistralTokenizer

    source = Path(mistral_common.__file__).parent / "data" / request.param
    name = "tekken.json" if request.param.startswith("tekken") else f"tokenizer.{request.param.partition('.')[2]}"
    folder = tmp_path_factory.mktemp("mistral")
    (folder / name).symlink_to(source)
    return MistralTokenizer.from_pretrained(str(folder))


def test_mistral_common_renders_foreign_ids(mistral: Any) -> None:
    made = renderer(mistral)
    assert (made.template, made.tool_form) == (None, "native")
    text = mistral.decode(made.render(tool_turns(OWN_ID, "call_PTLP8x"), [TOOL])).replace("▁", " ")
    assert '{"name": "depth", "arguments": {"lake": "Inari"}, "id": ' in text
    assert "deep" in text
    fitting = tool_turns("abcDEF123", "abcDEF124")
    assert made.render(fitting, [TOOL]) == mistral.apply_chat_template(copy.deepcopy(fitting), tools=[TOOL])


def test_mistral_common_knows_no_variables(mistral: Any) -> None:
    with pytest.raises(RequestError, match="'enable_thinking', which this model's chat template does not know"):
        renderer(mistral).render(PLAIN["question"], (), {"enable_thinking": False})


def test_kimi_ids_name_the_function() -> None:
    written = prompt(TEMPLATES["id_is_name"], tool_turns(OWN_ID, "functions.depth:1"), [TOOL])
    assert "<call>functions.depth:0<args>" in written
    assert "## Return of functions.depth:0\n" in written
    assert "<call>functions.depth:1<args>" in written


def test_parallel_calls_follow_one_another_where_a_template_takes_one() -> None:
    written = prompt(TEMPLATES["one_call"], tool_turns("a", "b"), [TOOL])
    order = [written.index(part) for part in ('{"lake": "Inari"}', "Inari: deep", '{"lake": "Saimaa"}', "Saimaa: deep")]
    assert order == sorted(order)


TAKES_TURNS = (
    "{%- set ns = namespace(user=true) -%}[tools]{{ tools | tojson if tools else '' }}"
    "{%- for m in messages -%}{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}"
    "{%- if (m.role == 'user') != ns.user -%}{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{%- set ns.user = not ns.user -%}{%- endif -%}"
    "{%- if m.role == 'assistant' and not m.tool_calls and not m.content -%}{{ raise_exception('empty') }}{%- endif -%}"
    "[{{ m.role }}]{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{%- endfor -%}'
    "{%- else -%}{{ m.content }}{%- endif -%}</s>{%- endfor -%}"
)
"""Like Mistral's: calls and results count for no turn, and the text beside a call is dropped."""


UNEVEN: dict[str, list[dict[str, Any]]] = {
    "user behind a result": [*tool_turns("a"), {"role": "user", "content": "Stop. And Saimaa?"}],
    "two users behind a result": [
        *tool_turns("a"),
        {"role": "user", "content": "Stop."},
        {"role": "user", "content": "And Saimaa?"},
    ],
    "text beside a call": [
        {"role": "user", "content": "Hello."},
        {"role": "user", "content": "Are you there?"},
        {"role": "assistant", "content": "Yes."},
        *tool_turns("a", text="I look."),
        {"role": "assistant", "content": "92 m."},
        {"role": "user", "content": "Sure?"},
    ],
    "answer without text": [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Are you there?"},
    ],
    "answer first": [{"role": "assistant", "content": "I am here."}, *tool_turns("a")],
}
"""A cancelled run, words beside a call, an answer that was only a thought, a trimmed history."""


def in_order(text: str, messages: list[dict[str, Any]]) -> bool:
    """Whether every message's text stands in ``text``, each behind the one before."""
    at = -1
    for message in filter(lambda message: message["content"], messages):
        at = text.find(message["content"], at + 1)
        if at < 0:
            return False
    return True


@pytest.mark.parametrize("messages", UNEVEN.values(), ids=UNEVEN)
def test_turns_that_nobody_took_do_not_end_a_conversation(messages: list[dict[str, Any]]) -> None:
    assert in_order(prompt(TAKES_TURNS, messages, [TOOL]), messages)
    assert "..." not in prompt(TAKES_TURNS, tool_turns("a"), [TOOL])


def test_turns_that_nobody_took_do_not_end_a_conversation_with_mistral_common(mistral: Any) -> None:
    made = renderer(mistral)
    for name, messages in UNEVEN.items():
        text = mistral.decode(made.render(messages, [TOOL])).replace("▁", " ")
        assert in_order(text, messages), name


def test_thoughts_are_handed_over_under_the_templates_name() -> None:
    turns = tool_turns("a")
    turns[1]["reasoning_content"] = "Hm."
    assert "[analysis]Hm.[call to=functions.depth]" in prompt(TEMPLATES["own_thoughts"], turns, [TOOL])
    turns[1]["content"] = "I look."
    both = prompt(TEMPLATES["own_thoughts"], turns, [TOOL])  # which the template does not take in one message
    assert "[assistant]I look.[end][analysis]Hm.[call to=functions.depth]" in both


def test_results_get_their_functions_name_where_the_template_writes_it() -> None:
    assert "[result depth]Inari: deep" in prompt(TEMPLATES["named_results"], tool_turns("a"), [TOOL])


@pytest.mark.parametrize("trait", TEMPLATES)
def test_several_system_messages_are_all_in_the_prompt(trait: str) -> None:
    turns = [
        {"role": "system", "content": "First rule."},
        {"role": "system", "content": "Second rule."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "system", "content": "Third rule."},
        {"role": "user", "content": "go"},
    ]
    for tools in ([], [TOOL]):
        text = prompt(TEMPLATES[trait], turns, tools)
        for part in ("First rule.", "Second rule.", "Third rule.", "hello", "yes", "go"):
            assert part in text


def test_named_templates_are_chosen_per_request() -> None:
    named = {"default": "plain{{ messages[0].content }}", "tool_use": TEMPLATES["hermes_calls"], "rag": "r"}
    assert prompt(named, PLAIN["question"]) == "plainhello"
    assert prompt(named, PLAIN["question"], [TOOL]).startswith("<tools>")
    assert "<tool_call>" in prompt(named, tool_turns("a"))


def test_a_template_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("mine {{ messages[0].content }}")
    assert prompt("own", PLAIN["question"], chat_template=str(path)) == "mine hello"
    with pytest.raises(ConfigError, match="is not a file"):
        renderer(byte_tokenizer("own"), chat_template=str(tmp_path / "gone"))


def test_a_model_without_template_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"has no chat template; give one: chat_template='FILE.jinja'"):
        renderer(byte_tokenizer(None)).render(PLAIN["question"])


def test_a_template_that_refuses_is_a_readable_error() -> None:
    made = renderer(byte_tokenizer("{{ messages[0].nothing.at.all }}"))
    with pytest.raises(InvalidMessagesError, match=r"chat template cannot render .*nothing.* roles: user"):
        made.render(PLAIN["question"])


def test_a_template_that_drops_the_question_is_refused() -> None:
    made = renderer(byte_tokenizer("always the same"))
    with pytest.raises(InvalidMessagesError, match=r"it would drop or garble message 0 \(user\)"):
        made.render(PLAIN["question"])


def test_the_bundled_template_keeps_arguments_byte_for_byte() -> None:
    made = renderer(byte_tokenizer(bundled_template()))
    assert made.bundled
    turns = tool_turns("a")
    turns[1]["tool_calls"] = [call('{"a":1,  "b": 2}')]
    assert '"arguments": {"a":1,  "b": 2}}' in made.tokenizer.decode(made.render(turns, [TOOL]))


@pytest.mark.parametrize("trait", TEMPLATES)
def test_a_call_that_was_cut_off_does_not_end_the_conversation(trait: str) -> None:
    turns = tool_turns("a", "b")
    cut = call('{"lake": "Sai', "b")
    turns[1]["tool_calls"][1] = cut
    written = prompt(TEMPLATES[trait], turns, [TOOL])
    assert "Inari" in written
    assert cut["function"]["arguments"] == '{"lake": "Sai', "the caller's messages stay as they are"


@pytest.mark.parametrize(
    "name", ["add_generation_prompt", "tokenize", "messages", "tools", "return_dict", "chat_template"]
)
def test_variables_that_the_engine_sets_are_refused(name: str) -> None:
    made = of_trait(TEMPLATES["hermes_calls"])
    with pytest.raises(
        RequestError, match=f"chat_template_kwargs holds '{name}', which the engine sets itself"
    ) as caught:
        made.render(PLAIN["question"], (), {name: False})
    assert not isinstance(caught.value, InvalidMessagesError)


def test_variables_that_the_template_does_not_know_are_refused() -> None:
    made = renderer(byte_tokenizer("{{ messages[0].content }}{% if thinking is defined and thinking %}!{% endif %}"))
    assert made.tokenizer.decode(made.render(PLAIN["question"], (), {"thinking": True})) == "hello!"
    with pytest.raises(
        RequestError, match=r"'enable_thinking', which this .* would ignore; its variables are: thinking"
    ):
        made.render(PLAIN["question"], (), {"enable_thinking": False})


def test_variables_of_any_named_template_are_taken() -> None:
    named = {"default": "{{ messages[0].content }}", "tool_use": TEMPLATES["hermes_calls"] + "{{ mood }}"}
    made = renderer(byte_tokenizer(named))
    assert made.tokenizer.decode(made.render(PLAIN["question"], (), {"mood": "!"})) == "hello"


def test_half_an_emoji_becomes_a_replacement_character() -> None:
    turns = tool_turns("a")
    turns[2]["content"] = "deep \ud83d"
    assert "deep \ufffd" in prompt(TEMPLATES["hermes_calls"], turns, [TOOL])
    turns[2]["content"] = "deep \ud83d\ude00"
    assert "deep 😀" in prompt(TEMPLATES["hermes_calls"], turns, [TOOL])


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "fits"), [(99, None, True), (100, None, False), (90, 10, True), (90, 11, False)]
)
def test_what_cannot_fit_is_refused_with_both_numbers(prompt_tokens: int, max_tokens: int | None, fits: bool) -> None:
    made = Renderer.__new__(Renderer)
    made.max_model_len = 100
    if fits:
        made.check_length(prompt_tokens, max_tokens)
        return
    with pytest.raises(ContextOverflowError) as caught:
        made.check_length(prompt_tokens, max_tokens)
    assert (caught.value.prompt_tokens, caught.value.max_model_len) == (prompt_tokens, 100)


@pytest.mark.parametrize(("ids", "one"), [([7], True), ([7, 8], False)])
def test_markers_of_one_token_are_known(ids: list[int], one: bool) -> None:
    made = Renderer.__new__(Renderer)
    made.tokenizer = SimpleNamespace(encode=lambda marker, add_special_tokens: ids)
    assert made.one_token("<tool_call>") is one


DEEPSEEK_MARKS = [
    "<think>",
    "</think>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
]


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        ("DeepseekV32ForCausalLM", "deepseek_v32"),
        ("DeepseekV4ForCausalLM", "deepseek_v4"),
        ("DeepseekV41ForCausalLM", "deepseek_v41"),
    ],
)
def test_prompts_of_deepseek_are_written_by_vllms_tokenizer(tmp_path: Path, architecture: str, mode: str) -> None:
    """Its checkpoints have no chat template: their architecture tells who writes."""
    plain = byte_tokenizer(special=DEEPSEEK_MARKS)
    plain.add_tokens(["｜DSML｜"])
    plain.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": [architecture]}))
    config = EngineConfig(model=str(tmp_path))
    renderer = Renderer(str(tmp_path), config)
    messages = [{"role": "system", "content": "You know lakes."}, *tool_turns(OWN_ID)]
    text = renderer.tokenizer.decode(renderer.render(messages, [TOOL]))
    assert all(part in text for part in ("You know lakes.", "Depth of a lake", "Inari", "<｜User｜>", "｜DSML｜"))
    tool, reasoning = parser_names(config, renderer)
    assert (tool, reasoning is not None) == (mode, True)
