"""Plans keep within their budget, and use it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from klotski.core import Block, Residents
from klotski.errors import BudgetError
from klotski.planner import Demand, ModelFacts, Plan, free_memory, make_plan
from klotski.units import parse_size
from tests.unit.fakes import examples

SIZES = st.one_of(st.integers(1, 2_000_000), st.integers(1, 20).map(lambda count: count * 100_000))


@dataclass(frozen=True)
class Question:
    """What a plan is asked for, but for the budget."""

    facts: ModelFacts
    demand: Demand
    n_batches: int | None = None
    batch_size: int | None = None
    hot_experts: int | None = None
    residents: Residents = Residents.greedy

    def plan(self, budget: int) -> Plan:
        return make_plan(
            self.facts,
            self.demand,
            (budget, "as set"),
            self.n_batches,
            self.batch_size,
            self.hot_experts,
            self.residents,
        )

    def in_flight(self, plan: Plan) -> int:
        return min(plan.n_batches * plan.batch_size, len(self.demand.lengths))

    def budget(self, share: float) -> int:
        """The least that would do, and so much of the weights on top."""
        return self.suggestion() + int(share * self.facts.weight_bytes)

    def suggestion(self) -> int:
        """The budget that is suggested to somebody who grants a single byte."""
        with pytest.raises(BudgetError) as refusal:
            self.plan(1)
        match = re.search(r"set hw\.device_memory=(\S+) or more$", str(refusal.value))
        assert match is not None
        size = parse_size("hw.device_memory", match[1])
        assert size is not None
        return size


def model(
    experts: Sequence[int] = (4, 4),
    dense: int = 1000,
    expert: int = 500,
    fixed: int = 100,
    kv: int = 1,
    activation: int = 1,
    staging: int = 0,
    logits: int = 1,
    top_k: int = 2,
) -> ModelFacts:
    blocks = {Block(layer): dense for layer in range(len(experts))}
    blocks |= {Block(layer, index): expert for layer, count in enumerate(experts) for index in range(count)}
    return ModelFacts(fixed, blocks, experts, top_k, kv, activation, staging, logits)


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    experts = draw(st.lists(st.sampled_from([0, 1, 2, 4, 7]), min_size=1, max_size=4).filter(any))
    blocks = [Block(layer, index) for layer, count in enumerate(experts) for index in range(-1, count)]
    sizes = draw(st.lists(SIZES, min_size=len(blocks), max_size=len(blocks)))
    return ModelFacts(
        fixed_bytes=draw(SIZES),
        block_bytes=dict(zip(blocks, sizes, strict=True)),
        expert_counts=experts,
        top_k=draw(st.integers(1, 4)),
        kv_bytes=draw(st.integers(1, 500)),
        activation_bytes=draw(st.integers(1, 500)),
        staging_bytes=draw(st.integers(0, 10_000)),
        logits_bytes=draw(st.integers(1, 500)),
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=30)
DEMANDS = LENGTHS.map(lambda lengths: Demand(sorted(lengths, reverse=True)))
QUESTIONS = st.builds(
    Question,
    models(),
    DEMANDS,
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 9),
    st.sampled_from(Residents),
)
SHARES = st.one_of(st.floats(0, 1.2), st.floats(0, 0.1))
"""What is granted beyond the least that would do, as a share of all weights."""


@given(QUESTIONS, SHARES)
@examples(150)
def test_an_accepted_plan_keeps_within_its_budget(question: Question, share: float) -> None:
    budget = question.budget(share)
    plan = question.plan(budget)
    facts = question.facts
    assert plan.budget == budget
    assert all(size >= 0 for size in plan.memory.values())
    assert sum(plan.memory.values()) <= budget
    assert plan.dense_slots >= 2
    assert plan.expert_slots >= 2
    assert plan.memory["fixed"] == facts.fixed_bytes
    assert plan.memory["staging"] == facts.staging_bytes
    assert plan.memory["dense_slots"] == plan.dense_slots * facts.largest(dense=True)
    assert plan.memory["expert_slots"] == plan.expert_slots * facts.largest(dense=False)
    context, in_flight = question.demand.tokens(plan.n_batches, plan.batch_size)
    assert plan.memory["kv_cache"] == context * facts.kv_bytes
    assert plan.memory["activations"] >= in_flight * facts.activation_bytes


@given(QUESTIONS, SHARES)
@examples(150)
def test_residents_are_blocks_of_the_model_and_fit_into_what_is_left(question: Question, share: float) -> None:
    plan = question.plan(question.budget(share))
    sizes = question.facts.block_bytes
    assert len(set(plan.residents)) == len(plan.residents)
    assert set(plan.residents) <= set(sizes)
    assert plan.memory["residents"] == sum(sizes[block] for block in plan.residents)
    assert plan.streamed_bytes + plan.memory["residents"] == sum(sizes.values())
    if question.residents is Residents.none:
        assert not plan.residents
    else:
        left = plan.budget - sum(plan.memory.values())
        assert all(size > left for block, size in sizes.items() if block not in plan.residents)


@given(QUESTIONS, SHARES, SHARES)
@examples(150)
def test_a_larger_budget_never_takes_fewer_sequences_into_flight(question: Question, low: float, more: float) -> None:
    small, large = question.plan(question.budget(low)), question.plan(question.budget(low + more))
    assert question.in_flight(large) >= question.in_flight(small)


@given(QUESTIONS, SHARES)
@examples(100)
def test_what_the_user_has_set_is_honoured(question: Question, share: float) -> None:
    plan = question.plan(question.budget(share))
    assert plan.n_batches == (question.n_batches or plan.n_batches) >= 1
    assert plan.batch_size == (question.batch_size or plan.batch_size) >= 1
    wanted = question.hot_experts or question.facts.top_k
    assert plan.hot_experts == min(wanted, max(question.facts.expert_counts))


@given(QUESTIONS)
@examples(150)
def test_the_budget_that_a_refusal_suggests_is_accepted_and_not_lavish(question: Question) -> None:
    suggestion = question.suggestion()
    assert question.plan(suggestion)
    # Two tenths of a megabyte: one to round up to, one for the rounding.
    assume(suggestion > 200_000)
    with pytest.raises(BudgetError):
        question.plan(suggestion - 200_000)


@pytest.mark.parametrize("need", [700_000, 4_100_000, 8_200_000, 16_400_000, 32_300_000])
def test_a_need_of_whole_tenths_of_megabytes_is_suggested_in_full(need: int) -> None:
    """4.1 times a million is a hair less than 4,100,000 in floating point."""
    facts = model(dense=100_000, expert=100_000, fixed=need - 600_000, kv=50_000, activation=50_000, logits=50_000)
    question = Question(facts, Demand([(1, 1)]), n_batches=1, batch_size=1)
    assert sum(question.plan(need).memory.values()) == need
    assert question.plan(question.suggestion())


@given(QUESTIONS)
@examples(30)
def test_a_plan_can_be_written_as_json(question: Question) -> None:
    plan = question.plan(question.suggestion())
    written = json.loads(json.dumps(plan.as_dict()))
    assert written["memory"] == plan.memory
    assert written["residents"] == [str(block) for block in plan.residents]


@given(LENGTHS, st.integers(1, 6), st.integers(1, 6))
@examples(80)
def test_demand_covers_whichever_batches_are_in_flight_together(
    lengths: list[tuple[int, int]], n: int, size: int
) -> None:
    lengths = sorted(lengths, reverse=True)[:12]
    context, in_flight = Demand(lengths).tokens(n, size)
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    widths = [(len(batch), max(prompt for prompt, _ in batch), max(output for _, output in batch)) for batch in batches]
    for together in combinations(widths, min(n, len(widths))):
        assert sum(rows * (prompt + output) for rows, prompt, output in together) <= context
        assert sum(rows * prompt for rows, prompt, _ in together) <= in_flight


def test_many_sequences_come_before_residents() -> None:
    demand = Demand([(10, 10)] * 8)
    rich = Question(model(), demand).plan(1_000_000)
    poor = Question(model(kv=200), demand).plan(40_000)
    assert rich.n_batches * rich.batch_size >= 8
    assert len(rich.residents) == 10
    assert poor.n_batches * poor.batch_size >= 8
    assert len(poor.residents) < 10


def test_of_equals_there_are_enough_batches_to_hide_transfers_behind() -> None:
    plan = Question(model(), Demand([(10, 10)] * 16)).plan(1_000_000)
    assert (plan.n_batches, plan.batch_size) == (4, 4)


def test_dense_parts_stay_before_experts_and_experts_evenly() -> None:
    facts = model(experts=(3, 3))
    whole = Question(facts, Demand([(1, 1)])).plan(1_000_000)
    assert list(whole.residents) == [Block(layer, index) for index in (-1, 0, 1, 2) for layer in (0, 1)]


def test_more_slots_than_a_layer_can_use_ahead_are_not_taken() -> None:
    plan = Question(model(experts=(64, 64)), Demand([(1, 1)]), hot_experts=3).plan(1_000_000)
    assert plan.expert_slots == 2 + 2 * 3
    assert Question(model(experts=(1, 1)), Demand([(1, 1)])).plan(1_000_000).expert_slots == 2


def test_a_refusal_names_the_setting_what_was_granted_and_why() -> None:
    with pytest.raises(BudgetError, match=r"hw\.device_memory=1KB \(as set\) is too small: .*set hw\.device_memory="):
        Question(model(), Demand([(1, 1)])).plan(1000)


def test_weights_are_all_that_a_model_has() -> None:
    facts = model(experts=(2, 0))
    assert facts.weight_bytes == 100 + 2 * 1000 + 2 * 500
    assert (facts.largest(dense=True), facts.largest(dense=False)) == (1000, 500)


def test_free_memory_leaves_some_and_says_why() -> None:
    size, reason = free_memory()
    assert size > 0
    assert re.fullmatch(r"80% of the [0-9.]+GB that are free", reason)
