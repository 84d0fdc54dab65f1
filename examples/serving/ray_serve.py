"""Replicas with the plugin on a Ray cluster, by Ray Serve LLM: ``python ray_serve.py MODEL [POLICY] [REPLICAS]``.

Every machine needs mixquant-agents, vLLM and ``ray[llm]``. Without a cluster Ray starts one here. A turn goes to the
replica that holds the longest beginning of its prompt. It serves on port 8000; end it with Ctrl-C.

With MODEL a folder on a machine without GPUs, the engines run on CPUs. Ray asks for two CPUs a replica, and some for
itself: where there are fewer cores, ``ray start --head --num-cpus 8`` first, and ``RAY_ADDRESS=auto`` here.
"""

import sys
import time

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import LLMConfig, build_openai_app

from mixquant_agents.config import PrecisionPolicy


def application(model: str, policy: str, replicas: int, *, gpus: bool) -> serve.Application:
    """The application of Ray Serve for one model."""
    fields = PrecisionPolicy.of(policy).model_dump(mode="json")
    cpu = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "kv_cache_memory_bytes": 2**28}
    config = LLMConfig(
        model_loading_config={"model_id": "agents", "model_source": model},
        engine_kwargs={
            "quantization": "mixquant",
            "hf_overrides": {"quantization_config": {"quant_method": "mixquant", "policy": fields}},
            "enable_prompt_tokens_details": True,
            "enable_per_request_metrics": True,
            "distributed_executor_backend": "mp",  # vllm#29688: Ray's own fails silently inside placement groups
            **({} if gpus else cpu),
        },
        deployment_config={
            "num_replicas": replicas,
            "request_router_config": RequestRouterConfig(
                request_router_class="ray.serve.llm.request_router:PrefixCacheAffinityRouter"
            ),
        },
        **({} if gpus else {"placement_group_config": {"bundles": [{"CPU": 1}]}}),
    )
    return build_openai_app({"llm_configs": [config]})


if __name__ == "__main__":
    model, policy, replicas = [*sys.argv[1:], *("embedded", "mixquant-int8", "2")[len(sys.argv) - 1 :]]
    ray.init()
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    serve.run(application(model, policy, int(replicas), gpus=has_gpus), blocking=False)
    print("http://127.0.0.1:8000/v1, model 'agents'; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
