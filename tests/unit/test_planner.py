"""Plans keep within their budget, and use it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import psutil
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from klotski.core import Block, Residents
from klotski.errors import BudgetError
from klotski.planner import Demand, ModelFacts, Wishes, peak_memory, process_budget, runtime_memory
from klotski.planner.costs import Costs
from klotski.planner.streaming import Use
from tests.unit.fakes import examples
from tests.unit.questions import DEMANDS, LENGTHS, QUESTIONS, SHARES, Question, model, models


@given(QUESTIONS, SHARES)
@examples(100)
def test_an_accepted_plan_keeps_within_its_budget(question: Question, share: float) -> None:
    budget = question.budget(share)
    plan = question.plan(budget)
    facts, demand = question.facts, question.demand
    assert plan.budget == budget
    assert all(size >= 0 for size in plan.memory.values())
    assert sum(plan.memory.values()) <= budget
    assert plan.dense_slots >= 2
    assert plan.expert_slots >= min(2, question.wishes.expert_slots or 2)
    assert plan.memory["runtime"] == question.runtime
    assert plan.memory["fixed"] == facts.fixed_bytes
    assert plan.memory["staging"] == facts.staging_bytes
    assert plan.memory["dense_slots"] == plan.dense_slots * facts.largest_dense
    assert plan.memory["expert_slots"] == plan.expert_slots * facts.largest_expert
    assert plan.lent_slots * facts.largest_expert <= plan.prefill_tokens * facts.spare_bytes
    assert plan.sequences == demand.group(plan.n_batches, plan.batch_size).sequences
    group = demand.group(plan.n_batches, plan.batch_size)
    assert plan.memory["kv_cache"] == group.context_tokens * facts.kv_bytes
    windows = min(group.context_tokens, group.sequences * facts.window_tokens) * facts.window_bytes
    assert plan.memory["layer_states"] >= windows + group.sequences * facts.state_bytes


@given(QUESTIONS, SHARES)
@examples(100)
def test_memory_for_tokens_in_flight_is_that_of_the_fullest_sweep(question: Question, share: float) -> None:
    """Prompts up to the bound, and one token of each sequence that decodes."""
    plan = question.plan(question.budget(share))
    facts = question.facts
    assert plan.tokens_in_flight >= plan.prefill_tokens
    assert plan.memory["workspace"] >= plan.tokens_in_flight * facts.workspace_bytes + facts.rows_bytes
    assert plan.memory["activations"] >= plan.tokens_in_flight * facts.waiting_bytes
    turn = min(plan.prefill_tokens, question.demand.longest)
    at_work = min(turn, facts.slice_tokens or turn) * facts.attention_bytes
    assert plan.memory["activations"] >= at_work + turn * question.demand.longest * facts.score_bytes
    assert plan.memory["activations"] >= min(plan.batch_size, plan.sequences) * facts.logits_bytes
    at_once = min(plan.scored_batches * plan.batch_size, plan.sequences)
    assert plan.memory["activations"] >= at_once * facts.scores_bytes


@given(QUESTIONS, SHARES)
@examples(100)
def test_residents_are_blocks_of_the_model_and_fit_into_what_is_left(question: Question, share: float) -> None:
    plan = question.plan(question.budget(share))
    facts = question.facts
    sizes = facts.block_bytes
    assert len(set(plan.residents)) == len(plan.residents)
    assert set(plan.residents) <= set(sizes)
    assert plan.memory["residents"] == sum(sizes[block] for block in plan.residents)
    assert plan.streamed_bytes == sum(facts.stored_bytes[block] for block in sizes if block not in plan.residents)
    if question.wishes.all_stay:
        assert set(plan.residents) == set(sizes)
    elif question.wishes.residents is Residents.none:
        assert not plan.residents
    else:
        left = plan.budget - sum(plan.memory.values()) + plan.cached_slots * facts.largest_expert
        only_dense = question.wishes.caches_experts
        absent = [block for block in sizes if block not in plan.residents and (block.is_dense or not only_dense)]
        assert all(sizes[block] > left for block in absent)
        assert not only_dense or all(block.is_dense for block in plan.residents)


@given(QUESTIONS, SHARES, SHARES)
@examples(100)
def test_a_larger_budget_is_never_expected_to_be_slower(question: Question, low: float, more: float) -> None:
    small, large = question.plan(question.budget(low)), question.plan(question.budget(low + more))
    assert large.forecast.seconds <= small.forecast.seconds * (1 + 1e-9)


@given(QUESTIONS, SHARES)
@examples(200)
def test_what_the_user_has_set_is_honoured(question: Question, share: float) -> None:
    plan = question.plan(question.budget(share))
    wishes, most = question.wishes, max(question.facts.expert_counts)
    assert plan.n_batches == (wishes.n_batches or plan.n_batches) >= 1
    assert plan.batch_size == (wishes.batch_size or plan.batch_size) >= 1
    assert plan.hot_experts == min(wishes.hot_experts or plan.hot_experts, most)
    assert plan.hot_experts >= min(wishes.hot_experts or question.facts.top_k, most)
    if wishes.expert_slots:
        assert plan.expert_slots == min(wishes.expert_slots, max(2, question.facts.num_experts))
        assert not plan.cached_slots
    if wishes.prefill_tokens:
        most = question.demand.group(1, plan.batch_size).prompt_tokens  # of one batch, the heaviest
        assert plan.prefill_tokens == max(min(wishes.prefill_tokens, most), plan.batch_size)


@given(QUESTIONS, SHARES)
@examples(50)
def test_the_same_question_has_the_same_answer(question: Question, share: float) -> None:
    budget = question.budget(share)
    again = replace(question, demand=Demand(question.demand.lengths))
    assert question.plan(budget) == again.plan(budget)


@given(QUESTIONS)
@examples(100)
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
    question = Question(model(fixed_bytes=0), Demand([(1, 1)]), Wishes(1, 1, prefill_tokens=1))
    with pytest.raises(BudgetError) as refusal:
        question.plan(1)
    least = next(size for size in range(2000, 10_000) if accepts(question, size))
    question = replace(question, facts=replace(question.facts, fixed_bytes=need - least))
    assert sum(question.plan(need).memory.values()) == need
    assert not accepts(question, need - 1)
    assert question.plan(question.suggestion())
    assert "need " in str(refusal.value)


def accepts(question: Question, budget: int) -> bool:
    try:
        question.plan(budget)
    except BudgetError:
        return False
    return True


@given(QUESTIONS)
@examples(30)
def test_a_plan_can_be_written_as_json(question: Question) -> None:
    plan = question.plan(question.suggestion())
    written = json.loads(json.dumps(plan.as_dict()))
    assert written["memory"] == plan.memory
    assert written["prefill_tokens"] == plan.prefill_tokens
    assert written["residents"] == [str(block) for block in plan.residents]


@given(LENGTHS, st.integers(1, 6), st.integers(1, 6))
@examples(80)
def test_demand_covers_whichever_batches_are_in_flight_together(
    lengths: list[tuple[int, int]], n: int, size: int
) -> None:
    lengths = sorted(lengths, reverse=True)[:12]
    demand = Demand(lengths)
    group = demand.group(n, size)
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    widths = [(len(batch), max(prompt for prompt, _ in batch), max(output for _, output in batch)) for batch in batches]
    for together in combinations(widths, min(n, len(widths))):
        assert sum(rows * (prompt + output) for rows, prompt, output in together) <= group.context_tokens
        assert sum(rows * prompt for rows, prompt, _ in together) <= group.prompt_tokens
        assert sum(rows for rows, _, _ in together) <= group.sequences
        assert all(rows <= group.batch_size for rows, _, _ in together)
    assert group.longest == max(prompt + output for prompt, output in lengths)
    assert demand.group(n, size) == group
    assert group.output_tokens == pytest.approx(sum(rows * output for rows, _, output in widths) / len(lengths))
    assert min(output for _, output in lengths) <= demand.output_tokens <= max(output for _, output in lengths)


# What a plan is expected to cost.


@given(models(), DEMANDS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 999), st.integers(2, 9), st.floats(0, 1))
@examples(100)
def test_fewer_streamed_bytes_and_more_slots_are_never_slower(
    facts: ModelFacts, demand: Demand, n: int, size: int, prefill: int, slots: int, share: float
) -> None:
    streamed = share * facts.weight_bytes
    costs = Costs(facts, demand)
    pace = costs.pace(demand.group(n, size), prefill)

    def seconds(slots: int, streamed: float, lent: int = 0) -> float:
        return costs.workload(pace, (slots, lent), lambda tokens: Use(0, streamed, facts.num_experts))

    expected = seconds(slots, streamed)
    assert expected > 0
    less = expected * (1 + 1e-9)
    assert seconds(slots + 1, streamed) <= less
    assert seconds(slots, streamed, lent=1) <= less
    assert seconds(slots, streamed / 2) <= less


def test_where_many_groups_follow_each_other_prompts_are_read_beside_what_decodes() -> None:
    """A sweep of decoding is bound by the disk, one over whole prompts by arithmetic: together they take less."""
    facts = model(dense=10**7, expert=10**9, dense_flops=10**9, expert_flops=3 * 10**9)

    def whole_prompts_take(requests: int) -> float:
        demand = Demand([(64, 64)] * requests)
        costs, group = Costs(facts, demand), demand.group(8, 16)
        every_sweep = Use(0, facts.weight_bytes, facts.num_experts)
        pieces, whole = (
            costs.workload(costs.pace(group, tokens), (4, 0), lambda tokens: every_sweep) for tokens in (128, 1024)
        )
        return whole / pieces

    assert whole_prompts_take(128) < 1
    assert whole_prompts_take(5000) > 1.03


def test_many_sequences_come_before_residents() -> None:
    demand = Demand([(10, 10)] * 8)
    rich = Question(model(), demand).plan(1_000_000)
    poor = Question(model(kv_bytes=20), demand).plan(8000)
    assert rich.n_batches * rich.batch_size >= 8
    assert len(rich.residents) == 10
    assert poor.n_batches * poor.batch_size >= 8
    assert len(poor.residents) < 10


def test_few_requests_are_one_batch_because_every_batch_takes_its_turn() -> None:
    demand = Demand([(10, 10)] * 16)
    plan = Question(model(), demand).plan(1_000_000)
    assert (plan.n_batches, plan.batch_size) == (1, 16)
    plan = Question(model(), demand, Wishes(n_batches=4)).plan(1_000_000)
    assert (plan.n_batches, plan.batch_size) == (4, 4)


def test_batches_are_small_where_outputs_differ_because_all_wait_for_the_longest() -> None:
    plan = Question(model(), Demand([(10, 200)] * 8 + [(10, 2)] * 8)).plan(1_000_000)
    assert (plan.n_batches, plan.batch_size) == (2, 8)


def test_prompts_go_in_at_once_where_there_is_memory_and_piece_by_piece_where_there_is_not() -> None:
    demand = Demand([(500, 10)] * 4)
    facts = model(workspace_bytes=100, waiting_bytes=100)
    rich = Question(facts, demand).plan(1_000_000)
    assert rich.prefill_tokens == rich.batch_size * 500
    assert Question(facts, demand).plan(100_000).prefill_tokens < 500


def test_no_sweep_reads_more_of_a_prompt_than_a_bound_whatever_the_memory() -> None:
    assert Question(model(), Demand([(3000, 10)] * 64)).plan(10**12).prefill_tokens <= 16384


def test_more_batches_than_there_are_requests_for_may_be_set() -> None:
    plan = Question(model(), Demand([(10, 10)]), Wishes(n_batches=4)).plan(1_000_000)
    assert (plan.n_batches, plan.batch_size) == (4, 1)


def test_dense_parts_stay_before_experts_and_experts_evenly() -> None:
    facts = model(experts=(3, 3))
    whole = Question(facts, Demand([(1, 1)])).plan(1_000_000)
    assert list(whole.residents) == [Block(layer, index) for index in (-1, 0, 1, 2) for layer in (0, 1)]


def test_there_are_never_slots_for_a_whole_layer_more_than_are_busy() -> None:
    attention = {"dense_flops": 10**13}
    assert Question(model(experts=(64, 64), **attention), Demand([(1, 1)])).plan(60_000).expert_slots <= 2 + 48
    assert Question(model(experts=(1, 1), **attention), Demand([(1, 1)])).plan(1_000_000).expert_slots <= 3


def test_slots_are_for_the_disk_to_run_ahead_while_attention_is_computed() -> None:
    demand = Demand([(10, 10)])
    sizes = {"dense": 10**6, "expert": 10**8}
    quick, slow = (Question(model(experts=(8, 8), dense_flops=flops, **sizes), demand) for flops in (0, 10**11))
    budget = 10**9
    assert slow.plan(budget).expert_slots > quick.plan(budget).expert_slots


def test_a_refusal_names_the_setting_what_was_granted_and_why() -> None:
    with pytest.raises(BudgetError, match=r"hw\.device_memory=1KB \(as set\) is too small: .*set hw\.device_memory="):
        Question(model(), Demand([(1, 1)])).plan(1000)


def test_a_refusal_says_what_the_process_takes_by_itself() -> None:
    with pytest.raises(BudgetError, match=r"too small: the interpreter and torch \(300MB\), slots for .*=300\.1MB or"):
        Question(model(), Demand([(1, 1)]), runtime=300_000_000).plan(200_000_000)


def test_weights_are_all_that_a_model_has() -> None:
    facts = model(experts=(2, 0))
    assert facts.weight_bytes == 2 * 1000 + 2 * 500
    assert (facts.largest_dense, facts.largest_expert) == (1000, 500)
    facts = replace(facts, pair_flops=10, spared_flops=300)
    assert facts.flops(tokens=5, sampled=2, pairs=7, spared=3) == 5 * 2000 - 3 * 300 + 2 * 1000 + 7 * 10


def test_free_memory_leaves_some_and_says_why() -> None:
    size, reason = process_budget()
    own = psutil.Process().memory_info().rss
    assert own / 2 < size < psutil.virtual_memory().total
    assert re.fullmatch(r"80 % of the [0-9.]+ GB (available|left by .*)", reason)


def test_the_process_has_taken_what_it_takes_and_will_take_some_more() -> None:
    own = psutil.Process().memory_info().rss
    assert own * 0.9 < runtime_memory() < own * 1.1 + 500e6
    assert peak_memory() >= own * 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="other systems never forget a process's peak")
def test_what_an_earlier_job_has_taken_at_most_is_forgotten() -> None:
    say = (
        "from klotski.planner import peak_memory, reset_peak_memory, process_memory\n"
        "large = bytearray(b'1') * 400_000_000\n"
        "del large\n"
        "before = peak_memory()\n"
        "reset_peak_memory()\n"
        "print(before, peak_memory(), process_memory())"
    )
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout
    before, after, now = map(int, said.split())
    assert before > 400_000_000
    assert after < now + 50_000_000


def test_a_process_that_a_larger_one_started_tells_its_own_peak() -> None:
    large = b"\1" * 400_000_000
    say = "from klotski.planner import peak_memory; print(peak_memory())"
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout
    assert 1e6 < int(said) < len(large) / 2
