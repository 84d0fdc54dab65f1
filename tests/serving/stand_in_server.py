"""A server without a model, as a process: chat completions over server-sent events, ``/health`` and ``/metrics``.

``python stand_in_server.py PORT NAME [LAST]``: an answer is ``NAME`` and the number of messages, in six pieces. When it
has answered ``LAST`` times, the process kills itself with SIGKILL in the middle of an answer.
"""

import asyncio
import json
import os
import signal
import sys

from aiohttp import web

running = complete = 0
last = int(sys.argv[3]) if len(sys.argv) > 3 else 0


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]})


async def metrics(_: web.Request) -> web.Response:
    lines = [f'vllm:num_requests_running{{engine="0"}} {running}.0', 'vllm:num_requests_waiting{engine="0"} 0.0']
    lines += [f'mixquant:prompt_rows_total{{precision="{kind}"}} 2.0' for kind in ("quantized", "exact")]
    return web.Response(text="# HELP x\n" + "\n".join(lines) + "\nvllm:kv_cache_usage_perc NaN\n")


async def answer(request: web.Request) -> web.StreamResponse:
    global running, complete
    running += 1
    try:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = [f"{sys.argv[2]} ", *"1234", f" {len(body['messages'])}"]
        for index, word in enumerate(words):
            await asyncio.sleep(0.02)
            if index == 3 and 0 < last <= complete:
                os.kill(os.getpid(), signal.SIGKILL)
            finish = "stop" if index == len(words) - 1 else None
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish}
            await response.write(f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}\n\n".encode())
        usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
        await response.write(f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        complete += 1
        return response
    finally:
        running -= 1


if __name__ == "__main__":
    app = web.Application(handler_args={"access_log": None})
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
