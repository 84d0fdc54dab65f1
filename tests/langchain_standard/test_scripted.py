"""LangChain's own standard suites, on the scripted engine.

:func:`responder` is the model's side alone: it reads the request as a model reads its prompt, and answers with text or
calls. Everything else (binding, rendering, parsing, streaming, usage, structure) is the library's.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest, JsonObject, NamedTool
from mixquant_agents.engine.scripted import ScriptedTurn

Detail = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


def responder(request: EngineRequest) -> ScriptedTurn:
    """What a well-behaved model would answer."""
    last = request.messages[-1]
    said = str(last["content"])
    if request.schema is not None:
        return ScriptedTurn(text=json.dumps(fill(request.schema, said), ensure_ascii=False))
    if request.tools and request.tool_choice != "none" and (forced(request) or last["role"] == "user"):
        tool = wanted(request)
        return ScriptedTurn(tool_calls=[{"name": tool["name"], "args": fill(tool.get("parameters", {}), said)}])
    if "think" in said.lower():
        return ScriptedTurn(reasoning="They ask me to think. So I do.", text="I have thought about it.")
    return ScriptedTurn(text="Hello there. How can I help you today?")


def forced(request: EngineRequest) -> bool:
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def wanted(request: EngineRequest) -> JsonObject:
    functions = [tool["function"] for tool in request.tools]
    if isinstance(request.tool_choice, NamedTool):
        return next(function for function in functions if function["name"] == request.tool_choice.name)
    return functions[0]


def fill(schema: JsonObject, said: str, *, root: JsonObject | None = None) -> Any:
    """A value of ``schema``, with what the user said where it fits: a quoted word, a number."""
    root = schema if root is None else root
    if "$ref" in schema:
        return fill(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], said, root=root)
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], said, root=root)
    if "enum" in schema:
        return schema["enum"][0]
    quoted, numbers = re.findall("'([^']+)'", said), re.findall(r"\d+", said)
    match schema.get("type"):
        case "object" | None if "properties" in schema:
            return {name: fill(inner, said, root=root) for name, inner in schema["properties"].items()}
        case "object" | None:
            return dict.fromkeys(quoted, "Because the cat said so.")
        case "array":
            return [fill(schema["items"], said, root=root)]
        case "integer" | "number":
            return int(numbers[0]) if numbers else 1
        case "boolean":
            return True
    return quoted[0] if quoted else "the cat sat on the mat"


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[MixQuantChatModel]:
        return MixQuantChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": ScriptedEngine(responder)}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[MixQuantChatModel]:
        return MixQuantChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": ScriptedEngine(responder)}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Detail]]:
        details: list[Detail] = ["reasoning_output", "cache_read_input"]
        return {"invoke": details, "stream": details}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        answer = self._ask("Please think.", stream=stream)
        assert answer.usage_metadata["output_token_details"]["reasoning"] > 0
        return answer

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = MixQuantChatModel(**self.chat_model_params)
        model.invoke("A long beginning that is the same in both requests. " * 8)
        answer = self._ask("A long beginning that is the same in both requests. " * 8, stream=stream, model=model)
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        return answer

    def _ask(self, text: str, *, stream: bool, model: MixQuantChatModel | None = None) -> AIMessage:
        model = model or MixQuantChatModel(**self.chat_model_params)
        if not stream:
            return model.invoke(text)
        first, *rest = model.stream(text)
        return sum(rest, start=first)
