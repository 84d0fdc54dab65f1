"""The markers of a family's answers, and the families whose calls are JSON objects between two of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CALL_CLOSE", "CALL_OPEN", "HERMES", "JSON_CALLS", "THINK_CLOSE", "THINK_OPEN", "Markers"]

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands around the parts of an answer.

    Attributes:
        call_open, call_close: around a call, several, or a list of them. Each call is a JSON object with ``name`` (or
            ``tool_name``) and ``arguments`` (or ``parameters``).
        think_open, think_close: around reasoning, at the beginning of the answer.
        more_opens: other spellings of ``call_open``.
        in_list: ``call_open`` has opened a list of calls, which needs no closing marker.
        silent: markers around content, which are not part of it.
    """

    call_open: str = CALL_OPEN
    call_close: str = CALL_CLOSE
    think_open: str = THINK_OPEN
    think_close: str = THINK_CLOSE
    more_opens: tuple[str, ...] = ()
    in_list: bool = False
    silent: tuple[str, ...] = ()


HERMES = Markers()
JSON_CALLS: dict[str, Markers] = {
    "hermes": HERMES,
    "cohere_command3": Markers(
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "command_r": Markers("Action:\n```json", "```", more_opens=("Action: ```json", "Action:```json")),
    "granite_list": Markers("<|tool_call|>", "<|/tool_call|>"),
    "phi4_mini_json": Markers("functools[", "<|/tool_call|>", in_list=True),
    "nemotron_json": Markers("<TOOLCALL>", "</TOOLCALL>"),
    **dict.fromkeys(("hunyuan_a13b", "jamba"), Markers("<tool_calls>", "</tool_calls>")),
}
"""Name of the tool parser → markers. Where vLLM has a parser of this name, it reads the same form."""
