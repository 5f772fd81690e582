"""The group: n batches in flight, refilled as they end.

A batch that ends leaves after its last sweep, and the next one waiting takes its place in the
sweep that follows: its prefill shares that sweep's blocks with the decoding of the others. Only so
many tokens of prompts go into one sweep: their activations have a bound, whatever the group's size.
"""

from collections.abc import Callable, Iterator

from klotski.core import Compute, Operation, SweepReport
from klotski.lanes import Clock, Lane
from klotski.pipeline.contracts import Batch
from klotski.pipeline.sweep import Sweeper

__all__ = ["run_group"]


def run_group(
    batches: Iterator[Batch],
    n: int,
    prefill_tokens: int,
    sweeper: Sweeper,
    compute: Lane,
    clock: Clock,
    on_sweep: Callable[[SweepReport], None],
) -> None:
    """Take all batches through to their end; `on_sweep` hears of each sweep.

    At most `n` at a time, with at most `prefill_tokens` of their prompts in one sweep; a batch that
    has more in its first step goes without others that prefill.
    """
    group: list[Batch] = []
    waiting = next(batches, None)
    index = 0
    begin = clock()
    while group or waiting is not None:
        room = prefill_tokens - sum(batch.tokens for batch in group if batch.is_prefilling)
        while waiting is not None and len(group) < n and (waiting.tokens <= room or room == prefill_tokens):
            compute.submit(Operation(Compute.START, 0, batch=waiting.index), waiting.resume)
            group.append(waiting)
            room -= waiting.tokens
            waiting = next(batches, None)
        prefill = sum(batch.tokens for batch in group if batch.is_prefilling)
        tokens = sum(batch.tokens for batch in group)
        pairs, spared = sum(batch.pairs for batch in group), sum(batch.spared for batch in group)
        made, padding = sum(batch.output_tokens for batch in group), sum(batch.padding for batch in group)
        sweeper.sweep(group)
        made = sum(batch.output_tokens for batch in group) - made
        padding = sum(batch.padding for batch in group) - padding
        cache = sum(batch.cache_bytes for batch in group)
        going = [batch for batch in group if not batch.is_finished]
        end = clock()
        decode = tokens - prefill
        on_sweep(SweepReport(index, begin, end, len(group), prefill, decode, made, cache, pairs, spared, padding))
        group, begin, index = going, end, index + 1
    sweeper.close()
