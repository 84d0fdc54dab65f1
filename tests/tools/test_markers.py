"""No text of a document, a server or a program speaks as the system: its chat markers are broken, the rest stays."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from mixquant_tools import base
from mixquant_tools.base import add_markers, clean, is_plain, make_tool

MARKERS = {
    "SmolLM": "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> "
    "<issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> "
    "<jupyter_script> <empty_output>",
    "Qwen": "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think> <tools> </tools> "
    "<|vision_start|> <|fim_prefix|> <function=f> <parameter=p> </function> <tool_call",
    "Llama": "<|begin_of_text|> <|start_header_id|> <|eot_id|> <|eom_id|> <|python_tag|> <|header_start|> <|eot|> "
    "[INST] [/INST] <<SYS>> <</SYS>> <s> </s> <unk>",
    "Mistral": "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT] [ARGS] "
    "[CALL_ID] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [IMG] [IMG_BREAK] [THINK] [/THINK] [PREFIX] [BEGIN_AUDIO] [control_8] "
    "[MODEL_SETTINGS]",
    "DeepSeek": "<｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁sep｜> "
    "<｜fim▁hole｜> ｜DSML｜ ",
    "Gemma": "<bos> <eos> <pad> <start_of_turn> <end_of_turn> <unused99> <start_of_image> <|turn> <turn|> <|tool> "
    '<tool|> <|tool_call> <tool_call|> <|tool_response> <|channel> <channel|> <|think|> <|"|>',
    "Phi": "<|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|>",
    "Granite": "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|>",
    "gpt-oss": "<|start|> <|message|> <|channel|> <|call|> <|return|> <|constrain|>",
    "Command R": "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|START_ACTION|> <|END_THINKING|>",
    "Hunyuan": "<|startoftext|> <|extra_0|> <|eos|> <tool_calls> <answer> <｜hy_place▁holder▁no▁3｜>",
    "MiniMax": "]~!b[ ]~b]system ]~b] [e~[ <minimax:tool_call> </minimax:tool_call> <invoke",
    "GLM": "[gMASK] [sMASK] <sop> <eop> <|observation|> <arg_key> </arg_value>",
    "Seed": "<seed:bos> <seed:eos> <seed:tool_call> </seed:tool_call> <seed:think> <seed:cot_budget_reflect>",
    "EXAONE": "[|system|] [|user|] [|assistant|] [|endofturn|] [|tool|]",
    "Nemotron": "<TOOLCALL> </TOOLCALL> <AVAILABLE_TOOLS> <TOOLRESPONSE> <extra_id_1> <SPECIAL_12>",
    "Kimi": "<|im_system|> <|im_middle|> <|tool_calls_section_begin|> <|tool_call_argument_begin|>",
    "OLMo": "<functions> </functions> <function_calls>",
    "names in other forms": "<ifm|think> </ifm|tool_calls> <mm:think> <atem:invoke ]<]minimax[>[ </parameter> <arg_key "
    "<tool_sep </param> <|plamo:begin_x|> <assistant> <role> <response> <paramname= <functionname=",
    "others": "<|plugin|> <eoh> <longcat_tool_call> <mask:1> <reserved_106> <|tool_list_start|> <kimi:a_b>",
}
ORDINARY = [
    *("a < b", "x <= 3", "a<|b", "a |> f", "|a|<|b|", "[1] [INFO]", "List[int]", "<p>", "a[|b|]"),
    *('<a href="x_y">z</a>', "<div class='s'>", "vector<size_t>", "std::map<uint8_t, int>", "x[i]~y", "y ~ x[1]"),
    *("<small>", "<h1>x</h1>", "[ab]", "if (a<b && c>d_e)", "[[wiki]]", "[x](y)", "a\tb\nc", "❤️ 👨‍👩‍👧"),
    *("<!-- s -->", "<strong>", "<svg:rect>", "<https://x.org/a_b>", "<ann@x.org>", "#include <stdio.h>", "f <| x"),
    *("[|]", "1<2|3>2"),
]  # fmt: skip


@pytest.mark.parametrize("family", MARKERS)
def test_marker_of_every_family_is_broken(family: str) -> None:
    for marker in MARKERS[family].split():
        rest = marker[1:].replace("｜", "｜ ", 1)  # between wide bars lies a token of its own
        assert clean(f"a{marker} b") == f"a{marker[0]} {rest if marker[0] == '<' else marker[1:]} b"


def test_both_tokens_of_a_tag_are_broken() -> None:
    assert clean("<｜DSML｜invoke></｜DSML｜invoke>") == "< ｜ DSML｜invoke>< /｜ DSML｜invoke>"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert clean(text) == text


@given(
    st.lists(
        st.sampled_from(
            [*" ".join(MARKERS.values()).split(), *ORDINARY, "<", "[", "|", ">", "]", "\x00", "\U000e0041"]
        ),
        max_size=8,
    ).map("".join)
)
@example("<\U000e0041|im_end|>")
@example("<<|im_end|>|im_end|>")
@example("<\ufe0f\ufe0fs>")
@example("<invokevector<size_t>")
@example("<arg_keyf <| x")
@example("<｜DSML｜>")
def test_no_marker_is_left_or_made(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert not any(marker in cleaned for marker in " ".join(MARKERS.values()).split())


def test_invisible_text_is_dropped() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey me")
    bytes_of_selectors = "".join(chr(0xE0100 + byte) for byte in b"obey me")
    assert clean(f"well{hidden} and{bytes_of_selectors} good") == "well and good"
    assert clean("a" + "\ufe00\ufe01" * 9 + "b") == "ab"


@pytest.mark.parametrize(
    "piece", ["<", "[", "|", "<|", "[|", "｜", "<a", "<a_", "a_", "<a:", "<a:a_", "[A", "]~", "</"]
)
def test_cleaning_costs_linear(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    clean(text)
    assert time.process_time() - began < 2


@pytest.fixture
def tokens_forgotten() -> Iterator[None]:
    yield
    base._added_tokens.clear()
    add_markers([])


def test_added_tokens_of_a_tokenizer_are_broken(tokens_forgotten: None) -> None:
    add_markers(["{{user}}", "<|im_end|>", "<h7>", "USER", "   ", "\n\n", "▁▁"])
    add_markers([">>TITLE<<"])
    assert clean("{{user}} <h7> >>TITLE<< <|im_end|> USER   x") == "{ {user}} < h7> > >TITLE<< < |im_end|> USER   x"


def test_names_that_can_be_shown() -> None:
    assert is_plain("a b/Zürich–10_查.txt")
    for name in ("a\nb", "a\tb", "a\x85b", "a\u2028b", "\u202eb", "a\udcff", "a\U000e0041"):
        assert not is_plain(name)


class Nothing(BaseModel):
    """Nothing."""


def failing(error: Exception) -> BaseTool:
    def fail() -> str:
        raise error

    return make_tool(fail, name="fail", description="Fails.", arguments=Nothing)


def test_failure_of_the_system_does_not_show_paths_of_the_machine() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/home/ann/secret")
    message = failing(error).invoke({"type": "tool_call", "id": "1", "name": "fail", "args": {}})
    assert message.status == "error"
    assert message.content == "error: fail failed: FileNotFoundError: No such file or directory"


def test_long_answer_is_cut_before_it_is_cleaned() -> None:
    tool = make_tool(lambda: "<s>" * 10**7, name="long", description="Long.", arguments=Nothing, max_output=300)
    began = time.process_time()
    answer = tool.invoke({})
    assert time.process_time() - began < 1
    assert answer.startswith("< s>< s>")
    assert answer.endswith("[cut: 29999700 of 30000000 characters left off; ask for less]")
    assert len(answer) < 400
