"""The planner chooses as if it had tried everything, heeds its constraints, and does not take long."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given

from klotski.core import Block, OnDemand, Prefetch, Residents
from klotski.planner import NOMINAL, Budget, Demand, ModelFacts, Rates, Terms, Wishes, explain, make_plan
from klotski.planner.costs import Costs, Pace, Seconds, Work
from klotski.planner.search import Appraiser, candidates, slot_counts
from klotski.planner.streaming import Use, Using
from tests.unit.fakes import examples
from tests.unit.questions import QUESTIONS, SHARES, Question, model

BOTH = {"dense": 10**7, "expert": 10**7, "dense_flops": 10**8, "expert_flops": 10**8}  # disk and arithmetic matter


def shape(
    experts: Sequence[int], dense: Sequence[int], expert: int, hidden: int, inner: int, kv: int, top_k: int, vocab: int
) -> ModelFacts:
    """A real model's sizes in bfloat16; `dense`, `expert`: numbers in a layer's dense part, and in an expert."""
    blocks = {Block(layer): 2 * size for layer, size in enumerate(dense)}
    blocks |= {Block(layer, index): 2 * expert for layer, count in enumerate(experts) for index in range(count)}
    return ModelFacts(
        fixed_bytes=4 * vocab * hidden,
        block_bytes=blocks,
        stored_bytes=blocks,
        expert_counts=experts,
        top_k=top_k,
        kv_bytes=2 * len(dense) * kv,
        kv_layer_bytes=2 * kv,
        waiting_bytes=8 * hidden + 10 * max(experts),
        workspace_bytes=2 * hidden * (2 + top_k),
        spare_bytes=2 * hidden * top_k,
        rows_bytes=10**6,
        row_bytes=2 * (hidden + 3 * inner),
        rows=2048,
        attention_bytes=16 * hidden,
        score_bytes=3,
        slice_tokens=512,
        scores_bytes=2 * vocab,
        logits_bytes=6 * vocab,
        staging_bytes=64 << 20,
        dense_flops=2 * sum(dense),
        expert_flops=2 * top_k * expert * sum(count > 0 for count in experts),
        head_flops=2 * vocab * hidden,
    )


MIXTRAL = shape([8] * 56, [88_000_000] * 56, 3 * 6144 * 16384, 6144, 16384, 2 * 8 * 128, 2, 32_000)
DEEPSEEK = shape(
    [0] * 3 + [256] * 58,
    [583_000_000] * 3 + [233_000_000] * 58,
    3 * 7168 * 2048,
    7168,
    2048,
    128 * (128 + 64 + 128),
    8,
    129_280,
)


@pytest.mark.parametrize("facts", [MIXTRAL, DEEPSEEK], ids=["Mixtral-8x22B", "DeepSeek-V3"])
@pytest.mark.parametrize("gigabytes", [24, 64])
@pytest.mark.parametrize("residents", [Residents.greedy, Residents.usage, Residents.lru])
def test_large_models_are_planned_and_explained_after_few_forecasts(
    facts: ModelFacts, gigabytes: int, residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two cores 60,000 forecasts of a sweep take a second."""
    forecasts = 0
    sweep = Costs.sweep

    def count(costs: Costs, work: Work, expert_slots: int, using: Using) -> Seconds:
        nonlocal forecasts
        forecasts += 1
        return sweep(costs, work, expert_slots, using)

    monkeypatch.setattr(Costs, "sweep", count)
    shares = [
        [2 * facts.top_k * (index + 1) / count / (count + 1) for index in range(count)] for count in facts.expert_counts
    ]
    facts = replace(facts, shares=shares)
    budget = Budget(gigabytes * 10**9, "as set", 400_000_000)
    terms = Terms(facts, Demand([(512, 32)] * 1000), budget, Wishes(residents=residents))
    plan = make_plan(terms)
    explain(plan, terms)
    assert forecasts < 60_000
    assert plan.n_batches * plan.batch_size > 1


@given(QUESTIONS, SHARES)
@examples(150)
def test_the_choice_is_the_best_of_all(question: Question, share: float) -> None:
    terms = question.terms(question.budget(share))
    appraiser = Appraiser(terms)
    fitting = [choice for choice in candidates(terms, slot_counts(terms)) if appraiser.need(choice) <= appraiser.room]
    best = min((appraiser.forecast(choice).seconds, choice) for choice in fitting)
    assert appraiser.forecast(appraiser.best()).seconds <= best[0] * (1 + 1e-9)
    assert make_plan(terms).forecast.seconds == pytest.approx(best[0])


@given(QUESTIONS, SHARES)
@examples(60)
def test_a_faster_machine_is_never_expected_to_be_slower(question: Question, share: float) -> None:
    terms = question.terms(question.budget(share))
    seconds = make_plan(terms).forecast.seconds * (1 + 1e-9)
    assert make_plan(terms._replace(rates=NOMINAL._replace(disk=5e9))).forecast.seconds <= seconds
    assert make_plan(terms._replace(rates=NOMINAL._replace(compute=1e12))).forecast.seconds <= seconds


def test_the_slower_the_disk_the_more_is_gained_by_more_sequences() -> None:
    demand = Demand([(64, 64)] * 512)
    facts = model(experts=(8,) * 8, kv_bytes=10**3, **BOTH)

    def seconds(disk: float, sequences: int) -> float:
        wishes = Wishes(n_batches=1, batch_size=sequences, residents=Residents.none)
        return make_plan(
            Terms(facts, demand, Budget(300_000_000, "as set"), wishes, Rates(disk, 4e11, "test"))
        ).forecast.seconds

    slow, fast = (seconds(disk, 128) / seconds(disk, 256) for disk in (2e8, 2e10))
    assert slow > fast > 1


def test_a_sweep_that_fetches_blocks_at_their_turn_takes_the_sum() -> None:
    facts = model(experts=(8, 8), **BOTH)
    demand = Demand([(64, 64)] * 64)
    work = Work(64, 64, 4, 64 * 96)

    def seconds(overlaps: bool, slots: int) -> tuple[float, float, float]:
        wishes = Wishes(on_demand=OnDemand.eager if overlaps else OnDemand.lazy)
        sweep = Costs(facts, demand, NOMINAL, wishes).sweep(work, slots, lambda _: Use(10**8, 10**9, 16))
        return sweep.total, sweep.disk, sweep.arithmetic

    for total, disk, arithmetic in (seconds(False, 4), seconds(True, 1)):
        assert total == pytest.approx(disk + arithmetic)
    total, disk, arithmetic = seconds(True, 4)
    assert max(disk, arithmetic) <= total < disk + arithmetic


def test_a_whole_layer_that_is_brought_ahead_finds_room() -> None:
    question = Question(model(experts=(8, 8)), Demand([(8, 8)] * 4), Wishes(prefetch=Prefetch.layer))
    assert question.plan(question.budget(0)).expert_slots == 8
    fixed = replace(question, wishes=question.wishes._replace(expert_slots=3))
    assert fixed.plan(fixed.budget(0)).expert_slots == 3


def test_fetching_at_the_turn_and_fetching_whole_layers_is_expected_to_be_slower() -> None:
    question = Question(model(experts=(32, 32), **BOTH), Demand([(8, 8)] * 4))

    def seconds(wishes: Wishes) -> float:
        return replace(question, wishes=wishes._replace(n_batches=2)).plan(400_000_000).forecast.seconds

    least = seconds(Wishes())
    assert seconds(Wishes(prefetch=Prefetch.layer)) > least * 1.05
    assert seconds(Wishes(on_demand=OnDemand.lazy, prefetch=Prefetch.none)) > least * 1.05


def test_cached_keys_and_values_cost_the_time_that_they_come_from_memory_in() -> None:
    demand = Demand([(100, 20)] * 10)
    costs = Costs(model(kv_bytes=2 * 10**6), demand)
    pace = costs.pace(demand.group(2, 5), 1000)
    assert isinstance(pace, Pace)
    assert pace.decodes.context == pytest.approx(pace.decodes.sampled * 110)
    assert costs.cache(pace.decodes) == pytest.approx(pace.decodes.sampled * 110 * 1e-4)
