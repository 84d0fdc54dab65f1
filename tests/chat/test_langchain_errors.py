"""Errors of a turn are of our classes and of LangChain's."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from contextlib import suppress
from typing import Any

import pytest
from chat_doubles import add, model_of
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core import exceptions
from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel, OpenAIEngine, ScriptedEngine, errors
from mixquant_agents.chat import langchain_errors
from mixquant_agents.chat.langchain_errors import langchain_error
from mixquant_agents.engine.scripted import ScriptedTurn

CASES: list[tuple[errors.MixQuantError, type[Exception], bool]] = [
    (errors.ContextOverflowError(9000, 8192, 100), exceptions.ContextOverflowError, False),
    (errors.TurnTimeoutError("slow"), exceptions.ModelTimeoutError, True),
    (errors.RequestError("bad"), exceptions.ModelInvalidRequestError, False),
    (errors.InvalidSamplingError("bad"), exceptions.ModelInvalidRequestError, False),
    (errors.InvalidMessagesError("bad"), exceptions.ModelInvalidRequestError, False),
    (errors.GrammarError("bad"), exceptions.ModelInvalidRequestError, False),
    (errors.ModelNotFoundError("none"), exceptions.ModelNotFoundError, False),
    (errors.EngineDeadError("dead"), exceptions.ModelAPIError, True),
    (errors.EngineError("failed"), exceptions.ModelAPIError, True),
    (errors.EngineClosedError("closed"), exceptions.ModelError, False),
    (errors.OutOfMemoryError("large"), exceptions.ModelError, False),
    (errors.DamagedWeightsError("broken"), exceptions.ModelError, False),
    (errors.FormatRefusedError("no"), exceptions.ModelError, False),
    (errors.MissingDependencyError("no"), exceptions.ModelError, False),
    (errors.RemoteEngineError("gone"), exceptions.ModelConnectionError, True),
    (errors.RemoteEngineError("key", status=401), exceptions.ModelAuthenticationError, False),
    (errors.RemoteEngineError("key", status=403), exceptions.ModelPermissionDeniedError, False),
    (errors.RemoteEngineError("slow", status=408), exceptions.ModelTimeoutError, True),
    (errors.RemoteEngineError("odd", status=418), exceptions.ModelInvalidRequestError, False),
    (errors.RemoteEngineError("busy", status=429), exceptions.ModelRateLimitError, True),
    (errors.RemoteEngineError("down", status=503), exceptions.ModelAPIError, True),
]


@pytest.mark.parametrize(("error", "theirs", "retryable"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_error_is_of_both_trees(error: errors.MixQuantError, theirs: type[Exception], retryable: bool) -> None:
    made = langchain_error(error)
    for same in (made, pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):  # noqa: S301 - our own
        assert isinstance(same, type(error))
        assert isinstance(same, theirs)
        assert same.is_retryable is retryable
        assert (str(same), same.args, vars(same)) == (str(error), error.args, vars(error))
        assert type(same).__name__ == type(error).__name__
    assert langchain_error(made) is made
    assert not isinstance(error, exceptions.LangChainException), "the error given is not changed"


def test_every_class_of_the_tree_has_a_counterpart() -> None:
    tree = [value for value in vars(errors).values() if inspect.isclass(value)]
    ours = [kind for kind in tree if issubclass(kind, errors.MixQuantError)]
    assert len(ours) == len(errors.__all__)
    for kind in ours:
        error = errors.ContextOverflowError(1, 1) if kind is errors.ContextOverflowError else kind("x")
        assert isinstance(langchain_error(error), exceptions.ModelError)


def test_classes_that_the_installed_langchain_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        LangChainException = exceptions.LangChainException
        ContextOverflowError = exceptions.ContextOverflowError

    monkeypatch.setattr(langchain_errors, "exceptions", Older)
    overflow, plain = errors.ContextOverflowError(1, 1), errors.EngineDeadError("x")
    assert isinstance(langchain_error(overflow), exceptions.ContextOverflowError)
    assert langchain_error(plain) is plain


LONG = "word " * 100
IMAGE = [HumanMessage([{"type": "image", "url": "x"}])]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda model: model.invoke(LONG), errors.ContextOverflowError),
        (lambda model: asyncio.run(model.ainvoke(LONG)), errors.ContextOverflowError),
        (lambda model: list(model.stream(LONG)), errors.ContextOverflowError),
        (lambda model: asyncio.run(anext(model.astream(LONG))), errors.ContextOverflowError),
        (lambda model: model.get_num_tokens_from_messages(IMAGE), errors.InvalidMessagesError),
    ],
)
def test_every_way_through_the_model_translates(call: Any, kind: type[Exception]) -> None:
    model = MixQuantChatModel(engine=ScriptedEngine(["x"], max_model_len=20))
    with pytest.raises(exceptions.LangChainException) as caught:
        call(model)
    assert isinstance(caught.value, kind)


async def test_failure_in_mid_stream_keeps_its_cause() -> None:
    broken = errors.EngineError("it broke")
    broken.__cause__ = cause = OSError("disk")
    model = model_of(ScriptedTurn(text=["a", "b"], fail_after=1, error=broken))
    with pytest.raises(exceptions.ModelAPIError) as caught:
        await model.ainvoke("hi")
    assert caught.value.__cause__ is cause
    assert isinstance(caught.value, errors.EngineError)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"no_such": 1}, {"tool_choice": "nobody"}])
def test_wrong_requests_are_invalid_requests(wrong: dict[str, Any]) -> None:
    for given, settings in (("hi", wrong), (3, {})):
        with pytest.raises(exceptions.ModelInvalidRequestError) as caught:
            model_of("x").invoke(given, **settings)
        assert isinstance(caught.value, errors.RequestError)


async def test_unreachable_server_is_a_connection_error() -> None:
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:1/v1", max_retries=0)
    with pytest.raises(exceptions.ModelConnectionError) as caught:
        await MixQuantChatModel(engine=engine).ainvoke("hi")
    assert isinstance(caught.value, errors.RemoteEngineError)


@pytest.mark.parametrize(("error", "asked"), [(errors.EngineDeadError("died"), 2), (errors.RequestError("no"), 1)])
async def test_langchain_retries_what_is_retryable(error: errors.MixQuantError, asked: int) -> None:
    engine = ScriptedEngine([error, "Done."])
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0)
    agent = create_agent(MixQuantChatModel(engine=engine), [add], middleware=[retry])
    with suppress(errors.RequestError):
        await agent.ainvoke({"messages": [HumanMessage("hi")]})
    assert len(engine.requests) == asked
