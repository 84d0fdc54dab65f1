"""What the tests of the chat model share: tools, a full answer, a model on the scripted engine."""

from typing import Annotated, Any, TypedDict

from langchain_core.tools import tool
from pydantic import BaseModel

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class City(BaseModel):
    """A city."""

    name: str
    people: int = 0


class CityDict(TypedDict):
    """A city."""

    name: Annotated[str, ..., "its name"]


def weather(city: str) -> str:
    """Tell the weather."""
    return city


CALLS = [{"name": "add", "args": {"a": 3, "b": 4}}, {"name": "weather", "args": {"city": "Zürich"}}]


FULL = ScriptedTurn(text="I look.", reasoning="What to do?", tool_calls=CALLS)


def model_of(*script: Any, **settings: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(script), cycle=True), **settings)


def request_of(model: Any) -> EngineRequest:
    bound = getattr(model, "bound", model)
    return bound.engine.requests[-1]
