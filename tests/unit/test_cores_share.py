"""What the cores are left of a layer, beside what the link brings: before it is known what is missing, and after."""

import pytest

from klotski.core import Block, Misses, OnDemand, Order, Prefetch
from klotski.lanes import InlineLane
from klotski.pipeline import Below, MissCosts, Policy
from klotski.pipeline.cores_share import CoresShare
from tests.unit.fakes import Sink, ticks

POLICY = Policy(Prefetch.hot, 4, OnDemand.eager, Order.arrival, Misses.cheapest)
BLOCKS = [[Block(0, expert) for expert in range(8)]]
ALIKE = [1.0] * 8


def share(costs: MissCosts, lying: int = 8) -> CoresShare:
    """Of eight experts, the first so many lie where the cores are."""
    lane = InlineLane("cores", Sink(), ticks())
    return CoresShare(BLOCKS, POLICY, Below(lane, frozenset(BLOCKS[0][:lying]), costs))


@pytest.mark.parametrize(("attention", "ahead"), [(0.0, 4), (2.0, 5), (4.0, 6), (100.0, 8)])
def test_as_many_more_come_ahead_as_the_link_brings_while_batches_attend(attention: float, ahead: int) -> None:
    """Moving one takes as long as computing it below: half of them each, but for what the cores rest."""
    cores = share(MissCosts(moving=1.0, turn=1.0, token=0.0, attention=attention / 2))
    cores.enter(batches=2, came_ahead=0)
    assert len(cores.ahead(0, list(range(8)), ALIKE, 1000.0, ())) == ahead


def test_what_is_hotter_comes_ahead_and_what_stays_need_not() -> None:
    cores = share(MissCosts(moving=1.0, turn=1.0, token=0.0))
    cores.enter(batches=1, came_ahead=0)
    scores = [8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]
    assert sorted(cores.ahead(0, list(range(8)), scores, 1000.0, {0})) == [0, 2, 4, 6, 7], (
        "of seven that are missing, the coldest three stay"
    )


def test_what_is_unlikely_to_be_used_leaves_the_link_to_what_will_be_missing() -> None:
    cores = share(MissCosts(moving=1.0, turn=9.0, token=0.0))
    cores.enter(batches=1, came_ahead=0)
    wanted = list(range(4))
    assert cores.ahead(0, wanted, ALIKE, 2.0, ()) == [], "two choices of eight"
    assert cores.ahead(0, wanted, ALIKE, 20.0, ()) == wanted


def test_what_lies_elsewhere_is_moved_and_counts_as_the_links() -> None:
    cores = share(MissCosts(moving=1.0, turn=1.5, token=0.0), lying=2)
    cores.enter(batches=1, came_ahead=0)
    left, wanted = cores.settle(0, dict.fromkeys(range(8), 1), moving=0)
    assert (sorted(left), wanted) == ([0, 1], [])


def test_what_was_held_back_takes_the_cores_time_and_is_moved_if_more_tokens_came() -> None:
    cores = share(MissCosts(moving=4.0, turn=0.0, token=1.0))
    cores.enter(batches=2, came_ahead=0)
    assert cores.hold_back(0, {0: 3.0}, moving=0) == {Block(0, 0): 3.0}
    assert not cores.hold_back(0, {1: 3.0}, moving=0), "the cores would end at 6, and the link at 4"
    assert cores.settle(0, {0: 30}, moving=1) == ([], [Block(0, 0)])
    assert cores.settle(0, {0: 3}, moving=1) == ([0], []), "nothing is held back any more"


def test_what_will_come_for_the_next_layer_counts_but_for_what_comes_while_batches_attend() -> None:
    for attention, is_left in ((0.0, True), (6.0, False)):
        cores = share(MissCosts(moving=1.0, turn=5.0, token=0.0, attention=attention))
        cores.enter(batches=1, came_ahead=6)
        assert bool(cores.hold_back(0, {0: 1.0}, moving=0)) == is_left
