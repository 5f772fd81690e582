"""Keys and values in CPU memory below a device: the next batch's come while this one computes, new ones go back.

Or they stay where they are, once prompts have been read, and attention of each new token is computed there, on the
cores: what crosses the link then is a query and its answer.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast
from weakref import ReferenceType, WeakKeyDictionary

import torch

from klotski.core import Operation
from klotski.executors.devices import Device
from klotski.lanes import Event, Lane
from klotski.model import GenerationBatch, MovingLayer
from klotski.pipeline import Batch

__all__ = ["CachePlaces", "MovingCaches", "Place"]

KIND = "kv"  # of operations that move
LOOK = "attention"  # of those that look at what stays

Pieces = Sequence[tuple[torch.Tensor, torch.Tensor]]


class CachePlaces:
    """CPU memory for all that batches keep, taken once: `count` places of `nbytes`.

    A batch has one from when it first keeps something until it has ended. What it sent back last may still be on its
    way when another has its place: that other's comes behind it, on the same lane.
    """

    def __init__(self, count: int, nbytes: int, allocate: Callable[[int], torch.Tensor]) -> None:
        self.nbytes = count * nbytes
        self._free = deque(torch.unbind(allocate(self.nbytes).view(count, nbytes)))
        self._taken: list[tuple[ReferenceType[Batch], torch.Tensor]] = []

    def take(self, owner: "ReferenceType[Batch]") -> torch.Tensor:
        """A place (uint8) for a batch that has none."""
        going = [(other, place) for other, place in self._taken if is_going(other())]
        self._free.extend(place for other, place in self._taken if not is_going(other()))
        assert self._free, "more batches are under way than were planned"
        self._taken = [*going, (owner, self._free[0])]
        return self._free.popleft()


def is_going(batch: Batch | None) -> bool:
    """Whether a batch is there and has not ended."""
    return batch is not None and not batch.is_finished


class Place:
    """What a batch keeps its keys and values in, layer after layer. `owner`: that batch, once it is there."""

    owner: "ReferenceType[Batch]"

    def __init__(self, places: CachePlaces) -> None:
        self._places = places
        self._rest: torch.Tensor | None = None

    def allocate(self, nbytes: int) -> torch.Tensor:
        """So many bytes of it (uint8)."""
        if self._rest is None:
            self._rest = self._places.take(self.owner)
        assert nbytes <= len(self._rest), "a batch keeps more than was planned"
        piece, self._rest = torch.split(self._rest, [nbytes, len(self._rest) - nbytes])
        return piece


class Brought(NamedTuple):
    """What a batch keeps of a layer, where it will be looked at.

    `layer`: None, if it is on the device anyway. `slot`: None, if it stays in CPU memory. `arrival`: what to wait for.
    """

    batch: int
    number: int
    layer: MovingLayer | None
    slot: torch.Tensor | None
    arrival: tuple[Event, ...]


class MovingCaches:
    """Caches that are moved, through `slots` slots of `nbytes` on the device; see `pipeline.Caches`.

    `cores`: the lane of attention over what stays once prompts have been read; None: nothing does.
    """

    def __init__(
        self, slots: int, nbytes: int, device: Device, inward: Lane, outward: Lane, cores: Lane | None = None
    ) -> None:
        self.ahead = slots - 1
        self._device = device
        self._inward = inward
        self._outward = outward
        self._cores = cores
        memory = device.allocate(slots * nbytes).view(slots, nbytes)
        self._free: deque[tuple[torch.Tensor, tuple[Event, ...]]] = deque((slot, ()) for slot in memory)
        self._brought: deque[Brought] = deque()
        # When what a layer of a batch sent back last is there; forgotten with the batch.
        self._home: WeakKeyDictionary[MovingLayer, Event] = WeakKeyDictionary()

    def bring(self, batch: Batch, layer: int) -> None:
        """Begin to bring what a batch keeps of a layer, into the slot that is free for longest; or let it stay."""
        kept = cast("GenerationBatch", batch).cache.layers[layer]
        moving = kept if isinstance(kept, MovingLayer) else None
        if moving is not None and self._cores is not None and not batch.is_prefilling:
            moving.stay()
            self._brought.append(Brought(batch.index, layer, moving, None, ()))
            return
        slot, arrival = self._free.popleft()
        if moving is not None:
            moving.lend(slot)
            home = self._home.pop(moving, None)
            if home is not None:
                pieces = moving.ahead
                operation = Operation(KIND, layer, batch=batch.index, nbytes=sum(to.nbytes for to, _ in pieces))
                arrival = (self._inward.submit(operation, partial(self._copy, pieces), (*arrival, home)),)
        self._brought.append(Brought(batch.index, layer, moving, slot, arrival))

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        """What the batch's attention has to wait for."""
        assert self._brought[0].batch == batch.index, "caches are used in the order in which they were brought"
        return self._brought[0].arrival

    def release(self, batch: Batch, use: Event) -> None:
        """After `use`, what the batch's tokens added goes back."""
        used = self._brought.popleft()
        assert used.slot is not None, "attention passed by what stays in CPU memory"
        after = use
        if used.layer is not None:
            pieces = used.layer.behind
            operation = Operation(KIND, used.number, batch=used.batch, nbytes=sum(to.nbytes for to, _ in pieces))
            after = self._outward.submit(operation, partial(self._copy, pieces), (use,))
            self._home[used.layer] = after
            used.layer.recall()
        self._free.append((used.slot, (after,)))

    def attend(self, batch: Batch, layer: int, question: Event) -> Event:
        """After `question`, let the cores look at what stays, once what prompts sent back is there."""
        asked = self._brought.popleft()
        assert asked.layer is not None and self._cores is not None, "what moves is looked at on the device"
        home = self._home.pop(asked.layer, None)
        nbytes = asked.layer.keys.nbytes + asked.layer.values.nbytes
        operation = Operation(LOOK, layer, batch=batch.index, nbytes=nbytes, tokens=batch.tokens)
        after = (question,) if home is None else (question, home)
        return self._cores.submit(operation, cast("GenerationBatch", batch).attend, after)

    def close(self) -> None:
        """No batch is under way any more."""
        assert not self._brought, "something was brought that nobody used"

    def _copy(self, pieces: Pieces) -> None:
        with torch.inference_mode():  # in which the batches took the memory, on another thread
            for target, source in pieces:
                self._device.copy(target, source)
