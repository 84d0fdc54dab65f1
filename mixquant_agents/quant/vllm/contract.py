"""Every symbol of vLLM that the plugin touches, checked in a source tree without importing it.

All of them are touched in this folder, but for two kernels (:data:`KERNELS`). A test walks the syntax trees and fails
where something is imported, replaced, read or asked for that is not named here.

``python -m mixquant_agents.quant.vllm.contract --source DIR`` reads an unpacked wheel or sdist (the folder that holds
``vllm/``) and exits with 1 when a symbol is missing; without ``--source`` it reads the installed vLLM. A symbol that
moved between releases lists its places; one of them must be there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mixquant_agents.quant.vllm.symbols import Symbol, missing, parse

__all__ = ["CONTRACT", "KERNELS", "Need", "Symbol", "check", "installed_source", "main"]

KERNELS = {
    "ops/gemm.py": "vLLM's 8-bit matrix product",
    "twins/nvfp4.py": "vLLM's NVFP4 kernels",
}
"""Files outside of this folder that import vLLM, below ``quant/``: kernels, which stand where the arithmetic is."""


@dataclass(frozen=True, slots=True)
class Need:
    """What the plugin needs, where it may be found (any one place will do), and what for.

    Attributes:
        optional: some releases lack it, and the plugin does without; named, but not missed.
    """

    why: str
    places: tuple[Symbol, ...]
    group: str = field(default="core")
    optional: bool = False


def _need(
    why: str,
    module: str,
    *names: str,
    group: str = "core",
    parameters: tuple[str, ...] = (),
    optional: bool = False,
) -> list[Need]:
    return [Need(why, (Symbol(module, name, parameters),), group, optional) for name in names]


def _experts(why: str, module: str, *names: str, parameters: tuple[str, ...] = ()) -> list[Need]:
    """For layers of experts: vLLM has them in this form since 0.26, and earlier ones are refused by name."""
    return _need(why, module, *names, group="experts", parameters=parameters, optional=True)


_V1, _V1_BATCH = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu_input_batch"
_V2, _V2_DIR = "vllm.v1.worker.gpu.model_runner", "vllm.v1.worker.gpu"
_QUANT = "vllm.model_executor.layers.quantization"
_CONTEXT = "vllm.forward_context"
_CONFIG = "vllm.config"
_MOE = "vllm.model_executor.layers.fused_moe"

DRAFTS = (
    ("is asked for drafts", "vllm.v1.core.sched.output", ("SchedulerOutput.num_spec_tokens_to_schedule",)),
    (
        "sets up drafts",
        "vllm.engine.arg_utils",
        ("EngineArgs", "EngineArgs.create_speculative_config", "EngineArgs.speculative_config",
         "EngineArgs.async_scheduling", "EngineArgs.enable_lora"),
    ),
    (
        "sets up drafts",
        f"{_CONFIG}.vllm",
        ("VllmConfig._get_v2_model_runner_unsupported_features", "VllmConfig._set_max_num_scheduled_tokens",
         "VllmConfig.speculative_config", "VllmConfig.lora_config", "VllmConfig.use_v2_model_runner"),
    ),
    (
        "sets up drafts",
        f"{_CONFIG}.speculative",
        ("SpeculativeConfig.method", "SpeculativeConfig.model", "SpeculativeConfig.target_model_config",
         "SpeculativeConfig.num_speculative_tokens_per_batch_size"),
    ),
    (
        "sets up drafts",
        f"{_CONFIG}.scheduler",
        ("SchedulerConfig.max_num_scheduled_tokens", "SchedulerConfig.async_scheduling"),
    ),
    (
        "refuses drafts",
        f"{_CONFIG}.parallel",
        ("ParallelConfig.pipeline_parallel_size", "ParallelConfig.data_parallel_size",
         "ParallelConfig.decode_context_parallel_size"),
    ),
    (
        "refuses drafts",
        f"{_CONFIG}.model",
        ("ModelConfig.quantization", "ModelConfig.enforce_eager", "ModelConfig.hf_config", "ModelConfig.is_hybrid",
         "ModelConfig.is_multimodal_model"),
    ),
    (
        "schedules drafts",
        "vllm.v1.core.sched.scheduler",
        ("Scheduler", "Scheduler.__init__", "Scheduler.dynamic_sd_lookup", "Scheduler.running", "Scheduler.waiting",
         "Scheduler.max_num_running_reqs", "Scheduler.make_spec_decoding_stats", "Scheduler.vllm_config"),
    ),
    (
        "schedules drafts",
        "vllm.v1.request",
        ("Request.num_computed_tokens", "Request.num_prompt_tokens", "Request.request_id"),
    ),
    ("tells of drafts", "vllm.v1.engine.core", ("EngineCore", "EngineCore.scheduler")),
    ("takes min_p and logit_bias beside drafts", "vllm.sampling_params", ("SamplingParams._validate_spec_decode",)),
    ("drafts", f"{_V2_DIR}.spec_decode", ("init_speculator",)),
    (
        "drafts",
        f"{_V2_DIR}.spec_decode.speculator",
        ("DraftModelSpeculator", "DraftModelSpeculator.load_draft_model", "DraftModelSpeculator.set_attn",
         "DraftModelSpeculator.draft_attn_layer_names", "DraftModelSpeculator.attn_groups",
         "DraftModelSpeculator.sample_draft", "DraftModelSpeculator.input_buffers",
         "DraftModelSpeculator.draft_tokens", "DraftModelSpeculator.draft_logits",
         "DraftModelSpeculator.draft_max_seq_len", "DraftModelSpeculator.idx_mapping",
         "DraftModelSpeculator.temperature", "DraftModelSpeculator.seeds", "BaseSpeculator.propose",
         "BaseSpeculator.capture", "BaseSpeculator.init_cudagraph_manager"),
    ),
    ("looks up drafts", f"{_V2_DIR}.states", ("RequestState.all_token_ids", "RequestState.total_len")),
    ("looks up drafts", f"{_V2_DIR}.buffer_utils", ("StagedWriteTensor.gpu",)),
    (
        "looks up drafts",
        f"{_V2_DIR}.model_runner",
        ("GPUModelRunner.initialize_kv_cache", "GPUModelRunner.req_states", "GPUModelRunner.speculator"),
    ),
    ("drafts", f"{_V2_DIR}.attn_utils", ("build_attn_metadata", "build_slot_mappings_by_layer")),
    ("drafts", "vllm.v1.attention.backends.utils", ("PAD_SLOT_ID",)),
    (
        "drafts",
        f"{_V2_DIR}.block_table",
        ("BlockTables.compute_slot_mappings", "BlockTables.input_block_tables", "BlockTables.block_sizes"),
    ),
    ("drafts", f"{_V2_DIR}.input_batch",
     ("InputBatch.idx_mapping", "InputBatch.seq_lens", "InputBatch.seq_lens_cpu_upper_bound",
      "InputBuffers.query_start_loc")),
    ("captures drafts", f"{_V2_DIR}.cudagraph_utils",
     ("CudaGraphManager", "CudaGraphManager._init_candidates", "CudaGraphManager._capture_descs",
      "CudaGraphManager._graphs_captured", "CudaGraphManager.run_fullgraph", "prepare_inputs_to_capture",
      "BatchExecutionDescriptor", "BatchExecutionDescriptor.num_reqs")),
    ("captures drafts", f"{_CONFIG}.compilation", ("CUDAGraphMode.FULL_DECODE_ONLY", "CUDAGraphMode.decode_mode")),
)  # fmt: skip
"""What drafts by the twin need. A release without it runs everything else, and refuses drafts."""

SMALL_GRAPHS = (
    (f"{_V2_DIR}.cudagraph_utils",
     ("CudaGraphManager.dispatch", "CudaGraphManager.graphs", "CudaGraphManager._capture_descs",
      "CudaGraphManager.cudagraph_mode", "CudaGraphManager.use_breakable_cg", "CudaGraphManager.max_num_reqs",
      "ModelCudaGraphManager.capture", "BatchExecutionDescriptor.num_reqs", "BatchExecutionDescriptor.num_tokens",
      "BatchExecutionDescriptor.cg_mode")),
    (f"{_V2_DIR}.model_states.default", ("DefaultModelState", "DefaultModelState.prepare_attn")),
    (f"{_V2_DIR}.input_batch", ("InputBatch.num_scheduled_tokens",)),
    (f"{_V2_DIR}.states", ("RequestState.req_id_to_index",)),
    ("vllm.v1.worker.utils",
     ("AttentionGroup.backend", "AttentionGroup.kv_cache_spec", "AttentionGroup.get_metadata_builder")),
    ("vllm.v1.attention.backend",
     ("AttentionBackend.get_name", "AttentionMetadataBuilder.get_cudagraph_support", "AttentionCGSupport.ALWAYS")),
    (f"{_CONFIG}.compilation", ("CUDAGraphMode.mixed_mode", "CUDAGraphMode.decode_mode")),
    (f"{_CONFIG}.vllm", ("VllmConfig.lora_config", "VllmConfig.parallel_config")),
    (f"{_CONFIG}.parallel", ("ParallelConfig.pipeline_parallel_size", "ParallelConfig.data_parallel_size")),
)  # fmt: skip
"""What full graphs of small steps need. A release without it replays them in pieces."""

DEFERRAL = (
    (
        "vllm.v1.core.sched.scheduler",
        ("Scheduler", "Scheduler.schedule", "Scheduler.running", "Scheduler.waiting", "Scheduler.policy",
         "Scheduler.max_num_running_reqs", "Scheduler.max_num_scheduled_tokens", "Scheduler.num_spec_tokens",
         "Scheduler.scheduler_config"),
    ),
    (
        "vllm.v1.core.sched.request_queue",
        ("SchedulingPolicy", "SchedulingPolicy.PRIORITY", "PriorityRequestQueue.add_request",
         "PriorityRequestQueue.peek_request", "PriorityRequestQueue.pop_request",
         "PriorityRequestQueue.prepend_request", "PriorityRequestQueue.prepend_requests",
         "PriorityRequestQueue.remove_request", "PriorityRequestQueue.remove_requests"),
    ),
    (
        "vllm.v1.request",
        ("Request.priority", "Request.status", "Request.is_prefill_chunk", "RequestStatus", "RequestStatus.WAITING",
         "RequestStatus.PREEMPTED"),
    ),
    ("vllm.v1.core.sched.output", ("SchedulerOutput.total_num_scheduled_tokens",)),
    (f"{_CONFIG}.scheduler", ("SchedulerConfig.enable_chunked_prefill",)),
    ("vllm.v1.engine.core", ("EngineCore", "EngineCore.scheduler")),
)  # fmt: skip
"""What leaving prefills for a later step needs. A release without it schedules as it always did."""

CONTRACT: tuple[Need, ...] = (
    *(
        each
        for module, names in DEFERRAL
        for each in _need("defers prefills", module, *names, group="deferral", optional=True)
    ),
    *_need(
        "defers prefills", "vllm.v1.core.sched.scheduler", "Scheduler.max_num_active_reqs", group="newer", optional=True
    ),
    *_need("drafts", f"{_V2_DIR}.block_table", "BlockTables.kernel_block_sizes", optional=True),
    *_need("renews drafts", _V2, "GPUModelRunner.reload_weights", "GPUModelRunner.speculator", optional=True),
    *_need(
        "drafts",
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding.quant_method",
        "UnquantizedEmbeddingMethod.apply",
        optional=True,
    ),
    *(
        each
        for module, names in SMALL_GRAPHS
        for each in _need("full graphs of small steps", module, *names, group="gpu", optional=True)
    ),
    *(each for why, module, names in DRAFTS for each in _need(why, module, *names, group="draft", optional=True)),
    *_need("names the method", _QUANT, "register_quantization_config", parameters=("quantization",)),
    *_need(
        "gives each Linear its method",
        f"{_QUANT}.base_config",
        "QuantizationConfig.get_quant_method",
        parameters=("layer", "prefix"),
    ),
    *_need(
        "carries the policy",
        f"{_QUANT}.base_config",
        "QuantizationConfig.from_config",
        "QuantizationConfig.get_config_filenames",
        "QuantizationConfig.packed_modules_mapping",
        "QuantizationConfig",
        "QuantizeMethodBase",
    ),
    *_need("is routed", "vllm.model_executor.layers.linear", "LinearBase", "UnquantizedLinearMethod"),
    *_need(
        "is routed",
        "vllm.model_executor.models.deepseek_v2",
        "DeepSeekV2FusedQkvAProjLinear._use_min_latency_gemm",
        group="newer",
        optional=True,
    ),
    *_need(
        "is routed",
        "vllm.model_executor.layers.linear",
        "UnquantizedLinearMethod.create_weights",
        parameters=("input_size_per_partition", "output_partition_sizes", "params_dtype"),
    ),
    *_need(
        "builds the twin",
        "vllm.model_executor.layers.linear",
        "UnquantizedLinearMethod.process_weights_after_loading",
        parameters=("layer",),
    ),
    *_need(
        "loads layers that hold both weights one at a time",
        "vllm.model_executor.model_loader.reload.layerwise",
        "initialize_online_processing",
        parameters=("layer",),
    ),
    *_need(
        "loads layers that hold both weights one at a time",
        f"{_QUANT}.base_config",
        "QuantizeMethodBase.uses_meta_device",
    ),
    *_need(
        "runs the routed product",
        "vllm.model_executor.layers.linear",
        "UnquantizedLinearMethod.apply",
        parameters=("layer", "x", "bias"),
    ),
    Need(
        "knows the engine being built",
        (Symbol("vllm.config", "get_current_vllm_config"), Symbol("vllm.config.vllm", "get_current_vllm_config")),
    ),
    *_need(
        "knows the device",
        "vllm.platforms.interface",
        "Platform.is_cpu",
        "Platform.is_cuda",
        "Platform.get_device_capability",
        "Platform.get_device_name",
        "Platform.device_type",
        "DeviceCapability.major",
        "DeviceCapability.minor",
    ),
    *_need("knows the device", "vllm.platforms", "current_platform"),
    *_need(
        "knows the engine being built",
        f"{_CONFIG}.vllm",
        "VllmConfig.model_config",
        "VllmConfig.parallel_config",
        "VllmConfig.scheduler_config",
        "VllmConfig.quant_config",
    ),
    *_need("knows the engine being built", f"{_CONFIG}.vllm", "VllmConfig.num_speculative_tokens", optional=True),
    *_need("knows the engine being built", f"{_CONFIG}.model", "ModelConfig.enforce_eager", "ModelConfig.model"),
    *_need("knows the engine being built", f"{_CONFIG}.scheduler", "SchedulerConfig.max_num_seqs"),
    *_need(
        "refuses what it cannot follow",
        f"{_CONFIG}.model",
        "ModelConfig.is_encoder_decoder",
        "ModelConfig.hf_overrides",
    ),
    *_need("refuses what it cannot follow", f"{_CONFIG}.parallel", "ParallelConfig.tensor_parallel_size"),
    *_need(
        "refuses what it cannot follow",
        f"{_CONFIG}.parallel",
        "ParallelConfig.use_ubatching",
        "ParallelConfig.prefill_context_parallel_size",
        optional=True,
    ),
    *_need(
        "answers the front end",
        "vllm.v1.worker.worker_base",
        "WorkerBase",
        "WorkerBase.get_model",
        "WorkerBase.vllm_config",
    ),
    *_need("carries the plan to the op", "vllm.platforms.interface", "Platform.set_additional_forward_context"),
    *_need(
        "carries the plan to the op",
        _CONTEXT,
        "ForwardContext.additional_kwargs",
        "get_forward_context",
        "is_forward_context_available",
    ),
    Need(
        "carries the plan to the op",
        (
            Symbol(
                _CONTEXT,
                "set_forward_context",
                ("vllm_config", "num_tokens"),
                ("set_additional_forward_context", ("vllm_config", "num_tokens")),
            ),
        ),
    ),
    *_need(
        "counts rows",
        "vllm.v1.core.sched.output",
        "SchedulerOutput.finished_req_ids",
        "SchedulerOutput.preempted_req_ids",
        "SchedulerOutput.total_num_scheduled_tokens",
        "SchedulerOutput.scheduled_spec_decode_tokens",
        "SchedulerOutput.scheduled_encoder_inputs",
    ),
    *_need(
        "reads a static beginning exact, and lends it",
        "vllm.v1.core.sched.output",
        "SchedulerOutput.scheduled_new_reqs",
        "NewRequestData.req_id",
        "NewRequestData.sampling_params",
    ),
    *_need("reads a static beginning exact, and lends it", "vllm.sampling_params", "SamplingParams.extra_args"),
    *_need(
        "reads a static beginning exact, and lends it",
        "vllm.v1.request",
        "Request.sampling_params",
        "Request.cache_salt",
    ),
    *_need(
        "reads a static beginning exact, and lends it",
        "vllm.v1.core.kv_cache_utils",
        "generate_block_hash_extra_keys",
        parameters=("request", "start_token_idx", "end_token_idx", "start_mm_idx"),
    ),
    *_need(
        "reads a static beginning exact, and lends it",
        "vllm.v1.core.block_pool",
        "generate_block_hash_extra_keys",
        optional=True,
    ),
    *_need(
        "plans a step (runner V1)",
        _V1,
        "GPUModelRunner._prepare_inputs",
        parameters=("scheduler_output", "num_scheduled_tokens"),
    ),
    *_need("plans a step (runner V1)", _V1, "GPUModelRunner.execute_model", parameters=("scheduler_output",)),
    *_need(
        "plans a step (runner V1)", _V1, "GPUModelRunner", "GPUModelRunner.input_batch", "GPUModelRunner.vllm_config"
    ),
    *_need(
        "plans a step (runner V1)",
        _V1_BATCH,
        "InputBatch.req_ids",
        "InputBatch.num_reqs",
        "InputBatch.num_prompt_tokens",
        "InputBatch.num_computed_tokens_cpu",
    ),
    *_need("plans a step (runner V2)", _V2, "GPUModelRunner.prepare_inputs", parameters=("scheduler_output",)),
    *_need(
        "plans a step (runner V2)", _V2, "GPUModelRunner.execute_model", parameters=("scheduler_output", "dummy_run")
    ),
    *_need("plans a step (runner V2)", _V2, "GPUModelRunner.req_states", "GPUModelRunner.vllm_config"),
    *_need("plans a step (runner V2)", f"{_V2_DIR}.buffer_utils", "UvaBackedTensor.np"),
    *_need(
        "plans a step (runner V2)",
        f"{_V2_DIR}.states",
        "RequestState.prompt_len",
        "RequestState.num_computed_tokens_np",
    ),
    *_need(
        "plans a step (runner V2)",
        f"{_V2_DIR}.input_batch",
        "InputBatch.req_ids",
        "InputBatch.num_reqs",
        "InputBatch.idx_mapping_np",
        "InputBatch.num_scheduled_tokens",
    ),
    *_need(
        "counts a server's rows",
        "vllm.v1.engine.async_llm",
        "AsyncLLM.generate",
        parameters=("prompt", "sampling_params", "request_id"),
        group="server",
    ),
    *_need(
        "counts a server's rows",
        "vllm.v1.engine.async_llm",
        "AsyncLLM",
        "AsyncLLM.collective_rpc",
        "AsyncLLM.errored",
        "AsyncLLM.vllm_config",
        group="server",
    ),
    *_need("counts a server's rows", f"{_CONFIG}.model", "ModelConfig.served_model_name", group="server"),
    *_need(
        "pins memory for sleep",
        "vllm.device_allocator.cumem",
        "CuMemAllocator.get_instance",
        "CuMemAllocator.pointer_to_data",
    ),
    *(
        Need(
            "pins memory for sleep",
            tuple(Symbol(module, name) for module in ("vllm.device_allocator", "vllm.device_allocator.cumem")),
        )
        for name in ("AllocationData.handle", "AllocationData.tag")
    ),
    *_need("counts a server's rows", "vllm.sampling_params", "SamplingParams.n", group="server"),
    *_need(
        "counts a server's rows",
        "vllm.outputs",
        "RequestOutput.outputs",
        "RequestOutput.finished",
        "RequestOutput.metrics",
        "CompletionOutput.token_ids",
        group="server",
    ),
    *_need(
        "counts a server's rows",
        "vllm.v1.metrics.stats",
        "RequestStateStats.num_preemptions",
        group="server",
        optional=True,
    ),
    *_need(
        "tells a server's rows in its answers",
        "vllm.entrypoints.generate.base.serving",
        "build_per_request_timing_metrics",
        parameters=("metrics",),
        group="server",
        optional=True,
    ),
    *_need("picks a captured variant", _CONTEXT, "create_forward_context", parameters=("vllm_config",), group="gpu"),
    *_need(
        "picks a captured variant",
        _CONTEXT,
        "BatchDescriptor",
        "BatchDescriptor.num_tokens",
        "ForwardContext.batch_descriptor",
        "ForwardContext.cudagraph_runtime_mode",
        group="gpu",
    ),
    *_need("picks a captured variant", _CONFIG, "CUDAGraphMode", group="gpu"),
    *_need(
        "picks a captured variant",
        f"{_CONFIG}.compilation",
        "CUDAGraphMode.NONE",
        "CUDAGraphMode.PIECEWISE",
        group="gpu",
    ),
    *_need(
        "captures variants (runner V2)",
        f"{_V2_DIR}.cudagraph_utils",
        "CudaGraphManager.vllm_config",
        "BatchExecutionDescriptor.cg_mode",
        "BatchExecutionDescriptor.num_tokens",
        group="gpu",
    ),
    *_need(
        "captures variants (runner V2)",
        f"{_V2_DIR}.cudagraph_utils",
        "CudaGraphManager.capture",
        parameters=("create_forward_fn",),
        group="gpu",
    ),
    *_need("captures variants (runner V2)", f"{_V2_DIR}.cudagraph_utils", "ModelCudaGraphManager", group="gpu"),
    *_need(
        "captures variants (runner V1)",
        _V1,
        "GPUModelRunner._warmup_and_capture",
        parameters=("desc", "cudagraph_runtime_mode"),
        group="gpu",
    ),
    *_need("measures thresholds", _V1, "GPUModelRunner.profile_run", "GPUModelRunner.device", group="gpu"),
    *_need("measures thresholds", _V2, "GPUModelRunner.profile_run", "GPUModelRunner.device", group="gpu"),
    *_need(
        "routes alike on all ranks",
        "vllm.distributed.parallel_state",
        "get_world_group",
        "GroupCoordinator.broadcast_object",
        group="gpu",
    ),
    *_need(
        "refuses a wrong product on all ranks",
        "vllm.distributed.parallel_state",
        "GroupCoordinator.world_size",
        "GroupCoordinator.cpu_group",
        group="gpu",
    ),
    *_need("fuses quantization", "vllm.compilation.backends", "CompilerManager", group="gpu"),
    *_need(
        "fuses quantization",
        "vllm.compilation.backends",
        "CompilerManager.compile",
        parameters=("graph", "compile_range"),
        group="gpu",
    ),
    *_need(
        "picks a compiled piece",
        "vllm.compilation.piecewise_backend",
        "PiecewiseBackend._find_range_for_shape",
        "PiecewiseBackend",
        "PiecewiseBackend.vllm_config",
        "RangeEntry.compile_range",
        group="gpu",
    ),
    *_need("picks a compiled piece", f"{_CONFIG}.utils", "Range.start", "Range.is_single_size", group="gpu"),
    *_need("fuses quantization", "vllm.ir.ops.layernorm", "rms_norm", "fused_add_rms_norm", group="gpu"),
    *_need(
        "sets graph sizes and compile ranges",
        "vllm.config.vllm",
        "VllmConfig.__post_init__",
        "VllmConfig._get_quantization_config",
        "VllmConfig._set_cudagraph_sizes",
        "VllmConfig._set_compile_ranges",
        "VllmConfig.compilation_config",
        "VllmConfig.additional_config",
        group="gpu",
    ),
    *_need("sets graph sizes and compile ranges", _CONFIG, "VllmConfig", group="gpu"),
    *_need(
        "sets graph sizes and compile ranges",
        f"{_CONFIG}.compilation",
        "CompilationConfig.cudagraph_mode",
        "CompilationConfig.cudagraph_capture_sizes",
        "CompilationConfig.max_cudagraph_capture_size",
        "CompilationConfig.compile_ranges_endpoints",
        "CUDAGraphMode.FULL",
        "CUDAGraphMode.FULL_AND_PIECEWISE",
        "CUDAGraphMode.has_full_cudagraphs",
        group="gpu",
    ),
    *_need(
        "sets graph sizes and compile ranges",
        f"{_CONFIG}.scheduler",
        "SchedulerConfig.max_num_batched_tokens",
        group="gpu",
    ),
    *_need(
        "sets graph sizes and compile ranges",
        "vllm.platforms.interface",
        "Platform.get_device_total_memory",
        group="gpu",
    ),
    *_experts("is routed", f"{_MOE}.unquantized_fused_moe_method", "UnquantizedFusedMoEMethod"),
    *_experts(
        "is routed",
        f"{_MOE}.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod.apply",
        parameters=("layer", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"),
    ),
    *_experts(
        "is routed",
        f"{_MOE}.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod.create_weights",
        parameters=("num_experts", "hidden_size", "intermediate_size_per_partition", "params_dtype"),
    ),
    *_experts(
        "is routed",
        f"{_MOE}.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod.process_weights_after_loading",
        "UnquantizedFusedMoEMethod.get_fused_moe_quant_config",
        "UnquantizedFusedMoEMethod.unquantized_backend",
        "UnquantizedFusedMoEMethod.experts_cls",
        "UnquantizedFusedMoEMethod.supports_eplb",
    ),
    *_experts(
        "is routed",
        f"{_MOE}.fused_moe_method_base",
        "FusedMoEMethodBase.moe",
        "FusedMoEMethodBase.is_monolithic",
        "FusedMoEMethodBase.moe_quant_config",
    ),
    *_experts(
        "knows a layer of experts",
        f"{_MOE}.routed_experts",
        "RoutedExperts.moe_config",
        "RoutedExperts.params_dtype",
        "RoutedExperts.top_k",
        "RoutedExperts.activation",
        "RoutedExperts.apply_router_weight_on_input",
        "RoutedExperts.global_num_experts",
        "RoutedExperts.expert_map",
        "RoutedExperts.swiglu_limit",
        "RoutedExperts.swiglu_alpha",
        "RoutedExperts.swiglu_beta",
        "RoutedExperts.ckpt_gate_proj_name",
        "RoutedExperts.ckpt_up_proj_name",
        "RoutedExperts.ckpt_down_proj_name",
    ),
    *_experts(
        "knows a layer of experts",
        f"{_MOE}.config",
        "FusedMoEConfig.moe_parallel_config",
        "FusedMoEConfig.max_num_tokens",
        "FusedMoEConfig.has_bias",
        "FusedMoEConfig.is_lora_enabled",
        "FusedMoEConfig.is_act_and_mul",
        "FusedMoEConfig.is_sequence_parallel",
        "FusedMoEConfig.dp_size",
        "FusedMoEParallelConfig.enable_eplb",
    ),
    *_experts("picks a kernel for exact experts", f"{_MOE}.oracle.unquantized", "backend_to_kernel_cls"),
    *_experts(
        "picks a kernel for exact experts",
        f"{_MOE}.oracle.unquantized",
        "UnquantizedMoeBackend",
        "UnquantizedMoeBackend.TRITON",
    ),
    *_experts(
        "picks a kernel for experts",
        f"{_MOE}.modular_kernel",
        "FusedMoEExperts.is_monolithic",
        "FusedMoEExperts.is_supported_config",
        "FusedMoEActivationFormat.Standard",
        "FusedMoEKernel",
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.modular_kernel",
        "FusedMoEKernel.apply",
        parameters=(
            "hidden_states",
            "w1",
            "w2",
            "topk_weights",
            "topk_ids",
            "activation",
            "apply_router_weight_on_input",
            "global_num_experts",
            "expert_map",
            "shared_experts",
            "shared_experts_input",
        ),
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.all2all_utils",
        "maybe_make_prepare_finalize",
        parameters=("moe", "quant_config", "allow_new_interface", "use_monolithic"),
    ),
    *_experts("multiplies experts", f"{_MOE}.experts.triton_moe", "TritonExperts", "TritonExperts.moe_sum"),
    *_experts(
        "multiplies experts",
        f"{_MOE}.experts.triton_moe",
        "TritonExperts.apply",
        parameters=(
            "output",
            "hidden_states",
            "w1",
            "w2",
            "topk_weights",
            "topk_ids",
            "activation",
            "global_num_experts",
            "expert_map",
            "a1q_scale",
            "a2_scale",
            "workspace13",
            "workspace2",
            "expert_tokens_meta",
            "apply_router_weight_on_input",
        ),
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.fused_moe",
        "invoke_fused_moe_triton_kernel",
        parameters=(
            "A",
            "B",
            "C",
            "A_scale",
            "B_scale",
            "topk_weights",
            "sorted_token_ids",
            "expert_ids",
            "num_tokens_post_padded",
            "mul_routed_weight",
            "top_k",
            "config",
            "compute_type",
            "use_fp8_w8a8",
            "use_int8_w8a8",
            "per_channel_quant",
            "block_shape",
            "B_bias",
        ),
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.moe_align_block_size",
        "moe_align_block_size",
        parameters=("topk_ids", "block_size", "num_experts", "expert_map"),
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.modular_kernel",
        "FusedMoEExperts.w1_scale",
        "FusedMoEExperts.w2_scale",
        "FusedMoEExperts.w1_bias",
        "FusedMoEExperts.w2_bias",
    ),
    *_experts("multiplies experts", "vllm.triton_utils", "tl"),
    *_experts("multiplies experts", f"{_MOE}.experts.cutlass_moe", "CutlassExpertsFp8", "CutlassExpertsFp4"),
    *_experts(
        "multiplies experts",
        f"{_MOE}.config",
        "nvfp4_moe_quant_config",
        parameters=("g1_alphas", "g2_alphas", "a1_gscale", "a2_gscale", "w1_scale", "w2_scale"),
    ),
    *_experts("multiplies experts", f"{_QUANT}.utils.nvfp4_utils", "swizzle_blockscale"),
    *_experts("multiplies experts", f"{_QUANT}.utils.quant_utils", "kNvfp4Static", "kNvfp4Dynamic"),
    *_experts(
        "multiplies experts",
        f"{_MOE}.config",
        "fp8_w8a8_moe_quant_config",
        parameters=("w1_scale", "w2_scale", "per_act_token_quant", "per_out_ch_quant", "gemm1_alpha", "gemm1_beta"),
    ),
    *_experts(
        "multiplies experts",
        f"{_MOE}.config",
        "int8_w8a8_moe_quant_config",
        parameters=("w1_scale", "w2_scale", "a1_scale", "a2_scale", "per_act_token_quant"),
    ),
    *_experts(
        "multiplies experts",
        f"{_QUANT}.utils.quant_utils",
        "kFp8StaticChannelSym",
        "kFp8DynamicTokenSym",
        "kInt8StaticChannelSym",
        "kInt8DynamicTokenSym",
    ),
    *_need(
        "knows when all layers are made",
        "vllm.model_executor.model_loader",
        "get_model_loader",
        parameters=("load_config",),
    ),
    *_need(
        "knows when all layers are made",
        "vllm.model_executor.model_loader.base_loader",
        "BaseModelLoader.load_weights",
        parameters=("model",),
    ),
    *_need("knows when all layers are made", f"{_CONFIG}.vllm", "VllmConfig.load_config"),
    *_experts("plans memory", "vllm.distributed.parallel_state", "get_tp_group"),
    *_experts("plans memory", f"{_CONFIG}.vllm", "VllmConfig.cache_config"),
    *_experts(
        "plans memory",
        f"{_CONFIG}.cache",
        "CacheConfig.kv_cache_memory_bytes",
        "CacheConfig.gpu_memory_utilization",
    ),
    *_experts(
        "plans memory",
        f"{_CONFIG}.model",
        "ModelConfig.max_model_len",
        "ModelConfig.get_num_kv_heads",
        "ModelConfig.get_head_size",
        "ModelConfig.get_num_layers",
    ),
    *_experts("plans memory", f"{_CONFIG}.scheduler", "SchedulerConfig.disable_hybrid_kv_cache_manager"),
    *_experts("plans memory", f"{_CONFIG}.compilation", "CompilationConfig.static_forward_context"),
    *_experts(
        "plans memory",
        "vllm.model_executor.layers.attention.attention",
        "Attention.num_kv_heads",
        "Attention.head_size",
        "Attention.sliding_window",
        "Attention.kv_sharing_target_layer_name",
    ),
    *_need("multiplies in 8 bits", "vllm._custom_ops", "cutlass_scaled_mm", parameters=("a", "b"), group="gpu"),
    *_need(
        "multiplies in NVFP4", "vllm.model_executor.kernels.linear", "init_nvfp4_linear_kernel", "envs", group="gpu"
    ),
    *_need(
        "multiplies in NVFP4",
        "vllm.model_executor.kernels.linear.nvfp4.base",
        "NvFp4LinearKernel.process_weights_after_loading",
        parameters=("layer",),
        group="gpu",
    ),
    *_need(
        "multiplies in NVFP4",
        "vllm.model_executor.kernels.linear.nvfp4.base",
        "NvFp4LinearKernel.apply_weights",
        parameters=("layer", "x", "bias"),
        group="gpu",
    ),
    *_need(
        "multiplies rows with 4/6 block scales",
        "vllm._custom_ops",
        "cutlass_scaled_fp4_mm",
        parameters=("a", "b", "block_scale_a", "block_scale_b", "alpha", "out_dtype"),
        group="gpu",
        optional=True,
    ),
    *_need(
        "multiplies rows with 4/6 block scales",
        "vllm.model_executor.kernels.linear.nvfp4.cutlass",
        "CutlassNvFp4LinearKernel",
        group="gpu",
        optional=True,
    ),
    *_need(
        "multiplies rows with 4/6 block scales",
        "vllm.model_executor.kernels.linear.nvfp4.base",
        "NvFp4LinearKernel.input_quant_key",
        group="gpu",
        optional=True,
    ),
    *_need(
        "multiplies rows with 4/6 block scales",
        "vllm.model_executor.layers.fusion.quant_activation",
        "QuantizedActivation",
        "QuantizedActivation.data",
        "QuantizedActivation.scale",
        "QuantizedActivation.orig_dtype",
        "QuantizedActivation.orig_shape",
        "QuantizedActivation.quant_key",
        group="gpu",
        optional=True,
    ),
)


def installed_source() -> Path:
    """The folder that holds the installed ``vllm/``; the package is not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("vllm is not installed")
    return Path(next(iter(spec.submodule_search_locations))).parent


def check(source: Path, group: str | None = None, *, optional: bool = False) -> list[str]:
    """What is missing below ``source``, one readable line for each need; empty when all is there. With ``optional``
    also what the plugin can do without.

    Raises:
        FileNotFoundError: ``source`` holds no ``vllm/``.
    """
    if not (source / "vllm").is_dir():
        raise FileNotFoundError(f"{source} holds no folder 'vllm'; give the root of an unpacked wheel or sdist")
    read = functools.cache(functools.partial(parse, source))
    problems = []
    for need in CONTRACT:
        if (optional or not need.optional) and (group is None or need.group == group):
            reasons = [missing(read(symbol.module), symbol) for symbol in need.places]
            if all(reasons):
                problems.append(f"{need.why}: {'; '.join(reason for reason in reasons if reason)}")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mixquant_agents.quant.vllm.contract", description=__doc__)
    parser.add_argument("--source", type=Path, action="append", help="root of an unpacked vLLM; repeatable")
    failed = False
    for source in parser.parse_args(argv).source or [installed_source()]:
        try:
            problems = check(source)
        except FileNotFoundError as error:
            parser.error(str(error))
        failed = failed or bool(problems)
        for line in problems or [f"all {len(CONTRACT)} symbols are there"]:
            sys.stdout.write(f"{source}: {line}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
