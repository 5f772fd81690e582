"""Policies as pure functions."""

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Misses, OnDemand, Order, Prefetch
from klotski.pipeline import MissCosts, Policy
from tests.unit.fakes import examples

POLICIES = [Policy(*switches) for switches in product(Prefetch, [1, 2, 5], OnDemand, Order)]
SCORES = st.lists(st.floats(0, 100), max_size=12)


@st.composite
def choices(draw: st.DrawFn) -> tuple[dict[int, int], list[int], list[int]]:
    """Tokens of each expert that remains; which of them are here; which are coming, in order."""
    remaining = draw(st.dictionaries(st.integers(0, 15), st.integers(1, 4), min_size=1))
    where = {expert: draw(st.sampled_from(["here", "coming", "absent"])) for expert in remaining}
    here = [expert for expert in remaining if where[expert] == "here"]
    return remaining, here, draw(st.permutations([expert for expert in remaining if where[expert] == "coming"]))


@given(st.sampled_from(POLICIES), choices())
@examples(300)
def test_choose_takes_one_that_has_a_slot_wherever_there_is_one(
    policy: Policy, choice: tuple[dict[int, int], list[int], list[int]]
) -> None:
    remaining, here, coming = choice
    chosen = policy.choose(remaining, here, coming)
    assert chosen in ({*here, *coming} or set(remaining))


@given(st.sampled_from(POLICIES), choices(), st.randoms())
@examples(200)
def test_choose_does_not_depend_on_the_order_in_which_experts_are_listed(
    policy: Policy, choice: tuple[dict[int, int], list[int], list[int]], random: Random
) -> None:
    remaining, here, coming = choice
    shuffled = random.sample(sorted(remaining), len(remaining))
    again = {expert: remaining[expert] for expert in shuffled}
    assert policy.choose(again, random.sample(here, len(here)), coming) == policy.choose(remaining, here, coming)


@given(choices(), st.sampled_from(list(Prefetch)))
@examples(200)
def test_arrival_prefers_the_hottest_that_is_here_and_else_the_next_to_come(
    choice: tuple[dict[int, int], list[int], list[int]], prefetch: Prefetch
) -> None:
    remaining, here, coming = choice
    chosen = Policy(prefetch, 2, OnDemand.eager, Order.arrival).choose(remaining, here, coming)
    if here:
        assert chosen in here
        assert remaining[chosen] == max(remaining[expert] for expert in here)
    elif coming:
        assert chosen == coming[0]


@given(choices())
@examples(100)
def test_index_takes_the_lowest_and_hot_first_the_most_tokens_of_those_with_a_slot(
    choice: tuple[dict[int, int], list[int], list[int]],
) -> None:
    remaining, here, coming = choice
    known = [*here, *coming] or list(remaining)
    by_index = Policy(Prefetch.none, 1, OnDemand.eager, Order.index)
    hot_first = Policy(Prefetch.none, 1, OnDemand.eager, Order.hot_first)
    assert by_index.choose(remaining, here, coming) == min(known)
    most = max(remaining[expert] for expert in known)
    # Of equals the lowest index, so that runs repeat.
    assert hot_first.choose(remaining, here, coming) == min(e for e in known if remaining[e] == most)


@pytest.mark.parametrize("order", list(Order))
def test_ties_go_to_the_lowest_index(order: Order) -> None:
    policy = Policy(Prefetch.hot, 2, OnDemand.eager, order)
    assert policy.choose({3: 5, 1: 5, 2: 5}, [3, 2], []) == 2
    assert policy.ahead([1.0, 7.0, 7.0, 7.0]) == [1, 2]
    assert policy.demand([4, 0, 4, 4]) == [0, 2, 3]


@given(SCORES, st.sampled_from(POLICIES))
@examples(200)
def test_ahead_brings_what_its_prefetch_mode_says(scores: list[float], policy: Policy) -> None:
    ahead = policy.ahead(scores)
    assert len(set(ahead)) == len(ahead)
    assert set(ahead) <= set(range(len(scores)))
    match policy.prefetch:
        case Prefetch.none:
            assert not ahead
        case Prefetch.layer:
            assert ahead == list(range(len(scores)))
        case Prefetch.hot:
            assert len(ahead) == min(policy.hot, len(scores))
            assert [scores[expert] for expert in ahead] == sorted(scores, reverse=True)[: policy.hot]


@given(st.lists(st.integers(0, 5), max_size=12), st.sets(st.integers(0, 11)), st.sampled_from(POLICIES))
@examples(200)
def test_demand_asks_for_each_expert_with_tokens_once(counts: list[int], asked: set[int], policy: Policy) -> None:
    demand = policy.demand(counts)
    assert sorted(demand) == [expert for expert, count in enumerate(counts) if count]
    if policy.order in (Order.index, Order.batch):
        assert demand == sorted(demand)
    else:
        assert [counts[expert] for expert in demand] == sorted(filter(None, counts), reverse=True)
    assert policy.demand(counts, asked) == [expert for expert in demand if expert not in asked]


@given(st.lists(st.floats(0, 9), min_size=1, max_size=12), st.integers(1, 1000))
@examples(200)
def test_what_is_read_far_ahead_is_probably_used(scores: list[float], choices: int) -> None:
    likely = Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival).likely(scores, choices)
    assert [scores[expert] for expert in likely] == sorted((scores[expert] for expert in likely), reverse=True)
    for expert, chance in enumerate(chances_of_use(scores, choices)):
        assert chance == pytest.approx(0.5) or (expert in likely) == (chance > 0.5)


def test_before_anything_was_seen_one_is_as_likely_as_another() -> None:
    policy = Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival)
    assert policy.likely([0.0] * 4, 2) == []
    assert policy.likely([0.0] * 4, 3) == [0, 1, 2, 3]


@given(st.lists(st.floats(0, 9), min_size=1, max_size=12), st.integers(1, 1000), st.sampled_from(POLICIES), st.data())
@examples(200)
def test_for_what_stays_others_come_that_are_almost_surely_used(
    scores: list[float], choices: int, policy: Policy, data: st.DataObject
) -> None:
    staying = data.draw(st.sets(st.sampled_from(range(len(scores)))))
    named = policy.ahead(scores)
    others = policy.instead(named, scores, choices, staying)
    assert len(set(others)) == len(others)
    assert not set(others) & (staying | set(named))
    chances = chances_of_use(scores, choices)
    assert all(chances[expert] > 0.9 or chances[expert] == pytest.approx(0.9) for expert in others)
    spare = len(staying & set(named)) if policy.prefetch is Prefetch.hot else 0
    sure = [expert for expert in range(len(scores)) if chances[expert] > 0.9 + 1e-9]
    assert min(spare, len(set(sure) - staying - set(named))) <= len(others) <= spare
    assert [scores[expert] for expert in others] == sorted((scores[expert] for expert in others), reverse=True)


def chances_of_use(scores: list[float], choices: int) -> list[float]:
    total = sum(scores)
    return [1 - (1 - (score / total if total else 1 / len(scores))) ** choices for score in scores]


def test_who_brings_a_layer_at_a_time_reads_no_further() -> None:
    reading = {each for each in Prefetch if Policy(each, 2, OnDemand.eager, Order.index).reads_on}
    assert reading == {Prefetch.layer, Prefetch.hot}
    assert not Policy(Prefetch.none, 2, OnDemand.lazy, Order.index).reads_on


def test_a_policy_is_a_value() -> None:
    policy = Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival)
    assert policy == Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival)
    with pytest.raises(AttributeError):
        policy.hot = 3  # type: ignore[misc]


SECONDS = st.floats(1e-4, 10)
MISSES = Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival, Misses.cheapest)


@given(
    st.dictionaries(st.integers(0, 15), st.floats(1, 100), max_size=8),
    st.builds(MissCosts, SECONDS, SECONDS, SECONDS),
    st.floats(0, 10),
    st.floats(0, 10),
)
@examples(300)
def test_no_other_number_of_the_coldest_ends_sooner_than_what_is_computed_below(
    tokens: dict[int, float], costs: MissCosts, link: float, cores: float
) -> None:
    chosen = MISSES.below(tokens, costs, link, cores)
    coldest = sorted(tokens, key=lambda expert: (tokens[expert], -expert))
    assert chosen == coldest[: len(chosen)]

    def end(count: int) -> float:
        computing = sum(costs.turn + tokens[expert] * costs.token for expert in coldest[:count])
        return max(link + (len(tokens) - count) * costs.moving, count and cores + computing)

    assert end(len(chosen)) <= min(end(count) for count in range(len(tokens) + 1)) * (1 + 1e-9)
    assert not Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival).below(tokens, costs, link, cores)


def test_what_is_computed_below_at_once_is_limited() -> None:
    costs = MissCosts(moving=1e9, turn=1.0, token=1.0)
    assert len(MISSES.below(dict.fromkeys(range(8), 1000.0), costs)) == 4
