"""The group: n batches in flight, refilled as they end.

A batch that ends leaves after its last sweep, and the next one waiting takes its place in the
sweep that follows: its prefill shares that sweep's blocks with the decoding of the others.
"""

from collections.abc import Callable, Iterator

from klotski.core import Compute, Operation, SweepReport
from klotski.lanes import Clock, Lane
from klotski.pipeline.sweep import Batch, Sweeper

__all__ = ["run_group"]


def run_group(
    batches: Iterator[Batch],
    n: int,
    sweeper: Sweeper,
    compute: Lane,
    clock: Clock,
    on_sweep: Callable[[SweepReport], None],
) -> None:
    """Take all batches through to their end, at most `n` at a time; `on_sweep` hears of each sweep."""
    group: list[Batch] = []
    index = 0
    begin = clock()
    while True:
        while len(group) < n and (batch := next(batches, None)) is not None:
            compute.submit(Operation(Compute.START, 0, batch=batch.index), batch.resume)
            group.append(batch)
        if not group:
            break
        prefill = sum(batch.tokens for batch in group if batch.is_prefilling)
        tokens = sum(batch.tokens for batch in group)
        made = sum(batch.output_tokens for batch in group)
        sweeper.sweep(group)
        made = sum(batch.output_tokens for batch in group) - made
        cache = sum(batch.cache_bytes for batch in group)
        going = [batch for batch in group if not batch.is_finished]
        end = clock()
        on_sweep(SweepReport(index, begin, end, len(group), prefill, tokens - prefill, made, cache))
        group, begin, index = going, end, index + 1
    sweeper.close()
