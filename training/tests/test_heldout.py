"""The held-out suites: the shipped data file is what this project generates, and answers are judged as written."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest
from tokenizers import Tokenizer

from mixquant_agents import embedded
from mixquant_training import heldout
from mixquant_training import model as plain
from mixquant_training.generate.encode import prompt_text
from mixquant_training.heldout import calls_in, judge, prompt, tasks
from mixquant_workflows.suites.heldout import DATA, SUITES, load_tasks


def test_shipped_data_is_what_is_generated() -> None:
    assert gzip.decompress(DATA.read_bytes()) == heldout.content()
    assert list(load_tasks()) == [task for suite in SUITES for task in tasks(suite)]


@pytest.mark.parametrize("suite", SUITES)
def test_own_answers_are_right(suite: str) -> None:
    first, second = tasks(suite, 20), tasks(suite, 20)
    assert [prompt(task) for task in first] == [prompt(task) for task in second]
    for task in first:
        body = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in task.wanted)
        assert judge(task, body or "Which one do you mean?") == (True, "")
        assert not judge(task, '<tool_call>\n{"name": "no_such", "arguments": {}}\n</tool_call>')[0]
        if task.wanted:
            assert not judge(task, "All right.")[0]
            assert not judge(task, body + "\n" + body)[0]


def test_calls_are_read_from_an_answer() -> None:
    text = 'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", '
    assert calls_in(text) == ([{"name": "f", "arguments": {"a": 1}}], False)


@pytest.mark.slow
def test_prepared_model_calls_a_tool_and_chats() -> None:
    folder: pathlib.Path = embedded.prepare()
    weights = plain.load_safetensors(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tool = {
        "name": "calculator",
        "description": "Work out an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    }
    texts = [
        prompt_text([{"role": "user", "content": "What is 37*43?"}], [tool]),
        prompt_text([{"role": "user", "content": "What is the capital of France?"}], []),
    ]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    called, chatted = (tokenizer.decode(ids) for ids in plain.generate(weights, prompts, 40))
    assert calls_in(called) == ([{"name": "calculator", "arguments": {"expression": "37*43"}}], True)
    assert "Paris" in chatted
