"""``PairEngine`` over two HTTP servers: what each is sent, and the record of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from openai_double import Server, piece, usage

from mixquant_agents import MixQuantChatModel, PairEngine
from mixquant_agents.errors import KvLostError, PairError

PLACE = {"do_remote_prefill": True, "remote_block_ids": [[3, 4]], "remote_engine_id": "p", "remote_num_tokens": 20}
ROWS = {"mixquant_quantized_rows": 19, "mixquant_exact_rows": 1, "mixquant_recomputed_rows": 0}
TIMES = {"queue_time_ms": 0.0, "time_to_first_token_ms": 0.0, "generation_time_ms": 0.0}


async def listening(stack: AsyncExitStack) -> Server:
    fake = Server()
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fake.complete)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    stack.push_async_callback(runner.cleanup)
    return fake


@pytest.fixture
async def sides() -> AsyncIterator[tuple[Server, Server]]:
    async with AsyncExitStack() as stack:
        reader, writer = await listening(stack), await listening(stack)
        yield reader, writer


@pytest.fixture
async def pair(sides: tuple[Server, Server]) -> AsyncIterator[PairEngine]:
    reader, writer = sides
    made = PairEngine.of_servers("m", prefill_url=reader.url, decode_url=writer.url, policy="mixquant-int8")
    writer.chunks = [
        piece(content="Hel"),
        piece(content="lo"),
        piece(finish="stop"),
        usage(20, 2, prompt_tokens_details={"cached_tokens": 19}) | {"metrics": TIMES},
    ]
    yield made
    await made.aclose()


def read_prompt() -> web.Response:
    """What vLLM answers to a request for one token whose KV will be fetched."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
    counts = {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}
    answer = {"id": "c", "choices": [choice], "usage": counts, "kv_transfer_params": PLACE, "metrics": TIMES | ROWS}
    return web.json_response(answer)


async def test_prompt_goes_to_both_and_kv_from_one_to_the_other(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.whole = read_prompt()
    answer = await MixQuantChatModel(engine=pair, max_tokens=5).ainvoke("hi")
    assert answer.content == "Hello"
    (asked,), (handed_on,) = reader.bodies, writer.bodies
    assert (asked["stream"], asked["max_tokens"]) == (False, 1), "vLLM tells where KV is in whole answers only"
    assert asked["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
    assert "stream_options" not in asked
    assert (handed_on["stream"], handed_on["max_tokens"]) == (True, 5)
    assert handed_on["kv_transfer_params"] == PLACE
    assert asked["messages"] == handed_on["messages"]
    turn = answer.response_metadata["turn"]
    assert (turn["quantized_tokens"], turn["exact_tokens"], turn["cached_tokens"]) == (19, 1, 0)
    assert (turn["recomputed_rows"], turn["decode_tokens"]) == (1, 2)
    assert turn["transfer_seconds"] > 0
    assert turn["timing_source"] == "engine"


async def test_decode_request_is_sent_once(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    """The first fetch frees the blocks: a second one would read somebody else's."""
    reader, writer = sides
    reader.whole = read_prompt()
    writer.status = (503, {"error": {"message": "busy", "code": 503}})
    with pytest.raises(PairError, match="decode engine") as caught:
        await MixQuantChatModel(engine=pair).ainvoke("hi")
    assert len(writer.bodies) == 1
    assert caught.value.retryable


async def test_kv_that_could_not_be_loaded_is_told(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.whole = read_prompt()
    writer.chunks = [{"error": {"message": "KV load failure: blocks are gone", "code": 500}}]
    with pytest.raises(KvLostError):
        await MixQuantChatModel(engine=pair).ainvoke("hi")


async def test_cancel_between_the_sides_disconnects(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.whole = read_prompt()
    writer.chunks, writer.hang = [], True
    task = asyncio.create_task(MixQuantChatModel(engine=pair).ainvoke("hi"))
    for _ in range(1000):
        if writer.bodies:
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(writer.disconnected.wait(), 5)


async def test_cancel_while_the_prompt_is_read_disconnects(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.chunks, reader.hang = [], True
    task = asyncio.create_task(MixQuantChatModel(engine=pair).ainvoke("hi"))
    await _asked(reader)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(reader.disconnected.wait(), 5)
    assert writer.bodies == []


async def test_cancel_in_the_answer_disconnects(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.whole, writer.chunks, writer.hang = read_prompt(), [piece(content="Hel")], True
    stream = MixQuantChatModel(engine=pair).astream("hi")
    assert (await anext(stream)).content == "Hel"
    await stream.aclose()
    await asyncio.wait_for(writer.disconnected.wait(), 5)


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_side_that_does_not_answer_in_time_is_named(sides: tuple[Server, Server], side: str) -> None:
    reader, writer = sides
    reader.whole = read_prompt()
    slow = reader if side == "prefill" else writer
    slow.whole, slow.chunks, slow.stall = None, [], 30
    pair = PairEngine.of_servers(
        "m", prefill_url=reader.url, decode_url=writer.url, first_token_timeout=0.5, max_retries=0
    )
    with pytest.raises(PairError, match=f"the {side} engine of the pair failed: .*no token came within 0.5") as caught:
        await MixQuantChatModel(engine=pair).ainvoke("hi")
    assert caught.value.side == side
    await asyncio.wait_for(slow.disconnected.wait(), 5)
    await pair.aclose()


async def test_both_sides_busy_is_told_of_the_first(sides: tuple[Server, Server]) -> None:
    reader, writer = sides
    reader.status = writer.status = (429, {"error": {"message": "too many requests", "code": 429}})
    pair = PairEngine.of_servers("m", prefill_url=reader.url, decode_url=writer.url, max_retries=0)
    with pytest.raises(PairError, match=r"the prefill engine of the pair failed: .*429") as caught:
        await MixQuantChatModel(engine=pair).ainvoke("hi")
    assert (caught.value.side, caught.value.retryable) == ("prefill", True)
    assert writer.bodies == []
    await pair.aclose()


async def test_prefill_server_with_another_model_is_no_passing_trouble(
    pair: PairEngine, sides: tuple[Server, Server]
) -> None:
    reader, writer = sides
    reader.status = (404, {"error": {"message": "The model `m` does not exist.", "code": 404}})
    with pytest.raises(PairError, match="does not serve model 'm'") as caught:
        await MixQuantChatModel(engine=pair).ainvoke("hi")
    assert not caught.value.retryable
    assert writer.bodies == []


async def test_prefill_server_without_counts_costs_no_turn(pair: PairEngine, sides: tuple[Server, Server]) -> None:
    """An older server, or a gateway that leaves them out: what it does not tell is unknown."""
    reader, _ = sides
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
    reader.whole = web.json_response({"id": "c", "choices": [choice], "kv_transfer_params": PLACE})
    answer = await MixQuantChatModel(engine=pair).ainvoke("hi")
    assert answer.content == "Hello"
    turn = answer.response_metadata["turn"]
    assert (turn["prompt_tokens"], turn["decode_tokens"]) == (20, 2)
    assert (turn["quantized_tokens"], turn["cached_tokens"]) == (None, None)


async def _asked(server: Server) -> None:
    for _ in range(1000):
        if server.bodies:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("the server was not asked")
