"""Keys and values in CPU memory, in virtual time: the next batch's come while this one computes, new ones go back.

Or they stay there, and the cores look at them.
"""

from collections import deque
from collections.abc import Mapping

from klotski.core import LaneName, Operation
from klotski.lanes import Event, Lane, SpanSink, VirtualClock, VirtualLane, VirtualWire
from klotski.pipeline import Batch
from klotski.planner import ModelFacts, Rates
from klotski.simulation.batch import SyntheticBatch

__all__ = ["HostCaches"]

KIND = "kv"  # of operations that move
LOOK = "attention"  # of those that look at what stays
FIRST = -1  # before blocks: a batch's turn comes before that of the experts that it will ask for


class HostCaches:
    """Caches that are moved, through so many slots on the device; see `pipeline.Caches`.

    `wire`: into the GPU, which blocks take as well. `cores`: who looks at what stays, for as long as `CoresDurations`
    says. `batches`: those under way, by index.
    """

    def __init__(
        self,
        facts: ModelFacts,
        rates: Rates,
        slots: int,
        wire: VirtualWire,
        cores: Lane,
        sink: SpanSink,
        clock: VirtualClock,
        batches: Mapping[int, SyntheticBatch],
    ) -> None:
        assert rates.link is not None and rates.back is not None, "there is no way to a GPU"
        link, back = rates.link, rates.back
        self.ahead = slots - 1
        self._layer_bytes = facts.kv_bytes / facts.num_layers
        self._batches = batches
        self._inward: Lane = VirtualLane(LaneName.KV_IN, sink, clock, lambda each: each.nbytes / link, 0.0, wire, FIRST)
        self._outward: Lane = VirtualLane(LaneName.KV_OUT, sink, clock, lambda each: each.nbytes / back)
        self._cores = cores
        self._free: deque[tuple[Event, ...]] = deque(() for _ in range(slots))
        self._brought: deque[tuple[int, int, tuple[Event, ...]]] = deque()  # batch, layer, arrival

    def bring(self, batch: Batch, layer: int) -> None:
        """Begin to bring what a batch keeps of a layer, into the slot that is free for longest; or let it stay."""
        one = self._batches[batch.index]
        if one.looks_below:
            self._brought.append((batch.index, layer, ()))
            return
        after = self._free.popleft()
        nbytes = int(one.sequences * one.seen * self._layer_bytes)
        arrival = after
        if nbytes:
            operation = Operation(KIND, layer, batch=batch.index, nbytes=nbytes)
            arrival = (self._inward.submit(operation, nothing, after),)
        self._brought.append((batch.index, layer, arrival))

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        """What the batch's attention has to wait for."""
        index, _, arrival = self._brought[0]
        assert index == batch.index, "caches are used in the order in which they were brought"
        return arrival

    def release(self, batch: Batch, use: Event) -> None:
        """After `use`, what the batch's tokens added goes back."""
        _, layer, _ = self._brought.popleft()
        nbytes = int(self._batches[batch.index].tokens * self._layer_bytes)
        operation = Operation(KIND, layer, batch=batch.index, nbytes=nbytes)
        self._free.append((self._outward.submit(operation, nothing, (use,)),))

    def attend(self, batch: Batch, layer: int, question: Event) -> Event:
        """After `question`, let the cores look at what stays."""
        self._brought.popleft()
        one = self._batches[batch.index]
        nbytes = int(one.sequences * one.seen * self._layer_bytes)
        operation = Operation(LOOK, layer, batch=batch.index, nbytes=nbytes, tokens=batch.tokens)
        return self._cores.submit(operation, nothing, (question,))

    def close(self) -> None:
        """Let all that waits have its time."""
        self._inward.close()
        self._outward.close()


def nothing() -> None:
    """What a transfer in virtual time does."""
