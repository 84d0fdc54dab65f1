"""Held-out suites: schemas, words and phrasings that training never uses, and how an answer is judged.

A call is right when its name and all its arguments equal the expected ones exactly; calls of one answer are compared as a
multiset. Nothing is forgiven: no case folding, no rounding, no extra optional argument.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.generate import chains, dialogues, scenes
from training.generate.encode import prompt_text
from training.generate.scenes import Scene, Toolbox

__all__ = ["CHATS", "SEED", "SUITES", "Task", "calls_in", "judge", "refuses", "tasks", "verdict"]


@dataclass
class Task:
    """A conversation to go on with, its tools, and what a right answer is."""

    suite: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    wanted: list[dict[str, Any]]
    kind: str  # "calls", "words" (no call) or "chat" (no call, no refusal)
    max_tokens: int = 220

    @property
    def prompt(self) -> str:
        """As the model reads it."""
        return prompt_text(self.messages, self.tools)


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

SUITES: dict[str, tuple[Callable[[Toolbox], Scene], Callable[[Scene], tuple[list[Any], Any]]]] = {
    "synthetic_single": (scenes.single, _first_answer),
    "synthetic_multiple": (scenes.multiple, _first_answer),
    "synthetic_parallel": (scenes.parallel, _first_answer),
    "synthetic_no_fit": (scenes.no_fit, _first_answer),
    "synthetic_ask": (scenes.question_back, _first_answer),
    "second_turn": (chains.lookup_then_act, _second_answer),
    "retry_after_error": (_retry, _second_answer),
}


def tasks(suite: str, count: int, seed: int = SEED) -> list[Task]:
    """``count`` tasks of a suite; the same seed gives the same tasks."""
    rng = random.Random(f"{suite}-{seed}")
    box = Toolbox(rng, held=True)
    if suite in {"chat", "chat_with_tools"}:
        found = []
        for question in CHATS[:count]:
            tools = (
                box.tools([box.archetype() for _ in range(rng.choice([1, 2, 3]))]) if suite == "chat_with_tools" else []
            )
            messages = [{"role": "user", "content": question}]
            found.append(Task(suite, messages, [tool.schema for tool in tools], [], "chat", 120))
        return found
    make, cut = SUITES[suite]
    found = []
    for _ in range(count):
        scene = make(box)
        before, answer = cut(scene)
        wanted = answer.get("tool_calls") or []
        limit = 480 if suite == "synthetic_parallel" else 220  # five calls do not fit into 220 tokens
        found.append(Task(suite, before, scene.schemas, wanted, "calls" if wanted else "words", limit))
    return found


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


_REFUSAL = re.compile(
    r"\b(can't|cannot|can not|unable to|not able to|no (available )?(function|tool)|none of (the|my)|don't have (a|the|any) (right )?(function|tool)|"
    r"tools? (is|are) limited|outside of what|afraid)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether an answer's first sentence refuses or speaks of missing tools."""
    return bool(_REFUSAL.search(re.split(r"[.!?\n]", text.strip(), maxsplit=1)[0] + " ")) or not text.strip()


def judge(task: Task, text: str) -> tuple[bool, str]:
    """Right or not, and why not."""
    return verdict(task, text, *calls_in(text), called="<tool_call>" in text)


def verdict(task: Task, text: str, calls: list[dict[str, Any]], valid: bool, *, called: bool) -> tuple[bool, str]:
    """:func:`judge` for an answer taken apart already; ``called``: it holds a call, valid or not."""
    if task.kind != "calls":
        if called:
            return False, "called"
        if task.kind == "chat" and refuses(text):
            return False, "refused"
        return True, ""
    if not valid:
        return False, "invalid JSON"
    if not calls:
        return False, "no call"
    shown = sorted(json.dumps(call, sort_keys=True) for call in calls)
    wanted = sorted(json.dumps(call, sort_keys=True) for call in task.wanted)
    if shown == wanted:
        return True, ""
    if len(shown) != len(wanted):
        return False, "wrong count"
    if sorted(call["name"] for call in calls) != sorted(call["name"] for call in task.wanted):
        return False, "wrong name"
    keys = [set(call["arguments"]) if isinstance(call["arguments"], dict) else set() for call in calls]
    return False, "wrong value" if all(
        key in keys for key in (set(w["arguments"]) for w in task.wanted)
    ) else "wrong parameters"
