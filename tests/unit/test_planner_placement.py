"""What is expected to be used, what stays because of it, and what a cache is given."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Block, Prefetch, Residents
from klotski.planner import Demand, ModelFacts, Wishes
from klotski.planner.placement import placement_order
from klotski.planner.streaming import Streaming
from tests.unit.fakes import examples
from tests.unit.questions import Question, model, models

USAGE = Wishes(residents=Residents.usage)
UNEVEN = [[0.0, 0.3, 0.7, 1.0], [0.3, 0.7, 0.7, 0.3]]
FEW = Demand([(10, 10)] * 2)


@pytest.mark.parametrize("tokens", [0, 1, 2, 3.3, 10, 40, 1000])
@pytest.mark.parametrize("experts", [(4, 4), (128, 0, 64)])
def test_few_tokens_use_few_experts_and_many_use_all(tokens: float, experts: tuple[int, ...]) -> None:
    facts = model(experts=experts, top_k=2)
    use = Streaming(facts, Wishes()).using(0, 2)(tokens)
    expected = sum(count * (1 - (1 - 2 / count) ** tokens) for count in experts if count)
    assert use.computed == pytest.approx(expected, rel=0.01)
    assert use.experts == pytest.approx(500 * expected, rel=0.01)
    assert use.dense == pytest.approx(1000 * len(experts))


@given(models(), st.sampled_from(Residents), st.sampled_from(Prefetch), st.floats(0, 1), st.integers(1, 9))
@examples(100)
def test_more_room_and_more_slots_never_read_more_and_more_tokens_never_less(
    facts: ModelFacts, residents: Residents, prefetch: Prefetch, share: float, slots: int
) -> None:
    streaming = Streaming(facts, Wishes(residents=residents, prefetch=prefetch))
    room = share * facts.weight_bytes
    using = streaming.using(room, slots)
    found = [using(tokens) for tokens in (0, 0.3, 1, 1.7, 5, 30, 400, 10**7)]
    stored = sum(facts.stored_bytes.values())
    assert all(-1e-6 <= each.nbytes <= stored + 1e-6 for each in found)
    assert all(more.nbytes >= less.nbytes - 1e-6 for less, more in pairwise(found))
    assert all(more.computed >= less.computed - 1e-9 for less, more in pairwise(found))
    for tokens, use in ((1, found[2]), (30, found[5])):
        assert streaming.using(2 * room, slots)(tokens).nbytes <= use.nbytes + 1e-6
        assert streaming.using(room, slots + 1)(tokens).nbytes <= use.nbytes + 1e-6


def test_all_that_fits_is_never_read() -> None:
    facts = model(experts=(4, 4))
    for wishes in (Wishes(), USAGE, Wishes(residents=Residents.lru), Wishes(all_stay=True, residents=Residents.none)):
        assert Streaming(facts, wishes).using(facts.weight_bytes, 2)(10**6).nbytes == pytest.approx(0, abs=1e-6)
    assert Streaming(facts, Wishes(residents=Residents.none)).using(10**9, 2)(10**6).nbytes == facts.weight_bytes


def test_a_whole_layer_is_read_whether_it_is_used_or_not() -> None:
    facts = model(experts=(64, 64))
    use = Streaming(facts, Wishes(prefetch=Prefetch.layer)).using(0, 2)(1)
    assert use.experts == 128 * 500
    assert use.computed == pytest.approx(4)


def test_a_cache_saves_the_share_of_experts_that_it_holds() -> None:
    facts = model(experts=(10, 10))
    streaming = Streaming(facts, Wishes(residents=Residents.lfu))
    whole = streaming.using(0, 0)(3)
    cached = streaming.using(2 * 1000 + 6 * 500, 4)(3)
    assert (whole.dense, cached.dense) == (2000, 0)
    assert cached.experts == pytest.approx(whole.experts / 2)


def test_what_earlier_runs_used_most_stays_first_and_equals_evenly() -> None:
    facts = model(experts=(4, 4), shares=UNEVEN)
    order = [(block.layer, block.expert) for block in placement_order(facts, USAGE)]
    assert order == [(0, -1), (1, -1), (0, 3), (0, 2), (1, 1), (1, 2), (0, 1), (1, 0), (1, 3), (0, 0)]


def test_where_everything_is_used_every_time_experts_stay_evenly() -> None:
    facts = model(experts=(4, 4), shares=[[0.2, 0.4, 0.6, 0.8], [0.5, 0.5, 0.5, 0.5]])
    layers = [block.layer for block in placement_order(facts, USAGE, tokens=10**6)]
    assert layers == [0, 1] * 5


@given(st.integers(1, 100), st.integers(1, 3), st.floats(0, 1), st.sampled_from([Residents.greedy, Residents.usage]))
@examples(200)
def test_what_streams_is_spread_evenly_wherever_room_ends(
    layers: int, experts: int, share: float, residents: Residents
) -> None:
    """A layer hides behind the one before alone: where half of the layers stream one more, it is every other one."""
    facts = model(experts=(experts,) * layers)
    order = placement_order(facts, Wishes(residents=residents))
    taken = [block.layer for block in order[: round(share * len(order))]]
    counts = [taken.count(layer) for layer in range(layers)]
    assert max(counts) - min(counts) <= 1
    more = [layer for layer, count in enumerate(counts) if count == max(counts)]
    gaps = [after - before for before, after in pairwise([-1, *more, layers])]
    assert max(gaps) <= max(2, 4 * layers / len(more))


def test_a_byte_is_spent_where_it_saves_most() -> None:
    facts = model(experts=(2,), shares=[[0.9, 0.8]])
    sizes = dict(facts.block_bytes) | {Block(0, 0): 1000}
    order = placement_order(replace(facts, block_bytes=sizes, stored_bytes=sizes), USAGE)
    assert order == [Block(0), Block(0, 1), Block(0, 0)]


def test_placement_by_usage_reads_less_than_even_placement_where_use_is_uneven() -> None:
    facts = model(experts=(4, 4), shares=UNEVEN)
    room = 2000 + 3 * 500
    usage, greedy = (
        Streaming(facts, Wishes(residents=each)).using(room, 2)(1) for each in (Residents.usage, Residents.greedy)
    )
    assert usage.nbytes < greedy.nbytes


def test_placement_by_usage_says_where_nothing_is_known_yet() -> None:
    unknown = Question(model(), FEW, USAGE).plan(10_000)
    assert unknown.residents == Question(model(), FEW).plan(10_000).residents
    assert "no earlier run" in unknown.residents_reason
    assert "used most" in Question(model(shares=UNEVEN), FEW, USAGE).plan(10_000).residents_reason


@pytest.mark.parametrize("residents", [Residents.lru, Residents.lfu])
def test_a_cache_takes_what_is_left_and_never_more_than_there_are_experts(residents: Residents) -> None:
    facts = model(experts=(8, 8))
    question = Question(facts, FEW, Wishes(residents=residents))
    small, large = question.plan(10_000), question.plan(10**6)
    assert small.residents == large.residents == (Block(0), Block(1))
    assert 0 < small.cached_slots < small.expert_slots < large.expert_slots == 16
    assert small.budget - sum(small.memory.values()) < facts.largest_expert
    assert large.forecast.nbytes == pytest.approx(0, abs=1e-6)
    assert small.hot_experts <= small.expert_slots - small.cached_slots + small.lent_slots


def test_slots_that_are_set_are_no_cache_beyond_them() -> None:
    plan = Question(model(experts=(8, 8)), FEW, Wishes(residents=Residents.lru, expert_slots=5)).plan(10**6)
    assert (plan.expert_slots, plan.cached_slots) == (5, 0)
