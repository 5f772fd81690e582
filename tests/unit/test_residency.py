"""Slots: handed out, never shared, given back; residents stay."""

from collections.abc import Collection

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klotski.core import Block, Residents
from klotski.lanes import Event
from klotski.weights.residency import Residency, SlotKind
from tests.unit.fakes import FakeEvent, examples

BLOCKS = [Block(layer, expert) for layer in range(3) for expert in range(-1, 4)]
SLOTS = {SlotKind.DENSE: 2, SlotKind.EXPERT: 3}


class Transfers:
    """A `Bring` that keeps what it was asked for."""

    def __init__(self) -> None:
        self.brought: list[tuple[Block, int, tuple[Event, ...]]] = []
        self.arrivals: dict[Block, FakeEvent] = {}

    def __call__(self, block: Block, slot: int, after: Collection[Event]) -> Event:
        self.brought.append((block, slot, tuple(after)))
        self.arrivals[block] = FakeEvent()
        return self.arrivals[block]


@given(
    st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(["request", "arrive", "release", "drop"]))),
    st.sets(st.sampled_from(BLOCKS)),
    st.fixed_dictionaries({kind: st.integers(1, 3) for kind in SlotKind}),
)
@example(
    [(Block(0, 1), "request"), (Block(0, 0), "request"), (Block(0, 0), "arrive")],
    set(),
    {SlotKind.DENSE: 1, SlotKind.EXPERT: 2},
)
@examples(150)
def test_any_sequence_of_requests_and_releases_leaves_every_slot_accounted_for(
    steps: list[tuple[Block, str]], residents: set[Block], slots: dict[SlotKind, int]
) -> None:
    transfers = Transfers()
    residency = Residency(slots, residents, transfers)
    held: set[Block] = set()
    last_use: dict[tuple[SlotKind, int], Event] = {}
    for block, step in steps:
        kind = SlotKind.of(block)
        if step == "request" and not residency.is_known(block) and residency.has_free_slot(block):
            residency.request(block)
            held.add(block)
            _, slot, after = transfers.brought[-1]
            assert slot == residency.slot(block)
            expected = last_use.get((kind, slot))
            assert after == (() if expected is None else (expected,))
        elif step == "arrive" and block in held:
            transfers.arrivals[block].done = True
        elif step in ("release", "drop") and (block in held or block in residents):
            use = FakeEvent() if step == "release" else None
            if block in held:
                last_use[kind, residency.slot(block)] = use or transfers.arrivals[block]
            residency.release(block, use)
            held.discard(block)
        residency.check_integrity()
        assert residency.held() == held
        for kind in SlotKind:
            taken = [residency.slot(block) for block in held if SlotKind.of(block) is kind]
            assert len(set(taken)) == len(taken) <= slots[kind]
            assert set(taken) <= set(range(slots[kind]))
        for layer in range(3):
            experts = [block for block in held if block.layer == layer and not block.is_dense]
            assert {*residency.arrived(layer), *residency.coming(layer)} == {block.expert for block in experts}
            assert all(transfers.arrivals[Block(layer, expert)].done for expert in residency.arrived(layer))
        for block in BLOCKS:
            assert residency.is_known(block) == (block in residents or block in held)
            assert residency.has_free_slot(block) == (
                sum(SlotKind.of(other) is SlotKind.of(block) for other in held) < slots[SlotKind.of(block)]
            )
    assert not residents & {block for block, _, _ in transfers.brought}


def test_a_block_is_on_its_way_until_it_has_arrived() -> None:
    transfers = Transfers()
    residency = Residency(SLOTS, (), transfers)
    for expert in (2, 0, 1):
        residency.request(Block(0, expert))
    assert (residency.arrived(0), list(residency.coming(0))) == ([], [2, 0, 1])
    transfers.arrivals[Block(0, 2)].done = True
    assert (residency.arrived(0), list(residency.coming(0))) == ([2], [0, 1])
    assert (residency.arrived(1), list(residency.coming(1))) == ([], [])
    assert residency.arrival(Block(0, 2)) == (transfers.arrivals[Block(0, 2)],)


def test_dense_parts_and_experts_do_not_compete_for_slots() -> None:
    residency = Residency({SlotKind.DENSE: 1, SlotKind.EXPERT: 1}, (), Transfers())
    residency.request(Block(0))
    assert not residency.has_free_slot(Block(1))
    assert residency.has_free_slot(Block(0, 0))


def test_a_slot_is_refilled_after_its_last_use() -> None:
    transfers = Transfers()
    residency = Residency({SlotKind.EXPERT: 1}, (), transfers)
    residency.request(Block(0, 0))
    use = FakeEvent()
    residency.release(Block(0, 0), use)
    residency.request(Block(0, 1))
    assert transfers.brought[-1] == (Block(0, 1), 0, (use,))


def test_the_slot_of_a_block_that_was_never_used_is_refilled_after_its_arrival() -> None:
    transfers = Transfers()
    residency = Residency({SlotKind.EXPERT: 1}, (), transfers)
    residency.request(Block(0, 0))
    residency.release(Block(0, 0))
    assert not residency.is_known(Block(0, 0))
    residency.request(Block(0, 1))
    assert transfers.brought[-1] == (Block(0, 1), 0, (transfers.arrivals[Block(0, 0)],))


def test_the_slot_that_was_freed_first_is_refilled_first() -> None:
    transfers = Transfers()
    residency = Residency({SlotKind.EXPERT: 3}, (), transfers)
    for expert in range(3):
        residency.request(Block(0, expert))
    for expert in (1, 2, 0):
        residency.release(Block(0, expert), FakeEvent(done=True))
    for expert in range(3):
        residency.request(Block(1, expert))
    assert [slot for _, slot, _ in transfers.brought[3:]] == [1, 2, 0]


def test_residents_need_no_slot_and_no_wait_and_never_leave() -> None:
    transfers = Transfers()
    resident = Block(1, 1)
    residency = Residency({}, [resident], transfers)
    assert residency.arrival(resident) == ()
    residency.release(resident, FakeEvent(done=True))
    residency.release(resident)
    assert residency.is_known(resident)
    assert residency.resident_experts(1) == {1} and not residency.resident_experts(0)
    assert not residency.held()
    assert not transfers.brought


def test_a_block_that_is_known_cannot_be_sent_for_again() -> None:
    residency = Residency(SLOTS, [Block(0)], Transfers())
    residency.request(Block(0, 3))
    for block in (Block(0, 3), Block(0)):
        with pytest.raises(AssertionError, match="sent for twice"):
            residency.request(block)


def test_a_lent_slot_is_used_after_what_it_was_lent_after() -> None:
    transfers, combined = Transfers(), FakeEvent()
    residency = Residency({SlotKind.EXPERT: 1}, (), transfers, lent=1)
    residency.request(Block(0, 0))
    assert not residency.has_free_slot(Block(0, 1))
    for _ in range(2):  # the second time, nothing is left to lend
        residency.lend([combined])
    residency.request(Block(0, 1))
    assert transfers.brought[-1] == (Block(0, 1), 1, (combined,))
    assert not residency.has_free_slot(Block(0, 2))
    residency.check_integrity()


def test_what_lies_in_a_lent_slot_is_lost_when_it_is_withdrawn() -> None:
    transfers = Transfers()
    residency = Residency({SlotKind.DENSE: 3, SlotKind.EXPERT: 1}, (), transfers, lent=3)
    assert not residency.withdraw()
    residency.lend()
    for block in (Block(0), Block(1), Block(2), Block(0, 0), Block(0, 1), Block(0, 2)):
        residency.request(block)
    residency.release(Block(0, 1), FakeEvent(done=True))
    transfers.arrivals[Block(0, 2)].done = True
    assert residency.withdraw() == {Block(0, 2)}
    residency.check_integrity()
    assert residency.held() == {Block(0), Block(1), Block(2), Block(0, 0)}
    assert not residency.has_free_slot(Block(0, 2))
    residency.lend()
    for expert in (1, 2, 3):
        residency.request(Block(0, expert))
    assert {slot for _, slot, _ in transfers.brought[-3:]} == {1, 2, 3}


@pytest.mark.parametrize("is_used", [False, True])
def test_a_lent_slot_is_not_withdrawn_while_it_is_written_to_or_used(*, is_used: bool) -> None:
    transfers = Transfers()
    residency = Residency({SlotKind.EXPERT: 0}, (), transfers, lent=1)
    residency.lend()
    residency.request(Block(0, 0))
    if is_used:
        residency.release(Block(0, 0), FakeEvent())
    with pytest.raises(AssertionError, match="nobody would ever end this wait"):
        residency.withdraw()


def cached(cache: Residents, transfers: Transfers, slots: int, lent: int = 0) -> Residency:
    return Residency({SlotKind.DENSE: 1, SlotKind.EXPERT: slots}, (), transfers, lent, cache)


@given(
    st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(["request", "claim", "release", "drop", "withdraw"]))),
    st.sampled_from([Residents.lru, Residents.lfu]),
    st.integers(0, 2),
)
@examples(200)
def test_a_cache_gives_away_only_what_nobody_uses(steps: list[tuple[Block, str]], cache: Residents, lent: int) -> None:
    transfers = Transfers()
    residency = cached(cache, transfers, 2, lent)
    residency.lend()
    used: set[Block] = set()
    for block, step in steps:
        if step == "request" and not residency.is_known(block) and residency.has_free_slot(block):
            residency.request(block)
            used.add(block)
        elif step == "claim" and residency.claim(block):
            assert block not in used
            used.add(block)
        elif step in ("release", "drop") and block in used:
            residency.release(block, FakeEvent(done=True) if step == "release" else None)
            transfers.arrivals[block].done = True
            used.discard(block)
        elif step == "withdraw":
            for arrival in transfers.arrivals.values():
                arrival.done = True
            used -= residency.withdraw()
        residency.check_integrity()
        assert residency.held() == used
        assert all(residency.is_known(each) for each in used)
    residency.clear()
    residency.check_integrity()
    assert not [block for block in BLOCKS if residency.is_known(block) and block not in used]


def test_a_cache_replaces_what_was_not_used_for_longest() -> None:
    transfers = Transfers()
    residency = cached(Residents.lru, transfers, 2)
    for expert in (0, 1):
        residency.request(Block(0, expert))
    last_use = FakeEvent()
    for expert in (1, 0):
        residency.release(Block(0, expert), last_use)
    assert residency.claim(Block(0, 1)) and not residency.claim(Block(0, 1))
    residency.release(Block(0, 1), FakeEvent())
    residency.request(Block(1, 0))
    assert [residency.is_known(Block(0, expert)) for expert in (0, 1)] == [False, True]
    assert transfers.brought[-1] == (Block(1, 0), 0, (last_use,))


def test_a_cache_by_frequency_replaces_what_was_used_least_often() -> None:
    residency = cached(Residents.lfu, Transfers(), 2)
    for expert in (0, 1):
        residency.request(Block(0, expert))
        residency.release(Block(0, expert), FakeEvent())
    for _ in range(2):
        assert residency.claim(Block(0, 0))
        residency.release(Block(0, 0), FakeEvent())
    assert residency.claim(Block(0, 1))
    residency.release(Block(0, 1), FakeEvent())
    residency.request(Block(1, 0))
    assert [residency.is_known(Block(0, expert)) for expert in (0, 1)] == [True, False]


def test_dense_parts_are_not_cached() -> None:
    residency = cached(Residents.lru, Transfers(), 2)
    residency.request(Block(0))
    residency.release(Block(0), FakeEvent())
    assert not residency.is_known(Block(0))


def test_what_is_in_use_cannot_be_replaced() -> None:
    residency = cached(Residents.lru, Transfers(), 1)
    residency.request(Block(0, 0))
    assert not residency.has_free_slot(Block(0, 1))
    residency.release(Block(0, 0))
    assert residency.has_free_slot(Block(0, 1))
    residency.claim(Block(0, 0))
    assert not residency.has_free_slot(Block(0, 1))


def test_a_slot_that_two_blocks_hold_is_noticed() -> None:
    residency = Residency(SLOTS, (), Transfers())
    residency.request(Block(0, 0))
    residency.request(Block(0, 1))
    residency._slots[Block(0, 1)] = residency.slot(Block(0, 0))
    with pytest.raises(AssertionError):
        residency.check_integrity()
