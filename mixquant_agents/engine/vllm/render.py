"""Messages → token ids by the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.protocol import JsonObject, Message
from mixquant_agents.errors import ConfigError, ContextOverflowError, InvalidMessagesError

__all__ = ["BUNDLED_TEMPLATE", "Renderer", "bundled_template", "plain_messages"]

BUNDLED_TEMPLATE = "hermes.jinja"


def bundled_template() -> str:
    """Text of the Hermes-style template for models whose own template knows no tools."""
    return (resources.files("mixquant_agents") / "templates" / BUNDLED_TEMPLATE).read_text(encoding="utf-8")


class Renderer:
    """The tokenizer and the template of one model. Used from one thread at a time.

    Attributes:
        tokenizer: vLLM's (a transformers tokenizer, for most models).
        template: Jinja source used for rendering; ``None`` where the tokenizer renders by itself (Mistral's).
        bundled: the template is this library's own, because the model's has no tools.
        max_model_len: context window in tokens, prompt and answer together.
    """

    def __init__(self, path: str, config: EngineConfig) -> None:
        from vllm.tokenizers import get_tokenizer

        self.tokenizer: Any = get_tokenizer(
            config.vllm_args.get("tokenizer", path),
            tokenizer_mode=config.vllm_args.get("tokenizer_mode", "auto"),
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
        )
        self.template, self.bundled = _choose_template(self.tokenizer, config)
        self.max_model_len = 0

    def render(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] = (), variables: JsonObject | None = None
    ) -> list[int]:
        """Token ids of the prompt, ending where the answer begins.

        Raises:
            InvalidMessagesError: the template refuses the messages, or they hold other content than text.
        """
        plain = plain_messages(messages, parse_arguments=not self.bundled)
        settings = dict(variables or {})
        if self.template is not None:
            settings["chat_template"] = self.template
        try:
            try:
                ids = self._apply(plain, tools, settings)
            except Exception:
                if not _empty_broken_calls(plain):
                    raise
                ids = self._apply(plain, tools, settings)
        except Exception as error:  # templates are programs of their own: what they raise is about the messages
            raise InvalidMessagesError(
                f"the chat template cannot render these messages ({type(error).__name__}: {error}); "
                f"roles: {', '.join(str(message.get('role')) for message in messages)}"
            ) from error
        return [int(token) for token in ids]

    def _apply(self, plain: list[dict[str, Any]], tools: Sequence[JsonObject], settings: dict[str, Any]) -> Any:
        return self.tokenizer.apply_chat_template(
            plain,
            tools=[dict(tool) for tool in tools] or None,
            add_generation_prompt=True,
            tokenize=True,
            **({"return_dict": False} if self.template is not None else {}),
            **settings,
        )

    def one_token(self, marker: str) -> bool:
        """Whether the tokenizer has one token for ``marker``."""
        return len(self.tokenizer.encode(marker, add_special_tokens=False)) == 1

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        """Refuse what cannot fit, before the engine sees it.

        Raises:
            ContextOverflowError: prompt and asked-for answer exceed the context window.
        """
        if prompt_tokens + (max_tokens or 1) > self.max_model_len:
            raise ContextOverflowError(prompt_tokens, self.max_model_len, max_tokens)


def _choose_template(tokenizer: Any, config: EngineConfig) -> tuple[str | None, bool]:
    """The template's source, and whether it is the bundled one."""
    if config.chat_template is not None:
        path = Path(config.chat_template).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"chat_template {config.chat_template!r} is not a file; give the path of a Jinja template"
            )
        return path.read_text(encoding="utf-8"), False
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several named templates
        own = own.get("tool_use") or own.get("default")
    if own is None and not hasattr(tokenizer, "get_chat_template"):
        return None, False  # renders by itself
    if own is not None and "tool" in own:
        return own, False
    return bundled_template(), True


def plain_messages(messages: Sequence[Message], *, parse_arguments: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them: text content as one string, arguments of calls as objects where asked.

    Raises:
        InvalidMessagesError: no messages, or content that is not text.
    """
    if not messages:
        raise InvalidMessagesError("there are no messages; give at least one")
    plain = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str):
            raise InvalidMessagesError(f"message {place} has no role; give system, user, assistant or tool")
        entry: dict[str, Any] = {**message, "content": _text(message.get("content"), place)}
        calls = message.get("tool_calls")
        if calls:
            entry["tool_calls"] = [_call(call, place, parse_arguments) for call in calls]
        else:
            entry.pop("tool_calls", None)
        plain.append(entry)
    return plain


def _empty_broken_calls(plain: Sequence[dict[str, Any]]) -> bool:
    """Take away, in place, arguments that are no object; whether there were any. Some templates can only write objects,
    and a conversation must not end with one call that was cut off."""
    functions = [call["function"] for message in plain for call in message.get("tool_calls", ())]
    broken = [function for function in functions if not isinstance(function["arguments"], Mapping)]
    for function in broken:
        function["arguments"] = {}
    return bool(broken)


def _text(content: Any, place: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = []
        for part in content:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
                parts.append(part["text"])
            else:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise InvalidMessagesError(f"message {place} holds a part of type {kind!r}; only text is supported")
        return "".join(parts)
    raise InvalidMessagesError(f"message {place} has content of type {type(content).__name__}; give text")


def _call(call: Any, place: int, parse_arguments: bool) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidMessagesError(f"message {place} holds a tool call without function name: {call!r}")
    arguments = function.get("arguments", "{}")
    if parse_arguments and isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # an invalid call of the model itself: the template gets its text
            arguments = json.loads(arguments) if arguments.strip() else {}
    return {**call, "function": {**function, "arguments": arguments}}
