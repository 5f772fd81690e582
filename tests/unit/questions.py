"""What plans are asked for in tests: models of small round numbers, any model, workloads, wishes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import strategies as st

from klotski.core import Block, OnDemand, Prefetch, Residents
from klotski.errors import BudgetError
from klotski.planner import NOMINAL, Budget, Demand, ModelFacts, Plan, Rates, Terms, Wishes, make_plan
from klotski.units import parse_size

__all__ = ["DEMANDS", "LENGTHS", "QUESTIONS", "SHARES", "Question", "model", "models"]

SIZES = st.one_of(st.integers(1, 2_000_000), st.integers(1, 20).map(lambda count: count * 100_000))
OPEN = Wishes()


@dataclass(frozen=True)
class Question:
    """What a plan is asked for, but for the budget."""

    facts: ModelFacts
    demand: Demand
    wishes: Wishes = OPEN
    runtime: int = 0
    rates: Rates = NOMINAL

    def plan(self, budget: int) -> Plan:
        return make_plan(self.terms(budget))

    def terms(self, budget: int) -> Terms:
        return Terms(self.facts, self.demand, Budget(budget, "as set", self.runtime), self.wishes, self.rates)

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


def model(experts: Sequence[int] = (4, 4), dense: int = 1000, expert: int = 500, **more: Any) -> ModelFacts:
    """A model of small round numbers."""
    blocks = {Block(layer): dense for layer in range(len(experts))}
    blocks |= {Block(layer, index): expert for layer, count in enumerate(experts) for index in range(count)}
    facts = ModelFacts(
        fixed_bytes=100,
        block_bytes=blocks,
        stored_bytes=blocks,
        expert_counts=experts,
        top_k=2,
        kv_bytes=1,
        kv_layer_bytes=1,
        waiting_bytes=1,
        workspace_bytes=1,
        rows_bytes=1,
        attention_bytes=1,
        score_bytes=0,
        scores_bytes=1,
        logits_bytes=1,
        staging_bytes=0,
        dense_flops=1000,
        expert_flops=1000,
        head_flops=1000,
    )
    facts = replace(facts, **more)
    return replace(facts, kv_layer_bytes=-(-facts.kv_bytes // facts.num_layers))


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    experts = draw(st.lists(st.sampled_from([0, 1, 2, 4, 7]), min_size=1, max_size=4).filter(any))
    blocks = [Block(layer, index) for layer, count in enumerate(experts) for index in range(-1, count)]
    sizes = draw(st.lists(SIZES, min_size=len(blocks), max_size=len(blocks)))
    shrunk = draw(st.sampled_from([1, 2]))
    small = st.integers(1, 500)
    flops = st.one_of(st.integers(0, 10**6), st.integers(0, 10**10))
    workspace = draw(small)
    shares = st.tuples(*(st.lists(st.floats(0, 1), min_size=count, max_size=count) for count in experts))
    return ModelFacts(
        fixed_bytes=draw(SIZES),
        block_bytes=dict(zip(blocks, sizes, strict=True)),
        stored_bytes={block: max(1, size // shrunk) for block, size in zip(blocks, sizes, strict=True)},
        expert_counts=experts,
        top_k=draw(st.integers(1, 4)),
        kv_bytes=draw(small),
        kv_layer_bytes=draw(small),
        window_bytes=draw(st.integers(0, 500)),
        window_tokens=draw(st.integers(0, 60)),
        state_bytes=draw(st.sampled_from([0, 100, 10_000])),
        waiting_bytes=draw(small),
        workspace_bytes=workspace,
        spare_bytes=draw(st.integers(0, workspace) | st.just(200_000)),
        rows_bytes=draw(st.integers(0, 10_000)),
        attention_bytes=draw(small),
        score_bytes=draw(st.integers(0, 9)),
        slice_tokens=draw(st.sampled_from([0, 3, 50])),
        scores_bytes=draw(small),
        logits_bytes=draw(small),
        staging_bytes=draw(st.integers(0, 10_000)),
        dense_flops=draw(flops),
        expert_flops=draw(flops),
        head_flops=draw(flops),
        shares=draw(st.none() | shares),
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=16)
DEMANDS = LENGTHS.map(lambda lengths: Demand(sorted(lengths, reverse=True)))
WISHES = st.builds(
    Wishes,
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 20) | st.integers(1, 200),
    st.sampled_from(Residents),
    st.booleans(),
    st.none() | st.integers(1, 20),
    st.sampled_from(Prefetch),
    st.sampled_from(OnDemand),
)
QUESTIONS = st.builds(Question, models(), DEMANDS, WISHES, st.sampled_from([0, 12_345, 300_000_000]))
SHARES = st.one_of(st.floats(0, 1.2), st.floats(0, 0.1))
"""What is granted beyond the least that would do, as a share of all weights."""
