"""The held-out suites: schemas, words and phrasings that training never uses.

``python -m mixquant_training.heldout FILE`` writes the tasks whose scores are published, as the suites of
``mixquant_workflows`` read them; they judge the answers, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import json
import pathlib
import random
import re
from collections.abc import Callable
from typing import Any

from mixquant_training.generate import chains, dialogues, scenes
from mixquant_training.generate.encode import prompt_text
from mixquant_training.generate.toolbox import Scene, Toolbox
from mixquant_workflows.suites.heldout import SUITES, HeldOutTask, verdict

__all__ = ["CHATS", "COUNT", "SEED", "calls_in", "content", "judge", "longest_answer", "prompt", "tasks"]

COUNT = 300
"""Tasks of each suite; of chat prompts there are fewer."""

CHATS = [
    "Hi! How are you today?", "Can you explain why leaves change color in autumn?", "What is a healthy breakfast?", "Tell me something interesting about dolphins.",
    "How do I tie a tie?", "What's the tallest mountain in the world?", "Write two sentences about the sea.", "My friend is moving away and I feel down.",
    "What is the plot of Hamlet?", "Which is heavier, a kilo of feathers or a kilo of stones?", "Give me a name for a coffee shop.", "How do bees make honey?",
    "Why do we dream?", "What is the past tense of 'go'?", "Explain supply and demand.", "Recommend a hobby for rainy days.", "Who painted the Mona Lisa?",
    "What are the primary colors?", "How many legs does a spider have?", "Write a limerick about a cat.", "What is the purpose of a constitution?", "How can I stay motivated?",
    "Explain the water cycle in simple words.", "What's the opposite of generous?", "Is a tomato a fruit?", "Give me an icebreaker question for a meeting.", "What does a librarian do all day?",
    "Describe a perfect weekend.", "How do airplanes stay in the air?", "What is the boiling point of water?", "Tell me about the Great Wall of China.", "Write a thank-you note to a nurse.",
    "What is a prime number?", "How do magnets work?", "What should I name my goldfish?", "Why is exercise good for you?", "What is the largest ocean?", "Explain what an API is.",
    "Do you like music?", "How do I apologize to a friend?", "What's the difference between weather and climate?", "Tell me a fun fact about space.", "How is cheese made?", "What are some polite ways to say no?",
    "Write a short scene between two pirates.", "What languages are spoken in Switzerland?", "Who wrote Pride and Prejudice?", "How can I remember names better?", "What is photosynthesis?", "Give me three words that rhyme with light.",
]  # fmt: skip


def _first_answer(scene: Scene) -> tuple[list[Any], Any]:
    index = next(i for i, message in enumerate(scene.messages) if message["role"] == "assistant")
    return scene.messages[:index], scene.messages[index]


def _second_answer(scene: Scene) -> tuple[list[Any], Any]:
    indices = [i for i, message in enumerate(scene.messages) if message["role"] == "assistant"]
    return scene.messages[: indices[1]], scene.messages[indices[1]]


def _retry(box: Toolbox) -> Scene:
    while True:
        scene = dialogues.error(box)
        if sum(message["role"] == "assistant" for message in scene.messages) == 3:
            return scene


SEED = 20_260
"""Of the tasks whose scores are published."""

_SCENES: dict[str, tuple[Callable[[Toolbox], Scene], Callable[[Scene], tuple[list[Any], Any]]]] = {
    "synthetic_single": (scenes.single, _first_answer),
    "synthetic_multiple": (scenes.multiple, _first_answer),
    "synthetic_parallel": (scenes.parallel, _first_answer),
    "synthetic_no_fit": (scenes.no_fit, _first_answer),
    "synthetic_ask": (scenes.question_back, _first_answer),
    "second_turn": (chains.lookup_then_act, _second_answer),
    "retry_after_error": (_retry, _second_answer),
}


def tasks(suite: str, count: int = COUNT, seed: int = SEED) -> list[HeldOutTask]:
    """``count`` tasks of a suite; the same seed gives the same tasks."""
    rng = random.Random(f"{suite}-{seed}")
    box = Toolbox(rng, held=True)
    if suite in {"chat", "chat_with_tools"}:
        drawn = []
        for question in CHATS[:count]:
            tools = (
                box.tools([box.archetype() for _ in range(rng.choice([1, 2, 3]))]) if suite == "chat_with_tools" else []
            )
            messages = [{"role": "user", "content": question}]
            drawn.append(HeldOutTask(suite, messages, [tool.schema for tool in tools], [], "chat"))
        return drawn
    make, cut = _SCENES[suite]
    drawn = []
    for _ in range(count):
        scene = make(box)
        before, answer = cut(scene)
        wanted = answer.get("tool_calls") or []
        drawn.append(HeldOutTask(suite, before, scene.schemas, wanted, "calls" if wanted else "words"))
    return drawn


def prompt(task: HeldOutTask) -> str:
    """As the model reads it."""
    return prompt_text(task.messages, task.tools)


def longest_answer(suite: str) -> int:
    """Tokens of an answer: five calls do not fit into 220."""
    return {"synthetic_parallel": 480, "chat": 120, "chat_with_tools": 120}.get(suite, 220)


def calls_in(text: str) -> tuple[list[dict[str, Any]], bool]:
    """The calls of an answer, and whether all of them are valid JSON with a name and arguments."""
    calls, valid = [], True
    for part in re.findall(r"<tool_call>(.*?)(?:</tool_call>|$)", text, re.DOTALL):
        try:
            call = json.loads(part)
            calls.append({"name": call["name"], "arguments": call["arguments"]})
        except (ValueError, KeyError, TypeError):
            valid = False
    return calls, valid


def judge(task: HeldOutTask, text: str) -> tuple[bool, str]:
    """Whether an answer, as the model wrote it, is right, and why not."""
    return verdict(task, text, *calls_in(text), called="<tool_call>" in text)


def content() -> bytes:
    """The data file before compression: one task a line, suite by suite."""
    lines = [json.dumps(dataclasses.asdict(task), ensure_ascii=False) for suite in SUITES for task in tasks(suite)]
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    target: pathlib.Path = parser.parse_args().file
    target.write_bytes(gzip.compress(content(), 9, mtime=0))
    print(f"{target}: digest {hashlib.sha256(content()).hexdigest()[:16]}")
