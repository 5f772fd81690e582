"""Which blocks are here, which are on their way, and which slot each has.

Bookkeeping only: no memory, no I/O, no torch. A block is absent, coming, or here. Residents are
here for the whole run. The others come with `request` and go with `release`; a slot that was
released may be refilled once the last use of the block in it has ended.

Some slots for experts may be lent: their memory is needed for something else at times. They are
used between `lend` and `withdraw` only, and what lies in them then is lost.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Set
from enum import StrEnum

from klotski.core import DENSE, Block
from klotski.lanes import Event

__all__ = ["Bring", "Residency", "SlotKind"]


class SlotKind(StrEnum):
    """Slots are of two sizes."""

    DENSE = "dense"
    EXPERT = "expert"

    @classmethod
    def of(cls, block: Block) -> "SlotKind":
        """The kind of slot that a block needs."""
        return cls.DENSE if block.is_dense else cls.EXPERT


Bring = Callable[[Block, int, Collection[Event]], Event]
"""(block, slot, events to wait for) -> the block's arrival; starts the transfer."""


class Residency:
    """Hands out slots; see the module's docstring for the life of a block."""

    def __init__(
        self, slots: Mapping[SlotKind, int], residents: Collection[Block], bring: Bring, lent: int = 0
    ) -> None:
        """`lent`: slots for experts beyond those of `slots`, not lent yet; their numbers come last."""
        self._bring = bring
        self._residents = frozenset(residents)
        self._resident_experts: dict[int, set[int]] = defaultdict(set)
        for layer, expert in self._residents:
            self._resident_experts[layer] |= {expert} - {DENSE}
        self._slots: dict[Block, int] = {}
        self._arrivals: dict[Block, Event] = {}
        # A free slot, with the event after which it may be overwritten. First freed, first used:
        # its last use is the likeliest to have ended.
        self._free: dict[SlotKind, deque[tuple[int, tuple[Event, ...]]]] = {
            kind: deque((slot, ()) for slot in range(slots.get(kind, 0))) for kind in SlotKind
        }
        self._count = {kind: slots.get(kind, 0) for kind in SlotKind}
        self._withdrawn = list(range(self._count[SlotKind.EXPERT], self._count[SlotKind.EXPERT] + lent))
        self._lent: list[int] = []

    def resident_experts(self, layer: int) -> Set[int]:
        """The experts of a layer that stay for the whole run."""
        return self._resident_experts[layer]

    def is_known(self, block: Block) -> bool:
        """Whether the block is here or coming."""
        return block in self._residents or block in self._arrivals

    def has_free_slot(self, block: Block) -> bool:
        """Whether `request` of this block could be answered now."""
        return bool(self._free[SlotKind.of(block)])

    def request(self, block: Block) -> None:
        """Send for a block that is absent, into a slot that is free."""
        assert not self.is_known(block), f"{block} was sent for twice"
        slot, uses = self._free[SlotKind.of(block)].popleft()
        self._slots[block] = slot
        self._arrivals[block] = self._bring(block, slot, uses)

    def arrival(self, block: Block) -> tuple[Event, ...]:
        """What a use of the block has to wait for."""
        return () if block in self._residents else (self._arrivals[block],)

    def sent_for(self) -> list[tuple[Block, bool]]:
        """Blocks that occupy a slot, in the order in which they were sent for, and whether each has come."""
        return [(block, arrival.is_done()) for block, arrival in self._arrivals.items()]

    def slot(self, block: Block) -> int:
        """The slot of a block that was requested and not released."""
        return self._slots[block]

    def release(self, block: Block, last_use: Event | None = None) -> None:
        """Give up a block after `last_use` (None: it was never used). Residents stay."""
        if block in self._residents:
            return
        arrival = self._arrivals.pop(block)
        slot = self._slots.pop(block)
        self._free[SlotKind.of(block)].append((slot, (last_use or arrival,)))

    def lend(self, after: Collection[Event] = ()) -> None:
        """Let the lent slots be used after these events; nothing if they are already."""
        self._free[SlotKind.EXPERT].extend((slot, tuple(after)) for slot in self._withdrawn)
        self._lent += self._withdrawn
        self._withdrawn = []

    def withdraw(self) -> frozenset[Block]:
        """Take the lent slots out of use; returns the blocks that were lost, once nobody uses or fills such a slot."""
        lost = frozenset(block for block, slot in self._slots.items() if slot in self._lent and not block.is_dense)
        for block in lost:
            self.release(block)
        free = self._free[SlotKind.EXPERT]
        for slot, events in [entry for entry in free if entry[0] in self._lent]:
            for event in events:
                event.wait()
            free.remove((slot, events))
        self._withdrawn += self._lent
        self._lent = []
        return lost

    def held(self) -> frozenset[Block]:
        """Blocks that occupy a slot now; residents apart."""
        return frozenset(self._slots)

    def wait_for_free_slots(self) -> None:
        """Return when no free slot is still being filled or used."""
        for free in self._free.values():
            for _, events in free:
                for event in events:
                    event.wait()

    def check_integrity(self) -> None:
        """Assert that every slot is either free or holds exactly one block."""
        for kind, free in self._free.items():
            held = [slot for block, slot in self._slots.items() if SlotKind.of(block) is kind]
            lent = self._lent if kind is SlotKind.EXPERT else []
            assert sorted([*held, *(slot for slot, _ in free)]) == [*range(self._count[kind]), *lent], kind
        assert self._slots.keys() == self._arrivals.keys()
