"""What the user of ``mixquant chat`` can ask of the conversation itself, by a line that begins with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixquant_agents.errors import MixQuantError

if TYPE_CHECKING:
    from mixquant_agents.cli.chat.conversation import Conversation

__all__ = ["COMMANDS", "SlashCommand", "take"]


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command.

    Attributes:
        argument: what may stand behind it, for the help.
        does: one line of help.
        run: does it on the conversation with what stands behind the name; returns whether the conversation goes on.
    """

    argument: str
    does: str
    run: Callable[[Conversation, str], bool]


def take(conversation: Conversation, line: str) -> bool:
    """A line of the user's: a message, or a command if somebody sits there.

    Returns:
        Whether the conversation goes on.

    Raises:
        RequestError: the message is refused, and nobody sits there to hear it.
    """
    if conversation.interactive and line.startswith("/") and not line.startswith("//"):
        return _run(conversation, line)
    conversation.ask(line[1:] if conversation.interactive and line.startswith("//") else line)
    return True


def _run(conversation: Conversation, line: str) -> bool:
    """Do what a command asks for; an error of its own ends no conversation."""
    name, _, argument = line[1:].partition(" ")
    if name not in COMMANDS:
        known = ", ".join(f"/{name}" for name in COMMANDS)
        conversation.note(f"there is no /{name}; there are {known}. A message may begin with a slash as //{name}")
        return True
    try:
        return COMMANDS[name].run(conversation, argument.strip())
    except MixQuantError as error:
        conversation.note(str(error), style="red")
        return True


def _help(conversation: Conversation, argument: str) -> bool:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        conversation.note(f"{f'/{name} {command.argument}':{width}}  {command.does}")
    conversation.note("Alt-Enter begins a new line, arrow up brings back what was typed, Ctrl-C stops an answer.")
    return True


def _new(conversation: Conversation, argument: str) -> bool:
    conversation.restart()
    conversation.note("a new conversation")
    return True


def _system(conversation: Conversation, argument: str) -> bool:
    conversation.system = argument or None
    conversation.restart()
    conversation.note(f"system prompt: {argument}" if argument else "no system prompt")
    return True


def _policy(conversation: Conversation, argument: str) -> bool:
    if argument:
        conversation.switch(argument)
    conversation.note(conversation.heading())
    return True


def _quit(conversation: Conversation, argument: str) -> bool:
    return False


COMMANDS: dict[str, SlashCommand] = {
    "help": SlashCommand("", "this list", _help),
    "new": SlashCommand("", "forget the conversation and begin another", _new),
    "system": SlashCommand("[TEXT]", "begin another with this system prompt, or without one", _system),
    "policy": SlashCommand("[NAME]", "show how the model reads and writes, or switch to another policy", _policy),
    "quit": SlashCommand("", "end (also Ctrl-D)", _quit),
}
