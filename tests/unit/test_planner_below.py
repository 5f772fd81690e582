"""Where arithmetic happens on a GPU: what lies below it, what moves, and which of it is worth buying."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klotski.core import Misses, Prefetch, Products
from klotski.errors import BudgetError
from klotski.planner import Budget, Costs, Demand, Plan, Rates, Terms, Wishes, explain, make_plan
from klotski.planner.costs import Work
from klotski.planner.memory import KV_SLOTS
from klotski.planner.streaming import Use
from klotski.units import format_size, parse_size
from tests.unit.fakes import examples
from tests.unit.questions import model

GPU = Rates(
    disk=1e9, compute=1e13, reason="test", link=2e10, back=2e10, memory=5e11, product=5e11, turn=1e-4, step=1e-5
)
FACTS = model(
    experts=(8,) * 4,
    dense=10**6,
    expert=10**7,
    kv_bytes=4 * 10**4,
    dense_flops=10**7,
    expert_flops=10**8,
    head_flops=10**7,
)
MANY = Demand([(64, 32)] * 512)


def plan(host: int, device: int = 10**9, wishes: Wishes = Wishes(), demand: Demand = MANY) -> Plan:  # noqa: B008
    return make_plan(Terms(FACTS, demand, Budget(device, "test", host=host), wishes, GPU))


def test_keys_and_values_move_where_that_lets_more_sequences_share_an_arrival() -> None:
    small = plan(10**11, device=150_000_000)
    assert small.kv_slots == KV_SLOTS
    assert small.host_memory["kv_cache"] == small.sequences * 96 * FACTS.kv_bytes
    assert small.memory["kv_cache"] < small.host_memory["kv_cache"]
    stays = plan(10**11, device=150_000_000, wishes=Wishes(kv_moves=False))
    assert stays.kv_slots == 0
    assert small.forecast.seconds < stays.forecast.seconds


def test_a_large_device_keeps_them() -> None:
    large = plan(10**11, device=10**11)
    assert large.kv_slots == 0
    assert large.host_memory["kv_cache"] == 0


def test_windows_and_states_stay_on_the_device_wherever_keys_and_values_are() -> None:
    """What does not stay moves; where nothing else is kept, nothing does, even if that is what was asked for."""
    facts = replace(FACTS, window_bytes=10**4, window_tokens=16, state_bytes=10**5)
    for wished in (True, False):
        terms = Terms(facts, MANY, Budget(10**9, "test", host=10**11), Wishes(kv_moves=wished), GPU)
        found = make_plan(terms)
        assert found.memory["layer_states"] >= found.sequences * (16 * 10**4 + 10**5)
        assert bool(found.kv_slots) == wished
        only = make_plan(terms._replace(facts=replace(facts, kv_bytes=0, kv_layer_bytes=0)))
        assert (only.kv_slots, only.memory["kv_cache"], only.host_memory["kv_cache"]) == (0, 0, 0)
        assert only.memory["layer_states"] >= only.sequences * (16 * 10**4 + 10**5)


def test_attention_goes_to_keys_and_values_where_the_cores_read_faster_than_the_link_brings() -> None:
    facts = replace(FACTS, attends_anywhere=True, kv_bytes=10 * FACTS.kv_bytes)
    long = Demand([(256, 128)] * 512)
    budget, either = Budget(200_000_000, "test", host=10**11), Wishes(kv_moves=True, attends_below=None)

    def found(below: float, wishes: Wishes = either) -> Plan:
        return make_plan(Terms(facts, long, budget, wishes, GPU._replace(below=below)))

    fast, slow = found(1e11), found(1e9)
    assert (fast.attends_below, slow.attends_below) == (True, False)
    moves = found(1e11, Wishes(kv_moves=True, attends_below=False))
    assert not moves.attends_below
    assert fast.forecast.seconds < moves.forecast.seconds == slow.forecast.seconds


def test_a_model_whose_attention_is_bound_to_the_device_moves_its_keys() -> None:
    assert not plan(10**11, wishes=Wishes(kv_moves=True, attends_below=True)).attends_below


def test_without_a_gpu_nothing_moves() -> None:
    terms = Terms(FACTS, MANY, Budget(10**9, "test", host=10**11), Wishes(), GPU._replace(link=None, back=None))
    found = make_plan(terms)
    assert (found.kv_slots, found.host_memory) == (0, {})


@given(st.integers(1, 2 * 10**9), st.integers(80_000_000, 10**9), st.sampled_from([None, True, False]))
@example(1, 195_540_349, True)  # a block does not find the room that is left for a part of it
@examples(100)
def test_what_lies_below_fits_there_or_is_refused_with_what_would_do(
    host: int, device: int, moves: bool | None
) -> None:
    wishes, demand = Wishes(kv_moves=moves), Demand([(64, 32)] * 8)
    try:
        found = plan(host, device, wishes, demand)
    except BudgetError as refusal:
        said = str(refusal)
        assert said.startswith(f"hw.host_memory={format_size(host)} is too small")
        host = parse_size("hw.host_memory", said.partition("; set hw.host_memory=")[2].removesuffix(" or more")) or 0
        found = plan(host, device, wishes, demand)
    assert sum(found.host_memory.values()) <= host
    assert sum(found.memory.values()) <= device
    assert moves is None or bool(found.kv_slots) == moves


def test_more_memory_below_saves_the_disk() -> None:
    stays = Wishes(kv_moves=False)
    seconds = [plan(host, 10**8, stays).forecast.seconds for host in (2 * 10**8, 3 * 10**8, 10**9)]
    assert seconds[0] > seconds[1] > seconds[2]


def test_it_says_when_memory_below_is_what_is_missing() -> None:
    terms = Terms(FACTS, MANY, Budget(10**8, "test", host=2 * 10**8), Wishes(kv_moves=False), GPU)
    said = explain(make_plan(terms), terms).explanation
    assert said.startswith("The disk sets the pace")
    assert "with 1GB more CPU memory" in said


def sweep(wishes: Wishes, *, moves: bool = False) -> float:
    costs = Costs(FACTS, MANY, GPU, wishes, 10**12, moves)
    return costs.sweep(Work(256, 256, 16, 256 * 80), 10, lambda tokens: Use(4e6, 3.2e8, 32)).total


def test_what_other_engines_do_takes_longer() -> None:
    ours = sweep(Wishes())
    assert sweep(Wishes(products=Products.batch)) > ours
    assert sweep(Wishes(prefetch=Prefetch.sublayer)) > ours


def test_keys_and_values_that_move_take_their_time_on_the_way() -> None:
    assert sweep(Wishes(), moves=True) == pytest.approx((3.24e8 + 256 * 80 * FACTS.kv_bytes) / 2e10, rel=0.05)


def test_several_batches_read_their_prompts_in_one_sweep() -> None:
    """Each sweep brings all weights over the link, and prompts are read for as long as that takes without a cost."""
    few, wishes = Demand([(64, 32)] * 60), Wishes(n_batches=15, batch_size=4)
    quick = GPU._replace(compute=1e15, turn=1e-6)
    found = make_plan(Terms(FACTS, few, Budget(300_000_000, "test", host=10**11), wishes, quick))
    assert found.prefill_tokens == 60 * 64
    assert found.forecast.sweeps == 32
    on_cores = Terms(FACTS, few, Budget(300_000_000, "test"), wishes, quick._replace(link=None, back=None))
    assert make_plan(on_cores).prefill_tokens == 4 * 64, "the heap of a process has holes"


def test_what_has_no_room_below_gives_up_as_much_again_for_what_it_goes_through() -> None:
    streamed, largest, window = 10**9, FACTS.largest_expert, 16
    use = Use(0, streamed, 32)

    def share_from_disk(below: int) -> float:
        costs = Costs(FACTS, MANY, GPU._replace(disk=1.0, link=1e9), below=below, window=window)
        return 1 / costs.arrival(lambda tokens: use) / 1.0

    assert share_from_disk(streamed + largest) == 1e-9
    short = streamed - 10 * largest
    assert share_from_disk(short) == pytest.approx((10 + window) * largest / streamed)


def test_cores_look_at_keys_and_values_while_other_batches_are_computed() -> None:
    work = Work(tokens=64.0, sampled=64.0, batches=8.0, context=1e6)
    use = Use(0, 0, 32)

    def seconds(below: float) -> tuple[float, float]:
        costs = Costs(FACTS, MANY, GPU._replace(below=below), kv_moves=True, attends_below=True)
        found = costs.sweep(work, 8, lambda tokens: use)
        return found.total, found.arithmetic

    total, arithmetic = seconds(1e13)
    assert total < arithmetic, "what the cores do is hidden"
    slow, _ = seconds(1e9)
    assert slow == pytest.approx(1e6 * FACTS.kv_bytes / 1e9, rel=0.05), "and where it takes longest, all else is"


CORES = GPU._replace(cores=1e12, cores_product=1e11)


@given(
    tokens=st.floats(1, 1000),
    batches=st.integers(1, 16),
    below=st.floats(1e6, 1e9),
    cores=st.floats(1e10, 1e13),
    product=st.floats(1e9, 1e12),
    kv_moves=st.booleans(),
)
@examples(200)
def test_cores_are_given_no_more_than_lets_them_end_with_the_link(
    tokens: float, batches: int, below: float, cores: float, product: float, kv_moves: bool
) -> None:
    rates = GPU._replace(cores=cores, cores_product=product, link=1e9)
    moving = Costs(FACTS, MANY, rates, Wishes(), below=int(below), kv_moves=kv_moves, window=4)
    leaving = replace(moving, wishes=Wishes(misses=Misses.cheapest))

    def using(tokens: float) -> Use:
        return Use(1e6, 2e8, 20.0)

    work = Work(tokens, tokens, batches, 100.0)
    moved, left = moving.sweep(work, 4, using), leaving.sweep(work, 4, using)
    assert left.total <= moved.total * (1 + 1e-9)
    assert left.disk <= moved.disk
    assert left.attention + left.cache + left.below <= max(left.total, left.attention + left.cache) * (1 + 1e-9)
    assert not moved.below


def test_what_lies_on_disk_is_read_whatever_the_cores_compute() -> None:
    slow = CORES._replace(disk=1e7)
    for misses in Misses:
        costs = Costs(FACTS, MANY, slow, Wishes(misses=misses), below=10**8, window=4)
        seconds = costs.sweep(Work(64, 64, 4, 0.0), 4, lambda tokens: Use(0.0, 3.2e8, 32.0))
        assert seconds.disk == pytest.approx((3.2e8 - (10**8 - 4 * FACTS.largest_expert)) / slow.disk)


def test_a_plan_says_what_the_cores_do_and_whether_faster_ones_would_bring_more() -> None:
    def found(misses: Misses) -> Plan:
        terms = Terms(FACTS, MANY, Budget(150_000_000, "test", host=10**11), Wishes(misses=misses), CORES)
        return explain(make_plan(terms), terms)

    left, moved = found(Misses.cheapest), found(Misses.move)
    assert left.forecast.seconds < moved.forecast.seconds
    assert "the cores compute the coldest" in left.explanation and "cores twice as fast" in left.growth
    assert "the cores compute" not in moved.explanation and "cores twice as fast" not in moved.growth
    hint = "computed on the cores (pipeline.misses=cheapest), the run would be predicted to take"
    assert hint in moved.explanation and hint not in left.explanation
    slow = Terms(FACTS, MANY, Budget(150_000_000, "test", host=10**11), Wishes(), CORES._replace(cores_product=1e8))
    assert hint not in explain(make_plan(slow), slow).explanation
