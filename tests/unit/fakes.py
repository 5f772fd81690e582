"""Small stand-ins for what surrounds the pipeline: a sink, a clock, a late disk, batches, a store."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from hypothesis import HealthCheck, settings

from klotski.core import DENSE, Block, Operation, Residents, Routing, Span
from klotski.lanes import Clock, Event, Lane, SpanSink
from klotski.pipeline import Batch
from klotski.weights.residency import Bring, Residency, SlotKind
from klotski.weights.window import Window

__all__ = [
    "BEHIND",
    "CheckingWorker",
    "Counts",
    "Entry",
    "FakeBatch",
    "FakeCaches",
    "FakeEvent",
    "FakeStore",
    "LateLane",
    "Sink",
    "examples",
    "ticks",
]

BEHIND = 1000
"""The layer of entries that come after all layers."""

Counts = tuple[int, ...] | None
"""Tokens for each expert of a layer; None where the layer has no experts."""


def examples(count: int) -> settings:
    """`count` examples, or `EXAMPLES` times as many (`make test-examples`); a busy machine is no reason to fail."""
    count *= int(os.environ.get("EXAMPLES", "1"))
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ticks() -> Clock:
    """A clock that goes on by one second whenever it is read."""
    counter = itertools.count()
    return lambda: float(next(counter))


class Sink:
    """Keeps spans and bubbles."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bubbles: list[Span] = []

    def span(self, span: Span) -> None:
        self.spans.append(span)

    def bubble(self, span: Span) -> None:
        self.bubbles.append(span)


class FakeEvent:
    """Comes when the test says so."""

    def __init__(self, *, done: bool = False) -> None:
        self.done = done

    def is_done(self) -> bool:
        return self.done

    def wait(self) -> None:
        assert self.done, "nobody would ever end this wait"


class LateLane(Lane):
    """Ends operations late: when `advance` says so, or when somebody waits for one of them."""

    def __init__(self, name: str, sink: SpanSink, clock: Clock) -> None:
        super().__init__(name, sink, clock)
        self._queue: deque[tuple[Operation, Callable[[], object], Sequence[Event], _LateEvent]] = deque()
        self._working = False

    def submit(self, operation: Operation, run: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        event = _LateEvent(self)
        self._queue.append((operation, run, after, event))
        return event

    def advance(self, count: int = 1) -> None:
        """End the next operations; from inside one, nothing."""
        if self._working:
            return
        self._working = True
        for _ in range(min(count, len(self._queue))):
            operation, run, after, event = self._queue[0]
            if any(isinstance(earlier, _LateEvent) and earlier.is_under_way() for earlier in after):
                break
            for earlier in after:
                earlier.wait()
            self._queue.popleft()
            self._run(operation, run)
            event.done = True
        self._working = False


class _LateEvent(FakeEvent):
    def __init__(self, lane: LateLane) -> None:
        super().__init__()
        self._lane = lane

    def is_under_way(self) -> bool:
        """Whether waiting for it would be waiting for oneself."""
        return not self.done and self._lane._working

    def wait(self) -> None:
        while not self.done:
            assert not self._lane._working, "nobody would ever end this wait"
            self._lane.advance()


class Entry(NamedTuple):
    """Something that happened, in the order of a log."""

    what: str
    layer: int
    expert: int = DENSE
    batch: int = -1

    @property
    def block(self) -> Block:
        return Block(self.layer, self.expert)


class FakeBatch:
    """Asks for what it is told to, step by step and layer by layer; a generator is its coroutine.

    `prompt`: tokens of each step that reads a piece of the prompt, the last of which gives the first
    output token, for which it stops at the head. `looks_below`: it stops in the attention of each token behind its
    prompt, until `answered`.
    """

    def __init__(
        self,
        index: int,
        steps: Sequence[Sequence[Counts]],
        visit: Callable[[Entry], None],
        prompt: Sequence[int] = (7,),
        *,
        looks_below: bool = False,
    ) -> None:
        self.index = index
        self.sequences = 1
        self.is_attending = False
        self.answered = False
        self.is_scoring = False
        self.is_finished = False
        self.is_prefilling = True
        self.tokens = prompt[0]
        self.pairs = prompt[0]
        self.padding = 0
        self.spared = 0
        self.output_tokens = 0
        self.cache_bytes = 0
        self.routing: Routing | None = None
        self.is_heard = True
        self.outlook: Sequence[float] | None = None
        self._steps = steps
        self._visit = visit
        self._prompt = prompt
        self._looks_below = looks_below
        self._life = self._live()

    def resume(self) -> None:
        assert not self.is_finished
        next(self._life, None)

    def _live(self) -> Iterator[None]:
        for number, step in enumerate(self._steps, start=1):
            for layer, counts in enumerate(step):
                yield
                self._visit(Entry("attention", layer, batch=self.index))
                if self._looks_below and not self.is_prefilling:
                    self.is_attending = True
                    yield
                    self.is_attending = False
                    assert self.answered, "it was resumed before its attention was computed"
                    self.answered = False
                    self._visit(Entry("project", layer, batch=self.index))
                if counts is not None:
                    self.routing = Routing(counts)
                    yield
                    self.routing = None
                    self._visit(Entry("finish", layer, batch=self.index))
            self.is_prefilling = number < len(self._prompt)
            if not self.is_prefilling:
                self.is_scoring = True
                yield
                self.is_scoring = False
                self._visit(Entry("sample", BEHIND, batch=self.index))
            self.tokens = self._prompt[number] if self.is_prefilling else 1
            self.output_tokens += not self.is_prefilling
            self.cache_bytes += 10
        self.is_finished = True


class FakeStore:
    """Slots that hold the name of a block and the number of its arrival, and notice misuse.

    `pause` is called in the middle of every use, so that others may do harm meanwhile. With a `link`, blocks come
    through a window of so many `places`.
    """

    def __init__(
        self,
        slots: Mapping[SlotKind, int],
        residents: Collection[Block],
        disk: Lane,
        log: list[Entry],
        pause: Callable[[], None] = lambda: None,
        lent: int = 0,
        cache: Residents = Residents.none,
        link: Lane | None = None,
        places: int = 0,
    ) -> None:
        self._places: list[Block | None] = [None] * places
        self.window: Window | None = None
        if link is not None:
            passes = set(residents).isdisjoint
            self.window = Window(places, disk, link, lambda block: passes({block}), self._operation, self._read)
        self.memory: dict[SlotKind, list[tuple[Block, int] | None]] = {
            kind: [None] * (count + lent * (kind is SlotKind.EXPERT)) for kind, count in slots.items()
        }
        self.residency = _WatchedResidency(self, log, slots, residents, self._bring, lent, cache)
        self._own = slots.get(SlotKind.EXPERT, 0)
        self._residents = residents
        self._is_needed = False  # the memory of lent slots, by whom it belongs to
        self._disk = disk
        self._log = log
        self._pause = pause
        self._tickets: dict[Block, int] = {}

    def use(self, block: Block) -> None:
        """Assert that the block is there, whole, from the first to the last moment of its use."""
        self._check(block)
        self._pause()
        self._check(block)

    def _check(self, block: Block) -> None:
        if block not in self._residents:
            found = self.memory[SlotKind.of(block)][self.residency.slot(block)]
            assert found == (block, self._tickets[block]), f"{found} lies where {block} should be"

    def _bring(self, block: Block, slot: int, after: Collection[Event]) -> Event:
        self._log.append(Entry("bring", block.layer, block.expert))
        kind = SlotKind.of(block)
        # A late arrival of a wrong guess must not pass for that of the block's next request.
        ticket = self._tickets[block] = self._tickets.get(block, 0) + 1

        def write() -> None:
            self._pause()
            assert not (kind is SlotKind.EXPERT and slot >= self._own and self._is_needed), (
                "written to what was withdrawn"
            )
            self.memory[kind][slot] = (block, ticket)

        if self.window is None:
            return self._disk.submit(self._operation(block), write, tuple(after))

        def lift(place: int) -> None:
            assert self._places[place] == block, f"{self._places[place]} was read where {block} should be"
            write()
            assert self._places[place] == block, f"{self._places[place]} was read over {block}"

        return self.window.carry(block, lift, after)

    def _read(self, block: Block, place: int) -> None:
        self._places[place] = None
        self._pause()
        self._places[place] = block

    def _operation(self, block: Block) -> Operation:
        return Operation(SlotKind.of(block), block.layer, block.expert, nbytes=1)

    def need_lent(self, *, is_needed: bool) -> None:
        """The owner of the lent slots' memory writes to it, until it says otherwise."""
        self._is_needed = is_needed
        lent = self.memory.get(SlotKind.EXPERT, [])[self._own :]
        if is_needed and lent:
            self.memory[SlotKind.EXPERT][self._own :] = [None] * len(lent)


class _WatchedResidency(Residency):
    """Poisons what is released, counts what is held, and logs what is lost."""

    def __init__(
        self,
        store: FakeStore,
        log: list[Entry],
        slots: Mapping[SlotKind, int],
        residents: Collection[Block],
        bring: Bring,
        lent: int,
        cache: Residents,
    ) -> None:
        super().__init__(slots, residents, bring, lent, cache)
        self._store = store
        self._log = log

    def withdraw(self) -> frozenset[Block]:
        lost = super().withdraw()
        self._log += [Entry("lost", block.layer, block.expert) for block in sorted(lost)]
        self.check_integrity()
        return lost

    def request(self, block: Block) -> None:
        super().request(block)
        for kind, memory in self._store.memory.items():
            assert sum(SlotKind.of(held) is kind for held in self.held()) <= len(memory)
        self.check_integrity()

    def release(self, block: Block, last_use: Event | None = None) -> None:
        super().release(block, last_use)
        self.check_integrity()

    def _free_slot(self, block: Block) -> None:
        if self.arrival(block)[0].is_done():
            self._store.memory[SlotKind.of(block)][self.slot(block)] = None
        super()._free_slot(block)


class FakeCaches:
    """Slots that hold whose keys and values of which layer they are, and notice if they are used early or late.

    `stay`: those of batches that have read their prompts need none, and are looked at on the lane.
    """

    def __init__(self, slots: int, lane: Lane, *, stay: bool = False) -> None:
        self.ahead = slots - 1
        self._lane = lane
        self._stay = stay
        self._memory: list[tuple[int, int] | None] = [None] * slots
        self._free: deque[tuple[int, tuple[Event, ...]]] = deque((slot, ()) for slot in range(slots))
        # Batch, layer, slot (None: it stays), arrival.
        self._brought: deque[tuple[int, int, int | None, tuple[Event, ...]]] = deque()

    def bring(self, batch: Batch, layer: int) -> None:
        if self._stay and not batch.is_prefilling:
            self._brought.append((batch.index, layer, None, ()))
            return
        slot, after = self._free.popleft()

        def write() -> None:
            assert self._memory[slot] is None, "what was here has not gone back yet"
            self._memory[slot] = batch.index, layer

        event = self._lane.submit(Operation("in", layer, batch=batch.index), write, after)
        self._brought.append((batch.index, layer, slot, (event,)))

    def arrival(self, batch: Batch) -> tuple[Event, ...]:
        assert self._brought[0][0] == batch.index
        return self._brought[0][3]

    def use(self, batch: int, layer: int) -> None:
        """Assert that attention finds its own."""
        slot = self._brought[0][2]
        assert slot is None or self._memory[slot] == (batch, layer)

    def attend(self, batch: Batch, layer: int, question: Event) -> Event:
        assert self._brought.popleft() == (batch.index, layer, None, ())
        one = cast("FakeBatch", batch)
        assert one.is_attending and not one.answered

        def answer() -> None:
            one.answered = True

        return self._lane.submit(Operation("attention", layer, batch=batch.index), answer, (question,))

    def release(self, batch: Batch, use: Event) -> None:
        index, layer, slot, _ = self._brought.popleft()
        assert index == batch.index and slot is not None

        def clear() -> None:
            self._memory[slot] = None

        self._free.append((slot, (self._lane.submit(Operation("out", layer, batch=index), clear, (use,)),)))

    def close(self) -> None:
        assert not self._brought, "something was brought that nobody used"


class CheckingWorker:
    """Logs what it is asked for, and asserts that the blocks are there.

    Where a group has more than `few` tokens it needs the memory of lent slots while it has experts to compute.
    """

    def __init__(self, store: FakeStore, log: list[Entry], few: int = 0) -> None:
        self._store = store
        self._log = log
        self._few = few
        self._left: dict[int, bool] = {}  # experts that are computed below, and whether they have been

    def enter(self, layer: int) -> None:
        self._store.use(Block(layer))
        self._log.append(Entry("enter", layer))

    def gather(self, layer: int, group: Sequence[Batch], below: Sequence[int]) -> None:
        assert not self._left, "what was computed below was not brought back"
        self._left = dict.fromkeys(below, False)
        assert all(batch.routing is not None for batch in group)
        self._store.need_lent(is_needed=sum(batch.tokens for batch in group) > self._few)
        self._log.append(Entry("gather", layer))
        self._log += [Entry("left", layer, expert) for expert in below]

    def compute(self, layer: int, expert: int) -> None:
        self._store.use(Block(layer, expert))
        self._log.append(Entry("expert", layer, expert))

    def compute_together(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self.compute(layer, expert)

    def compute_below(self, layer: int, expert: int) -> None:
        assert not self._left[expert], "it was computed already"
        self._left[expert] = True
        self._log.append(Entry("below", layer, expert))

    def answer(self, layer: int) -> None:
        assert all(self._left.values()), "not all has been computed"
        self._left = {}
        self._log.append(Entry("answer", layer))

    def combine(self, layer: int) -> None:
        assert not self._left, "what was computed below was not brought back"
        self._store.need_lent(is_needed=False)
        self._log.append(Entry("combine", layer))

    def score(self, batches: Sequence[Batch]) -> None:
        assert all(batch.is_scoring for batch in batches)
        self._log.append(Entry("score", BEHIND, batch=len(batches)))
