"""Where blocks come from, in virtual time: disk, or CPU memory and, for what it has no room for, disk."""

from collections.abc import Callable, Collection, Sequence, Set
from math import inf

from klotski.core import Block, LaneName, Operation
from klotski.lanes import PIECE, Event, SpanSink, VirtualClock, VirtualLane, VirtualWire
from klotski.planner import ModelFacts, Rates, first_blocks
from klotski.planner.costs import CROWDED
from klotski.weights.residency import SlotKind
from klotski.weights.window import Window

__all__ = ["Supply"]


class Supply:
    """The lanes that blocks arrive on; `bring` is what `Residency` starts a transfer with.

    Without a link (`rates.link`) blocks come from disk, the more slowly the more the cores are at work (`load`, a
    share of their time). With one, those that `host` bytes hold, in `order`, come from CPU memory; the others are read
    into a window of so many `places` of CPU memory first, before they are sent for if they are expected.
    """

    def __init__(
        self,
        facts: ModelFacts,
        rates: Rates,
        order: Sequence[Block],
        host: int,
        sink: SpanSink,
        clock: VirtualClock,
        load: Callable[[], float] = lambda: 0.0,
        places: int = 1,
    ) -> None:
        self._rates = rates
        self._operations = {
            block: Operation(SlotKind.of(block), block.layer, block.expert, nbytes=nbytes)
            for block, nbytes in facts.stored_bytes.items()
        }
        self._load = load
        self._disk = VirtualLane(LaneName.DISK, sink, clock, self._reading, rates.start)
        self._link: VirtualLane | None = None
        self.wire = VirtualWire(sink, clock, PIECE / rates.link if rates.link else inf)
        """Into the GPU, if there is one."""
        self.below: Set[Block] = frozenset()
        """What lies in CPU memory below a GPU for the whole run."""
        if (speed := rates.link) is not None:
            self._link = VirtualLane(
                LaneName.LINK, sink, clock, lambda operation: operation.nbytes / speed, 0.0, self.wire
            )
            self.below = frozenset(first_blocks(facts, order, host))
            self.window = Window(
                places, self._disk, self._link, self._is_on_disk, self._operations.__getitem__, nothing
            )

    @property
    def is_reading(self) -> bool:
        """Whether blocks are being written to the memory that the cores compute from."""
        return self._link is None and self._disk.is_busy

    def load(self, residents: Collection[Block]) -> None:
        """Bring what stays; returns when it is here, and all of that has been told."""
        for arrival in [self.bring(block, 0, ()) for block in residents]:
            arrival.wait()
        self.settle()

    def settle(self) -> None:
        """Let all that waits have its time."""
        self._disk.settle()
        self.wire.settle()

    def _reading(self, operation: Operation) -> float:
        crowded = CROWDED * self._load() if self._rates.link is None else 0.0
        return operation.nbytes / self._rates.disk * (1 + crowded)

    def bring(self, block: Block, slot: int, after: Collection[Event]) -> Event:
        """Start a transfer."""
        del slot
        operation = self._operations[block]
        if self._link is None:
            return self._disk.submit(operation, nothing, tuple(after))
        if block in self.below:
            return self._link.submit(operation, nothing, tuple(after))
        return self.window.carry(block, nothing, after)

    def _is_on_disk(self, block: Block) -> bool:
        return block not in self.below


def nothing(*_: object) -> None:
    """What a transfer in virtual time does."""
