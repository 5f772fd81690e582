"""Which blocks are here, which are on their way, and which slot each has.

Bookkeeping only: no memory, no I/O, no torch. A block is absent, coming, or here. Residents are
here for the whole run. The others come with `request` and go with `release`; a slot that was
released may be refilled once the last use of the block in it has ended.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum

from klotski.core import Block
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

    def __init__(self, slots: Mapping[SlotKind, int], residents: Collection[Block], bring: Bring) -> None:
        self._bring = bring
        self._residents = frozenset(residents)
        self._slots: dict[Block, int] = {}
        self._arrivals: dict[Block, Event] = {}
        # A free slot, with the event after which it may be overwritten. First freed, first used:
        # its last use is the likeliest to have ended.
        self._free: dict[SlotKind, deque[tuple[int, tuple[Event, ...]]]] = {
            kind: deque((slot, ()) for slot in range(slots.get(kind, 0))) for kind in SlotKind
        }
        self._count = {kind: slots.get(kind, 0) for kind in SlotKind}

    def is_resident(self, block: Block) -> bool:
        """Whether the block stays for the whole run."""
        return block in self._residents

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
            assert sorted([*held, *(slot for slot, _ in free)]) == list(range(self._count[kind])), kind
        assert self._slots.keys() == self._arrivals.keys()
