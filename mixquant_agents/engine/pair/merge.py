"""One turn's counts and times out of those of its two sides.

The prompt is the prefill side's: what it found cached, and the rows that it read. What the decode side got over the
connector counts there as cached, and is no row of the turn; the rows that it runs of the prompt all the same (its last
token at least) count as rows run again.
"""

from __future__ import annotations

from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["merged_counts", "merged_times"]


def merged_counts(prefill: TurnCounts | None, decode: TurnCounts | None) -> TurnCounts:
    """The counts of a turn that ``prefill`` read and ``decode`` answered. What one side does not tell is unknown."""
    read, wrote = prefill or TurnCounts(), decode or TurnCounts()
    prompt = read.prompt_tokens
    if prompt is None:
        prompt = wrote.prompt_tokens
    elif wrote.prompt_tokens not in (None, prompt):
        return TurnCounts(decode_tokens=wrote.decode_tokens, reasoning_tokens=wrote.reasoning_tokens)
    again = None
    if wrote.prefill_tokens is not None:
        # vLLM counts all of a prompt whose KV came as cached, and runs its last token all the same.
        again = max(1, wrote.prefill_tokens) + (read.recomputed_rows or 0) + (wrote.recomputed_rows or 0)
    preemptions = None
    if read.preemptions is not None and wrote.preemptions is not None:
        preemptions = read.preemptions + wrote.preemptions
    return TurnCounts(
        prompt_tokens=prompt,
        cached_tokens=read.cached_tokens,
        prefill_tokens=read.prefill_tokens,
        quantized_tokens=read.quantized_tokens,
        exact_tokens=read.exact_tokens,
        decode_tokens=wrote.decode_tokens,
        reasoning_tokens=wrote.reasoning_tokens,
        recomputed_rows=again,
        preemptions=preemptions,
    )


def merged_times(prefill: TurnTimes | None, decode: TurnTimes | None, own: TurnTimes) -> TurnTimes:
    """The times of a turn.

    Queue and prefill are the prefill side's. Transfer runs from its first token to the decode side's: the hand-over,
    the KV's way, the wait in the decode side's queue and the rows that it runs again. Where the prefill side has no
    times of its own, transfer runs from its answer.

    Args:
        own: what was measured around both.
    """
    read, wrote = prefill or TurnTimes(), decode or TurnTimes()
    ttft = own.ttft_seconds
    if ttft is None:
        return own
    delivery = wrote.delivery_seconds or 0.0
    update: dict[str, object] = {}
    if read.queue_seconds is not None and read.prefill_seconds is not None:
        transfer = ttft - read.queue_seconds - read.prefill_seconds - delivery
        if transfer >= 0:
            whole = read.queue_seconds + read.prefill_seconds + transfer + delivery
            update = {
                "queue_seconds": read.queue_seconds,
                "prefill_seconds": read.prefill_seconds,
                "transfer_seconds": transfer,
                "delivery_seconds": delivery,
                "ttft_seconds": whole,
                "total_seconds": max(own.total_seconds or 0.0, whole),
                "timing_source": "engine",
            }
    elif read.total_seconds is not None and ttft >= read.total_seconds:
        update = {"transfer_seconds": ttft - read.total_seconds}
    if wrote.timing_source == "engine":
        update |= {"decode_seconds": wrote.decode_seconds, "itl_mean_seconds": wrote.itl_mean_seconds}
    return own.model_copy(update=update)
