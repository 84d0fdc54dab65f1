"""Messages → token ids by the model's own chat template.

The template is chosen per request (named templates: with tools, or without). What it can take, it gets unchanged, so
the prompt is what the maker's own code gives. Where it raises, or would drop a part of the conversation, the nearest
adaptation is taken that keeps everything (``chat_format.shape``); where there is none, the request is refused.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import JsonObject, Message
from mixquant_agents.engine.vllm.chat_format.messages import json_object, mended, needs_tools, plain_messages
from mixquant_agents.engine.vllm.chat_format.probe import CANONICAL, PROBE_TOOL, lost, outline
from mixquant_agents.engine.vllm.chat_format.prompted import call_syntax
from mixquant_agents.engine.vllm.chat_format.shape import Shape, ToolForm, alternatives, shaped
from mixquant_agents.engine.vllm.chat_format.variables import check_variables, template_variables
from mixquant_agents.engine.vllm.history.tail import TemplateChangeError, tail_of
from mixquant_agents.errors import ConfigError, ContextOverflowError, InvalidMessagesError

__all__ = ["BUNDLED_TEMPLATE", "Renderer", "bundled_template"]

BUNDLED_TEMPLATE = "hermes.jinja"
_MEMORY = 512
"""Outlines of conversations whose shape is remembered."""
_WRITERS = {
    "DeepseekV32ForCausalLM": "deepseek_v32",
    "DeepseekV4ForCausalLM": "deepseek_v4",
    "DeepseekV4ForConditionalGeneration": "deepseek_v4",
    "DeepseekV41ForCausalLM": "deepseek_v41",
}
"""Architectures whose checkpoints have no chat template → vLLM's tokenizer that writes their prompts; vLLM's own choice
for ``tokenizer_mode="auto"`` is made with its ``ModelConfig``."""


def bundled_template() -> str:
    """Text of the embedded model's chat template."""
    return (resources.files("mixquant_agents") / "templates" / BUNDLED_TEMPLATE).read_text(encoding="utf-8")


class Renderer:
    """The tokenizer and the templates of one model. Used from one thread at a time.

    Attributes:
        tokenizer: vLLM's (a transformers tokenizer, for most models).
        templates: name → Jinja source. Empty where the tokenizer renders by itself (Mistral's, vLLM's for DeepSeek), or
            has none.
        bundled: the template is the embedded model's.
        max_model_len: context window in tokens, prompt and answer together.
    """

    def __init__(self, path: str, config: EngineConfig) -> None:
        mode = config.vllm_args.get("tokenizer_mode", "auto")
        self._hold(_tokenizer(path, config, mode), config)
        if mode == "auto" and self._has_no_template and (own := _writer_of(path, config)) is not None:
            self._hold(_tokenizer(path, config, own), config)

    @classmethod
    def of(cls, tokenizer: Any, config: EngineConfig) -> Renderer:
        """A renderer with a tokenizer that is loaded already."""
        renderer = cls.__new__(cls)
        renderer._hold(tokenizer, config)
        return renderer

    def _hold(self, tokenizer: Any, config: EngineConfig) -> None:
        self.tokenizer = tokenizer
        self._writes_text = _is_vllms(tokenizer)
        self.templates = {} if self._writes_text else _templates(tokenizer, config)
        self.bundled = self.template == bundled_template()
        self.max_model_len = 0
        self._shapes: dict[str, tuple[Shape, ...]] = {}

    @property
    def template(self) -> str | None:
        """The template for requests with tools; ``None`` where the tokenizer renders by itself, or has none."""
        return self._source(with_tools=True)

    @property
    def _has_no_template(self) -> bool:
        """Whether the tokenizer would need a template (a transformers one, unlike Mistral's) and has none."""
        return self.template is None and not self._writes_text and hasattr(self.tokenizer, "get_chat_template")

    @property
    def tool_form(self) -> ToolForm:
        """Who writes this model's tools (see ``chat_format.shape``); the parser of its answers follows from it."""
        return self._base.tools

    def render(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] = (), variables: JsonObject | None = None
    ) -> list[int]:
        """Token ids of the prompt, ending where the answer begins.

        Raises:
            InvalidMessagesError: the template refuses the messages or would drop a part of them, or they hold other
                content than text.
            RequestError: ``variables`` names what the engine sets, or what the template does not know.
            ConfigError: the model has no chat template.
        """
        if self._has_no_template:
            raise ConfigError("this model's tokenizer has no chat template; give one: chat_template='FILE.jinja'")
        plain, given_tools, settings = self._checked(messages, tools, variables or {})
        refusal: Exception | None = None
        for shape in self._fitting(plain, bool(given_tools), settings):
            for conversation in filter(None, (plain, _without_broken_calls(plain))):
                try:
                    ids = self._apply(conversation, given_tools, settings, shape, tokenize=True)
                    return [int(token) for token in ids]
                except Exception as error:  # templates are programs of their own: what they raise is about the messages
                    refusal = refusal or error
        raise _refused(plain, f"{type(refusal).__name__}: {refusal}") from refusal

    def tail(
        self,
        messages: Sequence[Message],
        tools: Sequence[JsonObject],
        variables: JsonObject,
        at: int,
        end: int | None = None,
    ) -> list[int]:
        """Token ids of what the template writes behind the answer ``messages[at]``: from its end marker to where the
        next answer begins.

        Args:
            end: the token with which the model ended this answer; ``None`` where it was cut off.

        Raises:
            TemplateChangeError: the template writes what stands before differently by now, or has no marker there.
            InvalidMessagesError, RequestError: as :meth:`render` does.
        """
        if not self.templates and not self._writes_text:
            raise TemplateChangeError(
                "this tokenizer renders by itself, so where an answer ends in its prompt is not known"
            )
        plain, given_tools, settings = self._checked(messages, tools, variables)
        shape = self._fitting(plain, bool(given_tools), settings)[0]
        probe_tools = [PROBE_TOOL] if given_tools else []

        def write(conversation: Sequence[dict[str, Any]], generate: bool) -> str:
            return self._text(list(conversation), given_tools, settings, shape, generate=generate)

        def write_outline(conversation: Sequence[dict[str, Any]], generate: bool) -> str:
            return self._text(list(conversation), probe_tools, settings, shape, generate=generate)

        try:
            marker = None if end is None else str(self.tokenizer.decode([end]))
            text = tail_of(write, write_outline, plain, at, marker)
        except TemplateChangeError:
            raise
        except Exception as error:  # templates are programs of their own: some refuse a beginning of the conversation
            raise TemplateChangeError(f"the chat template refuses a part of the conversation ({error})") from error
        ids = [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]
        if not ids or ids[0] not in self._markers:
            raise TemplateChangeError("the chat template has no token that marks where an answer ends")
        return ids

    def _checked(
        self, messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
    ) -> tuple[list[dict[str, Any]], list[JsonObject], dict[str, Any]]:
        """Messages, tools and variables as templates take them.

        Raises:
            InvalidMessagesError, RequestError: as :meth:`render` does.
        """
        settings = dict(variables)
        check_variables(settings, self._known_variables())
        return plain_messages(messages), [mended(tool) for tool in tools], settings

    @functools.cached_property
    def _markers(self) -> frozenset[int]:
        """Tokens that no other text is joined with."""
        return frozenset(self.tokenizer.get_added_vocab().values())

    def shape_of(
        self, messages: Sequence[Message], tools: Sequence[JsonObject] = (), variables: JsonObject | None = None
    ) -> Shape:
        """The shape in which these messages go to the template.

        Raises:
            InvalidMessagesError: there is none in which it keeps them.
        """
        return self._fitting(plain_messages(messages), bool(tools), dict(variables or {}))[0]

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

    def answer_text(self, message: Message, tools: Sequence[JsonObject] = ()) -> str:
        """How the template writes this answer: its text, without the role before it and the end behind it. It shows
        the form in which the model calls."""
        question: dict[str, Any] = {"role": "user", "content": "question"}
        answer = plain_messages([message])
        try:
            shape = self._fitting([question, *answer], bool(tools), {})[0]
        except InvalidMessagesError:  # a conversation that nothing follows, which some refuse
            shape = self._base
        return self._answer_text(answer, [mended(tool) for tool in tools], shape)

    def _answer_text(self, answer: list[dict[str, Any]], tools: list[JsonObject], shape: Shape) -> str:
        question: dict[str, Any] = {"role": "user", "content": "question"}

        def written(*messages: dict[str, Any], generate: bool) -> str:
            return self._text([question, *messages], tools, {}, shape, generate=generate)

        whole = written(*answer, generate=False)
        head, _, end = written({"role": "assistant", "content": "zqendzq"}, generate=False).rpartition("zqendzq")
        start = max(_common(whole, head), _common(whole, written(generate=True)))
        opening = max(whole.rfind("<", 0, start), whole.rfind("[", 0, start))
        if opening >= 0 and re.fullmatch(r"[<\[][^\s>\]]*", whole[opening:start]):
            start = opening  # never inside a marker
        return whole[start:].removesuffix(end)

    def _source(self, *, with_tools: bool) -> str | None:
        names = ("tool_use", "default") if with_tools else ("default", "tool_use")
        return next((self.templates[name] for name in names if name in self.templates), None)

    def _known_variables(self) -> frozenset[str] | None:
        if not self.templates:
            version = getattr(self.tokenizer, "version", None)  # of mistral_common; other tokenizers do not say
            if not isinstance(version, int):
                return None
            return frozenset({"reasoning_effort"}) if version >= 15 else frozenset()
        known: frozenset[str] = frozenset()
        for source in self.templates.values():
            names = template_variables(source)
            if names is None:
                return None
            known |= names
        return known

    @functools.cached_property
    def _takes_no_tools(self) -> bool:
        """Whether the template takes ``None`` for "no tools"; some count them without asking."""
        if not self.templates:
            return True
        question = [{"role": "user", "content": "question"}]
        try:
            self.tokenizer.apply_chat_template(
                question, tools=None, tokenize=False, chat_template=self._source(with_tools=False)
            )
        except TypeError:
            return False
        except Exception:  # it refuses the question for other reasons
            return True
        return True

    @functools.cached_property
    def _base(self) -> Shape:
        """The shape of conversations with tools, decided by one that has all there is."""
        forms: list[ToolForm] = ["native", "listed", "prompted"]
        if call_syntax(self.template or "") is not None:
            forms.insert(1, "spoken")
        for form in forms:
            start = Shape(tools=form, arguments="text" if self.bundled else "object")
            for shape in alternatives(start, CANONICAL):
                if self._loss(CANONICAL, True, {}, shape) is None:
                    return replace(shape, named=shape.named or self._wants_names(shape), systems="given")
        return Shape(tools="prompted")

    def _wants_names(self, shape: Shape) -> bool:
        """Whether the template leaves a hole where a result has no name (and not out a whole phrase, as some do)."""
        nameless = outline(CANONICAL).messages
        named = [{**message, "name": "zqresultzq"} if message["role"] == "tool" else message for message in nameless]
        try:
            without, with_name = (self._text(messages, [PROBE_TOOL], {}, shape) for messages in (nameless, named))
        except Exception:  # a name where the template expects none
            return False
        return "zqresultzq" in with_name and with_name.replace("zqresultzq", "") == without

    def _fitting(self, plain: list[dict[str, Any]], with_tools: bool, settings: dict[str, Any]) -> tuple[Shape, ...]:
        """The nearest shape in which the template keeps these messages, and the next, should it fail on the real words.

        Raises:
            InvalidMessagesError: there is none.
        """
        key = json.dumps([outline(plain).messages, with_tools, settings], default=str)
        if key not in self._shapes:
            base = self._base if with_tools or needs_tools(plain) else Shape()
            fitting: list[Shape] = []
            reason: str | None = None
            for shape in alternatives(base, plain):
                loss = self._loss(plain, with_tools, settings, shape)
                reason = reason or loss
                if loss is None:
                    fitting.append(shape)
                    if len(fitting) == 2:
                        break
            if not fitting:
                raise _refused(plain, str(reason))
            if len(self._shapes) >= _MEMORY:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[key] = tuple(fitting)
        return self._shapes[key]

    def _loss(
        self, plain: list[dict[str, Any]], with_tools: bool, settings: dict[str, Any], shape: Shape
    ) -> str | None:
        """Why this shape does not do for these messages; ``None`` where it does."""
        probe = outline(plain)
        tools = [PROBE_TOOL] if with_tools else []
        try:
            text = self._text(probe.messages, tools, settings, shape)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        missing = lost(text, probe.words, tools=with_tools)
        return None if missing is None else f"it would drop or garble {missing}"

    def _text(
        self,
        messages: list[dict[str, Any]],
        tools: list[JsonObject],
        settings: dict[str, Any],
        shape: Shape,
        *,
        generate: bool = True,
    ) -> str:
        """The prompt as text; where the tokenizer renders to tokens alone, what these say."""
        tokens = not self.templates and not self._writes_text
        rendered = self._apply(messages, tools, settings, shape, tokenize=tokens, generate=generate)
        return str(self.tokenizer.decode(list(rendered)) if tokens else rendered)

    def _apply(
        self,
        messages: list[dict[str, Any]],
        tools: list[JsonObject],
        settings: dict[str, Any],
        shape: Shape,
        *,
        tokenize: bool,
        generate: bool = True,
    ) -> Any:
        """The tokenizer's own rendering: text, or token ids."""
        source = self._source(with_tools=bool(tools) or needs_tools(messages))
        ready, native_tools = shaped(
            messages,
            tools,
            shape,
            thought_key=_thought_key(source),
            example=self._example(shape) if shape.tools == "listed" and tools else None,
            syntax=call_syntax(source or "") or "hermes",
        )
        if source is not None:
            settings = {**settings, "chat_template": source, "return_dict": False}
        rendered = functools.partial(
            self.tokenizer.apply_chat_template, ready, add_generation_prompt=generate, tokenize=tokenize, **settings
        )
        if native_tools or self._takes_no_tools:
            return rendered(tools=native_tools or None)
        return rendered(tools=[])

    def _example(self, shape: Shape) -> str:
        """A call in the template's own form."""
        function = {"name": "FUNCTION", "arguments": '{"PARAMETER": "VALUE"}'}
        call = {"id": "call00001", "type": "function", "function": function}
        answer = [{"role": "assistant", "content": "", "tool_calls": [call]}]
        return self._answer_text(answer, [], replace(shape, tools="native")).strip()


def read_template(path: Path) -> str:
    """The source of a template file.

    Raises:
        ConfigError: there is no such file, or it cannot be read as UTF-8.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"chat_template {str(path)!r} is not a file; give the path of a Jinja template")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template {str(path)!r} cannot be read: {error}; give a Jinja template in UTF-8"
        ) from error


def _tokenizer(path: str, config: EngineConfig, mode: Any) -> Any:
    from vllm.tokenizers import get_tokenizer

    return get_tokenizer(
        config.vllm_args.get("tokenizer", path),
        tokenizer_mode=mode,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
    )


def _writer_of(path: str, config: EngineConfig) -> str | None:
    """vLLM's tokenizer that writes this checkpoint's prompts; ``None`` where there is none."""
    from vllm.transformers_utils.config import get_config

    try:
        architectures = get_config(path, config.trust_remote_code, config.revision).architectures
    except Exception:  # the engine tells what is wrong with the checkpoint
        return None
    return next((_WRITERS[name] for name in architectures or () if name in _WRITERS), None)


def _is_vllms(tokenizer: Any) -> bool:
    """Whether vLLM's own code around a transformers tokenizer writes the prompts, whatever template that may have."""
    if not hasattr(tokenizer, "get_chat_template"):  # Mistral's
        return False
    return str(type(tokenizer).apply_chat_template.__module__).startswith("vllm.")


def _templates(tokenizer: Any, config: EngineConfig) -> dict[str, str]:
    """Name → source: the file that the settings name, or the tokenizer's own."""
    if config.chat_template is not None:
        return {"default": read_template(Path(config.chat_template))}
    own = getattr(tokenizer, "chat_template", None)  # mistral_common's tokenizer has none
    if isinstance(own, dict):
        return {str(name): str(source) for name, source in own.items()}
    return {} if own is None else {"default": str(own)}


def _common(first: str, second: str) -> int:
    """Length of the beginning that both texts have."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _thought_key(source: str | None) -> str:
    """The key under which a template looks for the reasoning of earlier answers."""
    if source is not None and "reasoning_content" not in source:
        for key in ("thinking", "reasoning"):
            if re.search(rf"""\.{key}\b|\[["']{key}["']\]|get\(["']{key}["']""", source):
                return key
    return "reasoning_content"


def _without_broken_calls(plain: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The messages with ``{}`` for arguments that are no object, if any are: some templates can only write objects,
    and a conversation must not end with one call that was cut off."""
    if all(json_object(call["function"]["arguments"]) is not None for m in plain for call in m.get("tool_calls", ())):
        return None
    changed = []
    for message in plain:
        if message.get("tool_calls"):
            calls = [
                call
                if json_object(call["function"]["arguments"]) is not None
                else {**call, "function": {**call["function"], "arguments": "{}"}}
                for call in message["tool_calls"]
            ]
            message = {**message, "tool_calls": calls}
        changed.append(message)
    return changed


def _refused(messages: Sequence[Message], reason: str) -> InvalidMessagesError:
    roles = ", ".join(str(message.get("role")) for message in messages)
    return InvalidMessagesError(f"the chat template cannot render these messages ({reason}); roles: {roles}")
