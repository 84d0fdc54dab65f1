"""The embedded model in plain PyTorch: weights from the GGUF file, a forward pass, low-rank updates, batched generation.

Small enough to hold in one's head, fast enough to train with: a merged low-rank update per matrix, fused norms and
attention, logits only where they are wanted.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.attention.flex_attention import BlockMask, flex_attention

__all__ = ["CONFIG", "LINEARS", "Config", "Weights", "generate", "hidden", "load_gguf", "load_safetensors", "rope", "row_hidden", "row_layer"]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """SmolLM2-135M."""

    layers: int = 30
    width: int = 576
    heads: int = 9
    kv_heads: int = 3
    head: int = 64
    inner: int = 1536
    vocab: int = 49152
    theta: float = 100_000.0
    eps: float = 1e-5
    end: int = 2  # <|im_end|>


CONFIG = Config()
LINEARS = {  # name in the checkpoint → (rows, columns)
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576), "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576), "mlp.down_proj": (576, 1536),
}  # fmt: skip
_GGUF = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip


@dataclass
class Weights:
    """All weights of one model. ``linear[name]`` is ``[layers, out, in]``; norms are ``[layers, width]``."""

    embedding: Tensor
    linear: dict[str, Tensor]
    norm1: Tensor
    norm2: Tensor
    norm: Tensor

    def to(self, device: str, dtype: torch.dtype) -> Weights:
        """A copy elsewhere."""
        return Weights(
            self.embedding.to(device, dtype), {name: weight.to(device, dtype) for name, weight in self.linear.items()},
            self.norm1.to(device, dtype), self.norm2.to(device, dtype), self.norm.to(device, dtype),
        )  # fmt: skip


def load_gguf(path: pathlib.Path) -> Weights:
    """Dequantized float32 weights. llama.cpp interleaves the rotary halves of q and k; this undoes it."""
    import gguf

    reader = gguf.GGUFReader(path)
    raw = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}

    def linear(short: str, name: str) -> Tensor:
        stacked = torch.stack(
            [raw[f"blk.{layer}.{short}.weight"].reshape(LINEARS[name]) for layer in range(CONFIG.layers)]
        )
        if short in {"attn_q", "attn_k"}:
            halves = stacked.view(CONFIG.layers, -1, CONFIG.head // 2, 2, stacked.shape[-1])
            stacked = halves.transpose(2, 3).reshape(stacked.shape)
        return stacked.contiguous()

    return Weights(
        raw["token_embd.weight"].reshape(CONFIG.vocab, CONFIG.width),
        {name: linear(short, name) for short, name in _GGUF.items()},
        torch.stack([raw[f"blk.{layer}.attn_norm.weight"] for layer in range(CONFIG.layers)]),
        torch.stack([raw[f"blk.{layer}.ffn_norm.weight"] for layer in range(CONFIG.layers)]),
        raw["output_norm.weight"],
    )


def load_safetensors(folder: pathlib.Path) -> Weights:
    """Float32 weights of a prepared model folder."""
    from safetensors.torch import load_file

    raw = load_file(folder / "model.safetensors")

    def stack(name: str) -> Tensor:
        return torch.stack([raw[f"model.layers.{layer}.{name}.weight"] for layer in range(CONFIG.layers)])

    return Weights(
        raw["model.embed_tokens.weight"], {name: stack(name) for name in LINEARS}, stack("input_layernorm"),
        stack("post_attention_layernorm"), raw["model.norm.weight"],
    )  # fmt: skip


def rope(length: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[length, head]`` of the rotary embedding (halves layout)."""
    frequency = CONFIG.theta ** (-torch.arange(0, CONFIG.head, 2, device=device, dtype=torch.float32) / CONFIG.head)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``[batch, heads, length, head]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def layer(
    x: Tensor, norm1: Tensor, norm2: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    cos: Tensor, sin: Tensor,
) -> Tensor:  # fmt: skip
    """One block on ``[batch, length, width]``, causal."""
    batch, length, _ = x.shape
    h = F.rms_norm(x, (CONFIG.width,), norm1, CONFIG.eps)
    query = rotate(F.linear(h, q).view(batch, length, CONFIG.heads, CONFIG.head).transpose(1, 2), cos, sin)
    key = rotate(F.linear(h, k).view(batch, length, CONFIG.kv_heads, CONFIG.head).transpose(1, 2), cos, sin)
    value = F.linear(h, v).view(batch, length, CONFIG.kv_heads, CONFIG.head).transpose(1, 2)
    seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    x = x + F.linear(seen.transpose(1, 2).reshape(batch, length, -1), o)
    h = F.rms_norm(x, (CONFIG.width,), norm2, CONFIG.eps)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def joined(weights: Weights) -> dict[str, tuple[Tensor, ...]]:
    """The weights per layer, those with the same input as one matrix: ``qkv``, ``o``, ``gate_up``, ``down``."""
    w = weights.linear
    together = {
        "qkv": torch.cat([w[f"self_attn.{part}_proj"] for part in "qkv"], dim=1), "o": w["self_attn.o_proj"],
        "gate_up": torch.cat([w["mlp.gate_proj"], w["mlp.up_proj"]], dim=1), "down": w["mlp.down_proj"],
        "norm1": weights.norm1, "norm2": weights.norm2,
    }  # fmt: skip
    return {name: matrix.unbind(0) for name, matrix in together.items()}


def row_layer(
    x: Tensor, norm1: Tensor, norm2: Tensor, qkv: Tensor, o: Tensor, gate_up: Tensor, down: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask,
) -> Tensor:  # fmt: skip
    """One block on one row of tokens ``[tokens, width]``; ``mask`` says which of them a token sees."""
    length = len(x)
    mixed = F.linear(F.rms_norm(x, (CONFIG.width,), norm1, CONFIG.eps), qkv).view(length, -1, CONFIG.head)
    query, key, value = mixed.transpose(0, 1)[None].split([CONFIG.heads, CONFIG.kv_heads, CONFIG.kv_heads], dim=1)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    if isinstance(mask, Tensor):
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    else:
        seen = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    x = x + F.linear(seen[0].transpose(0, 1).reshape(length, CONFIG.width), o)
    gate, up = F.linear(F.rms_norm(x, (CONFIG.width,), norm2, CONFIG.eps), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


def row_hidden(weights: Weights, ids: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask, block=row_layer) -> Tensor:  # type: ignore[no-untyped-def] # fmt: skip
    """Final hidden states ``[tokens, width]`` of one row of many texts; ``cos`` and ``sin`` are those of each token's position."""
    x = F.embedding(ids, weights.embedding)
    w = joined(weights)
    for index in range(CONFIG.layers):
        each = (w[name][index] for name in ("norm1", "norm2", "qkv", "o", "gate_up", "down"))
        x = block(x, *each, cos, sin, mask)
    return F.rms_norm(x, (CONFIG.width,), weights.norm, CONFIG.eps)


def hidden(weights: Weights, ids: Tensor, cos: Tensor, sin: Tensor, block=layer) -> Tensor:  # type: ignore[no-untyped-def]
    """Final hidden states ``[batch, length, width]`` of right-padded ids (padding never reaches earlier positions)."""
    x = F.embedding(ids, weights.embedding)
    cos, sin = cos[: ids.shape[1]], sin[: ids.shape[1]]
    parts = [weights.linear[name].unbind(0) for name in LINEARS]
    norm1, norm2 = weights.norm1.unbind(0), weights.norm2.unbind(0)
    for index in range(CONFIG.layers):
        x = block(x, norm1[index], norm2[index], *(part[index] for part in parts), cos, sin)
    return F.rms_norm(x, (CONFIG.width,), weights.norm, CONFIG.eps)


@torch.no_grad()  # type: ignore[untyped-decorator] # torch is untyped here
def generate(
    weights: Weights, prompts: list[list[int]], max_tokens: int, *, temperature: float = 0.0, batch_tokens: int = 400_000,
    stop: int = CONFIG.end, seed: int = 0,
) -> list[list[int]]:  # fmt: skip
    """Answers to prompts, greedy or sampled, in batches of similar length. The end marker is not part of an answer."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // (len(prompts[order[start]]) + max_tokens))
        chosen = order[start : start + size]
        texts = _generate([prompts[index] for index in chosen], weights, max_tokens, temperature, stop, seed + start)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
        start += size
    return answers


def _generate(
    prompts: list[list[int]], weights: Weights, max_tokens: int, temperature: float, stop: int, seed: int
) -> list[list[int]]:
    device, dtype = str(weights.embedding.device), weights.embedding.dtype
    random = torch.Generator(device).manual_seed(seed)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    count, longest = len(prompts), int(lengths.max())
    total = longest + max_tokens
    ids = torch.zeros(count, longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    cos, sin = rope(total, device, dtype)
    cache = torch.zeros(CONFIG.layers, 2, count, CONFIG.kv_heads, total, CONFIG.head, device=device, dtype=dtype)
    rows = torch.arange(count, device=device)
    span = torch.arange(total, device=device)
    last = _cached(weights, ids, cos[:longest], sin[:longest], cache, None, span)[rows, lengths - 1]
    done = torch.zeros(count, dtype=torch.bool, device=device)
    out = torch.full((count, max_tokens), stop, dtype=torch.long, device=device)
    position = lengths.clone()
    for step in range(max_tokens):
        logits = F.linear(last, weights.embedding).float()
        if temperature > 0:
            token = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=random)[:, 0]
        else:
            token = logits.argmax(dim=-1)
        token = torch.where(done, stop, token)
        out[:, step] = token
        done |= token == stop
        if step % 8 == 7 and bool(done.all()):
            break
        c, s = cos[position][:, None, None], sin[position][:, None, None]
        last = _cached(weights, token[:, None], c, s, cache, position, span)[:, 0]
        position += 1
    return [row[: row.index(stop)] if stop in row else row for row in out.tolist()]


def _cached(
    weights: Weights, ids: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, position: Tensor | None, span: Tensor
) -> Tensor:
    """Forward pass that fills (``position`` is ``None``: a whole prompt) or extends (one token a row) the KV cache."""
    x = F.embedding(ids, weights.embedding)
    count, length = ids.shape
    rows = torch.arange(count, device=ids.device)
    mask = None if position is None else (span[None] <= position[:, None])[:, None, None]
    for index in range(CONFIG.layers):
        w = {name: weights.linear[name][index] for name in LINEARS}
        h = F.rms_norm(x, (CONFIG.width,), weights.norm1[index], CONFIG.eps)
        query = rotate(
            F.linear(h, w["self_attn.q_proj"]).view(count, length, CONFIG.heads, CONFIG.head).transpose(1, 2), cos, sin
        )
        key = rotate(
            F.linear(h, w["self_attn.k_proj"]).view(count, length, CONFIG.kv_heads, CONFIG.head).transpose(1, 2),
            cos,
            sin,
        )
        value = F.linear(h, w["self_attn.v_proj"]).view(count, length, CONFIG.kv_heads, CONFIG.head).transpose(1, 2)
        if position is None:
            cache[index, 0, :, :, :length], cache[index, 1, :, :, :length] = key, value
            seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            cache[index, 0, rows, :, position], cache[index, 1, rows, :, position] = key[:, :, 0], value[:, :, 0]
            grouped = query.view(count, CONFIG.kv_heads, -1, CONFIG.head)  # the heads that share keys, as rows
            seen = F.scaled_dot_product_attention(grouped, cache[index, 0], cache[index, 1], attn_mask=mask)
            seen = seen.reshape(count, CONFIG.heads, 1, CONFIG.head)
        x = x + F.linear(seen.transpose(1, 2).reshape(count, length, -1), w["self_attn.o_proj"])
        h = F.rms_norm(x, (CONFIG.width,), weights.norm2[index], CONFIG.eps)
        x = x + F.linear(F.silu(F.linear(h, w["mlp.gate_proj"])) * F.linear(h, w["mlp.up_proj"]), w["mlp.down_proj"])
    return F.rms_norm(x, (CONFIG.width,), weights.norm, CONFIG.eps)
