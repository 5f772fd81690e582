"""Who a sweep deals with: batches, the worker, where keys and values are, what is read ahead, what lies below."""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple, Protocol

from klotski.core import Block, Routing
from klotski.lanes import Event, Lane
from klotski.pipeline.cores_pace import CoresPace

__all__ = ["Ahead", "Batch", "Below", "Caches", "CachesAtHand", "NothingAhead", "Worker"]


class Batch(Protocol):
    """Sequences decoded together: a coroutine that stops where the pipeline has to choose."""

    index: int

    @property
    def sequences(self) -> int:
        """Sequences that it has, with those that have ended."""

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has ended; never true inside a sweep."""

    @property
    def is_prefilling(self) -> bool:
        """Whether the step that it is in reads prompts, rather than one new token of each sequence."""

    @property
    def tokens(self) -> int:
        """Tokens that go through the layers in the step that it is in."""

    @property
    def pairs(self) -> int:
        """Pairs of one of these tokens and one that it looks at, in all layers."""

    @property
    def spared(self) -> int:
        """Those of these tokens of which the last layer only keeps keys and values."""

    @property
    def output_tokens(self) -> int:
        """Tokens that its sequences have been given so far; padding after an end does not count."""

    @property
    def padding(self) -> int:
        """Tokens of padding so far, over all layers, about which no experts were asked."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of its KV cache, or of whatever state its layers keep."""

    @property
    def routing(self) -> Routing | None:
        """What it asks for, if it has stopped at a layer's experts; None at a layer's entry. May have to wait."""

    @property
    def is_heard(self) -> bool:
        """Whether `routing` is known by now; a device that computes on its own says later what it found."""

    @property
    def outlook(self) -> Sequence[float] | None:
        """At a layer's entry, tokens that its router would give each expert already; None: it was not asked."""

    @property
    def is_scoring(self) -> bool:
        """Whether it has stopped behind the last layer, where its next tokens are to be scored."""

    @property
    def is_attending(self) -> bool:
        """Whether it has stopped inside of a layer's attention, which is computed where keys and values are."""

    def resume(self) -> None:
        """Go on to the next stop: attention, the layer's experts, the next layer, the head, or the end."""


class Worker(Protocol):
    """Does what operations on the compute lane stand for."""

    def enter(self, layer: int) -> None:
        """The layer's dense part is here: make the model use it."""

    def gather(self, layer: int, group: Sequence[Batch], below: Sequence[int]) -> None:
        """Sort the tokens of all batches by the experts that they chose; those of experts `below` go there."""

    def compute(self, layer: int, expert: int) -> None:
        """Compute one expert over its tokens."""

    def compute_together(self, layer: int, experts: Sequence[int]) -> None:
        """Compute several experts that stay for the whole run, each over its tokens."""

    def compute_below(self, layer: int, expert: int) -> None:
        """Compute one expert over its tokens where it lies. Not on the compute lane, but on that of the cores."""

    def answer(self, layer: int) -> None:
        """Bring back what came of all experts that were computed below."""

    def combine(self, layer: int) -> None:
        """Sum the experts' outputs and hand each batch its own."""

    def score(self, batches: Sequence[Batch]) -> None:
        """Give each of these batches the scores of its next tokens."""


class Below(NamedTuple):
    """Experts that can be computed where they lie, in CPU memory below a device, instead of being moved.

    `lane`: of the cores that do it. `blocks`: those that are there for the whole run. `pace`: how fast they are at it.
    """

    lane: Lane
    blocks: Set[Block]
    pace: CoresPace


class Caches(Protocol):
    """Where the keys and values of batches are; one layer's at a time are brought to where arithmetic happens.

    `ahead`: how many may be brought before their turn. Each is brought, used once, and released, in one order.
    """

    ahead: int

    def bring(self, batch: Batch, layer: int) -> None:
        """Begin to bring what a batch keeps of a layer."""

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        """What the batch's attention has to wait for, in the layer that was brought for it."""

    def release(self, batch: Batch, use: Event) -> None:
        """What was brought has been used, and added to: after `use` that goes back."""

    def attend(self, batch: Batch, layer: int, question: Event) -> Event:
        """After `question`, compute a batch's attention where its keys and values are; returns when that is done.

        In the place of `release`, for a batch that is attending.
        """

    def close(self) -> None:
        """No batch is under way any more."""


class CachesAtHand:
    """Keys and values stay where arithmetic happens, so that nothing has to be moved."""

    ahead = 0

    def bring(self, batch: Batch, layer: int) -> None:
        """Nothing."""

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        """Nothing to wait for."""
        return ()

    def release(self, batch: Batch, use: Event) -> None:
        """Nothing."""

    def attend(self, batch: Batch, layer: int, question: Event) -> Event:
        """Never called: what is at hand is looked at on the way."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing."""


class Ahead(Protocol):
    """Memory between the disk and a device, into which blocks are read before the device has a slot for them."""

    @property
    def has_room(self) -> bool:
        """Whether more could be read early than is expected so far."""

    def expect(self, blocks: Iterable[Block], *, is_urgent: bool = False) -> None:
        """These will be sent for, in this order: after all that was expected before, or before it."""

    def read_on(self) -> None:
        """Begin to read what is expected, as far as there is room and the disk has nothing else to do."""

    def forget(self, layer: int) -> None:
        """What was expected of a layer, and has not been sent for, will not be."""

    def close(self) -> None:
        """Nothing is expected any more; returns when nothing is being read."""


class NothingAhead:
    """Blocks are read to where they are used, and never early."""

    has_room = False

    def expect(self, blocks: Iterable[Block], *, is_urgent: bool = False) -> None:
        """Nothing."""

    def read_on(self) -> None:
        """Nothing."""

    def forget(self, layer: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
