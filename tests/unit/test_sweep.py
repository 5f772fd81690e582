"""The sweep's promises, on schedules nobody thought of.

A run takes batches with arbitrary routing through `run_group`, on a disk that ends operations
late, and writes down in order what was sent for and what was computed. What must hold is read off
that log; that blocks are there when they are used, the store asserts as it goes.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import cycle, product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klotski.core import (
    DENSE,
    Block,
    Misses,
    OnDemand,
    Operation,
    Order,
    Prediction,
    Prefetch,
    PrefetchCount,
    Residents,
    SweepReport,
)
from klotski.lanes import Clock, Event, InlineLane, Lane, ThreadLane
from klotski.pipeline import (
    Below,
    CachesAtHand,
    CoresPace,
    MissCosts,
    Policy,
    Predictor,
    RoutingTable,
    Sweeper,
    create_predictor,
    run_group,
)
from klotski.weights.residency import Residency, SlotKind
from tests.unit.fakes import (
    BEHIND,
    CheckingWorker,
    Counts,
    Entry,
    FakeBatch,
    FakeCaches,
    FakeStore,
    LateLane,
    Sink,
    examples,
    ticks,
)

SWITCHES = [
    (prefetch, on_demand, order)
    for prefetch, on_demand, order in product(Prefetch, OnDemand, Order)
    # What sends for a block at its turn can neither bring it earlier nor choose among arrivals.
    if on_demand is OnDemand.eager or (prefetch is Prefetch.none and order is not Order.arrival)
]
EAGER = Policy(Prefetch.hot, 2, OnDemand.eager, Order.arrival)
LAZY = Policy(Prefetch.none, 1, OnDemand.lazy, Order.index)
WHOLE_LAYER = Policy(Prefetch.layer, 1, OnDemand.eager, Order.index)

ALIKE = MissCosts(1.0, 1.0, 1.0)
LANES = ("disk", "link", "kv", "cores")

Steps = list[list[Counts]]
"""Of one batch: for each sweep that it takes part in, for each layer."""


@dataclass(frozen=True)
class Scenario:
    experts: tuple[int, ...]
    batches: tuple[Steps, ...]
    n: int
    policy: Policy
    prompts: tuple[tuple[int, ...], ...] = ()  # tokens of each step that reads a piece of it; 7 in one by default
    prefill_tokens: int = 1000
    dense_slots: int = 2
    expert_slots: int = 2
    lent_slots: int = 0
    few: int = 0  # tokens of a sweep that leaves them alone
    scored: int = 2
    residents: frozenset[Block] = frozenset()
    cache: Residents = Residents.none
    kv_slots: int = 0  # 0: keys and values are at hand
    looks_below: bool = False  # if they are not: of those that have read their prompts they stay where they are
    prediction: Prediction = Prediction.popularity
    together: bool = False  # experts that stay are computed at once
    places: int = 0  # of a window between disk and device; 0: there is none
    below: frozenset[Block] = frozenset()  # what lies where cores can compute it
    costs: MissCosts = ALIKE
    late: tuple[int, ...] = (0,)  # operations that the disk ends, or 0.1 ms that everyone takes, each time

    def prompt(self, batch: int) -> tuple[int, ...]:
        return self.prompts[batch] if self.prompts else (7,)

    @property
    def blocks(self) -> list[Block]:
        return [Block(layer, expert) for layer, count in enumerate(self.experts) for expert in range(-1, count)]


@dataclass
class Story:
    """What happened in a run."""

    log: list[Entry] = field(default_factory=list)
    reports: list[SweepReport] = field(default_factory=list)
    prefetch: list[PrefetchCount] = field(default_factory=list)
    held: frozenset[Block] = frozenset()
    under_way: int = 0
    sink: Sink = field(default_factory=Sink)
    batches: list[FakeBatch] = field(default_factory=list)

    def sweeps(self) -> list[list[Entry]]:
        """What was computed, by sweep."""
        sweeps: list[list[Entry]] = [[]]
        for entry in self.log:
            if entry.what == "end of sweep":
                sweeps.append([])
            elif entry.what not in ("bring", "lost"):
                sweeps[-1].append(entry)
        assert not sweeps[-1], "something was computed after the last sweep"
        return sweeps[:-1]

    def sampled(self, sweep: int) -> list[tuple[int, ...]]:
        """The batches that chose tokens in a sweep, those together that were scored at once."""
        behind = iter([entry for entry in self.sweeps()[sweep] if entry.layer == BEHIND])
        together = []
        for entry in behind:
            assert entry.what == "score"
            samples = [next(behind) for _ in range(entry.batch)]
            assert all(sample.what == "sample" for sample in samples)
            together.append(tuple(sample.batch for sample in samples))
        return together

    def groups(self) -> list[list[int]]:
        """The batches of each sweep, in order."""
        return [[entry.batch for entry in sweep if entry[:2] == ("attention", 0)] for sweep in self.sweeps()]


def routing_of(scenario: Scenario, groups: list[list[int]]) -> list[list[list[int]]]:
    """Tokens for each expert of each layer over the whole group, by sweep."""
    steps = [iter(batch) for batch in scenario.batches]
    totals = []
    for group in groups:
        layers = [[0] * count for count in scenario.experts]
        for batch in group:
            for layer, counts in enumerate(next(steps[batch])):
                layers[layer] = [sum(pair) for pair in zip(layers[layer], counts or (), strict=True)]
        totals.append(layers)
    return totals


def popularity(experts: tuple[int, ...]) -> Predictor:
    return create_predictor(Prediction.popularity, RoutingTable(experts))


def play(
    scenario: Scenario,
    disk: Lane,
    link: Lane,
    kv: Lane,
    cores: Lane,
    clock: Clock,
    sink: Sink,
    pause: Callable[[], None],
) -> Story:
    story = Story(sink=sink)
    way = link if scenario.places else None
    slots = {SlotKind.DENSE: scenario.dense_slots, SlotKind.EXPERT: scenario.expert_slots}
    lent, cache = scenario.lent_slots, scenario.cache
    store = FakeStore(slots, scenario.residents, disk, story.log, pause, lent, cache, way, scenario.places)

    stay = scenario.looks_below and scenario.kv_slots > 0
    caches = FakeCaches(scenario.kv_slots, kv, stay=stay) if scenario.kv_slots else None

    def visit(entry: Entry) -> None:
        if caches is not None and entry.what == "attention":
            caches.use(entry.batch, entry.layer)
        if entry.layer != BEHIND:
            store.use(Block(entry.layer))  # a batch leaves the layer on the dense part, too
        story.log.append(entry)

    def on_sweep(report: SweepReport) -> None:
        story.reports.append(report)
        story.log.append(Entry("end of sweep", 0))

    compute = InlineLane("compute", sink, clock)
    sweeper = Sweeper(
        scenario.experts,
        scenario.policy,
        create_predictor(scenario.prediction, RoutingTable(scenario.experts)),
        store.residency,
        compute,
        CheckingWorker(store, story.log, scenario.few),
        caches or CachesAtHand(),
        scenario.few,
        scenario.scored,
        together=scenario.together,
        ahead=store.window,
        below=Below(cores, scenario.below, CoresPace(scenario.costs, sink)),
    )
    story.batches = [
        FakeBatch(index, steps, visit, scenario.prompt(index), looks_below=stay)
        for index, steps in enumerate(scenario.batches)
    ]
    run_group(iter(story.batches), scenario.n, scenario.prefill_tokens, sweeper, compute, clock, on_sweep)
    if caches is not None:
        caches.close()
    story.prefetch, story.held = sweeper.prefetch, store.residency.held()
    last = "link" if scenario.places else "disk"
    arrived = sum(span.lane == last for span in sink.spans)
    story.under_way = sum(entry.what == "bring" for entry in story.log) - arrived
    return story


def play_late(scenario: Scenario) -> Story:
    """On a disk that ends the next few operations during each use of a block, and else when waited for."""
    sink, clock = Sink(), ticks()
    disk, link, kv, cores = (LateLane(name, sink, clock) for name in LANES)
    late = cycle(scenario.late)

    def pause() -> None:
        disk.advance(next(late))
        link.advance(next(late))
        kv.advance(next(late))
        cores.advance(next(late))

    return play(scenario, disk, link, kv, cores, clock, sink, pause)


def play_threaded(scenario: Scenario) -> Story:
    sink = Sink()
    disk, link, kv, cores = (ThreadLane(name, sink, time.monotonic) for name in LANES)
    late = cycle(scenario.late)
    with closing(disk), closing(link), closing(kv), closing(cores):
        return play(scenario, disk, link, kv, cores, time.monotonic, sink, lambda: time.sleep(next(late) / 10_000))


# What must hold, read off the story.


def check_computed_once_and_in_order(scenario: Scenario, story: Story) -> None:
    """Layer by layer: all batches in, every expert with tokens once, here or where it lies, all batches out."""
    groups = story.groups()
    for sweep, group, totals in zip(story.sweeps(), groups, routing_of(scenario, groups), strict=True):
        assert [entry.layer for entry in sweep] == sorted(entry.layer for entry in sweep)
        for layer, count in enumerate(scenario.experts):
            entries = [entry for entry in sweep if entry.layer == layer]
            below = [entry.expert for entry in entries if entry.what == "below"]
            check_below(scenario, entries)
            entries = [entry for entry in entries if entry.what not in ("left", "below", "answer")]
            needed = [expert for expert, tokens in enumerate(totals[layer]) if tokens and expert not in below]
            assert all(totals[layer][expert] for expert in below)
            asked = [entry.batch for entry in entries if entry.what == "project"]
            assert asked == [batch for batch in group if batch in asked]
            expected = ["enter"] + ["attention"] * len(group) + ["project"] * len(asked)
            if count:
                expected += ["gather"] + ["expert"] * len(needed) + ["combine"] + ["finish"] * len(group)
            assert [entry.what for entry in entries] == expected
            assert sorted(entry.expert for entry in entries if entry.what == "expert") == needed
            for what in ("attention", "finish") if count else ("attention",):
                assert [entry.batch for entry in entries if entry.what == what] == group


def check_below(scenario: Scenario, entries: list[Entry]) -> None:
    """What cores compute of a layer lies where they are and does not stay on the device; all of it comes back, once."""
    whats = [entry.what for entry in entries if entry.what in ("gather", "below", "answer", "combine")]
    count = whats.count("below")
    assert whats == ["gather"] + ["below"] * count + ["answer"] * (count > 0) + ["combine"] or not whats
    for entry in entries:
        assert entry.what != "below" or (entry.block in scenario.below and entry.block not in scenario.residents)
    assert not count or scenario.policy.misses is Misses.cheapest


def check_all_are_here(scenario: Scenario, story: Story) -> None:
    """Batch after batch, no expert is sent for between a layer's first product and its last, but for want of slots."""
    if scenario.policy.order is not Order.batch or scenario.policy.on_demand is OnDemand.lazy:
        return
    if scenario.expert_slots < max(scenario.experts) or scenario.cache is not Residents.none:
        return
    if len(scenario.experts) == 1:
        return  # what comes for the next sweep is the same layer's
    entered: int | None = None
    for entry in story.log:
        if entry.what in ("gather", "combine"):
            entered = entry.layer if entry.what == "gather" else None
        assert not (entry.what == "bring" and entry.layer == entered and not entry.block.is_dense)


def check_together(scenario: Scenario, story: Story) -> None:
    """Where experts that stay are computed at once, nothing comes between them."""
    if not scenario.together:
        return
    for sweep in story.sweeps():
        for layer in range(len(scenario.experts)):
            computed = [entry.block for entry in sweep if entry.what == "expert" and entry.layer == layer]
            staying = [block for block in computed if block in scenario.residents]
            if staying:
                begin = computed.index(staying[0])
                assert computed[begin : begin + len(staying)] == sorted(staying)


def check_moved_once(scenario: Scenario, story: Story) -> None:
    """A block arrives once for each pass of its layer that uses it, and at most once for one that does not.

    The pass that an arrival is for is the layer's next, or the one in progress while it still
    needs the block. An arrival for a pass that does not use it is a wrong guess, or was sent for
    on behalf of the sweep after the last. What was lost with a slot that was lent may come again. What
    a cache still has need not come.
    """
    totals = routing_of(scenario, story.groups())
    arrivals: Counter[tuple[Block, int]] = Counter()
    passes: Counter[int] = Counter()  # by layer: how often its routing has become known
    entered: Counter[int] = Counter()
    used: set[tuple[Block, int]] = set()
    left: set[tuple[Block, int]] = set()  # to the cores
    lost = 0
    for entry in story.log:
        now = passes[entry.layer] - 1
        if entry.what == "enter":
            entered[entry.layer] += 1
        elif entry.what == "gather":
            passes[entry.layer] += 1
        elif entry.what == "expert":
            used.add((entry.block, now))
        elif entry.what == "left":
            left.add((entry.block, now))
        elif entry.what == "lost":
            arrivals[entry.block, now + 1] -= 1
            lost += 1
        elif entry.what == "bring" and entry.block.is_dense:
            arrivals[entry.block, entered[entry.layer]] += 1
        elif entry.what == "bring":
            wanted = now >= 0 and totals[now][entry.layer][entry.expert]
            wanted = wanted and (entry.block, now) not in used | left
            arrivals[entry.block, now if wanted else now + 1] += 1
    in_vain = lost
    for block, index in product(scenario.blocks, range(len(totals) + 1)):
        is_last = index == len(totals)
        needed = not is_last and (block.is_dense or totals[index][block.layer][block.expert] > 0)
        needed = needed and (block, index) not in left
        count = arrivals[block, index]
        assert count <= 1
        assert not (count and block in scenario.residents)
        if scenario.cache is Residents.none or block.is_dense:
            assert count or not needed or block in scenario.residents, f"{block} was used in {index} but did not arrive"
        in_vain += count and not needed and not block.is_dense
        assert not is_last or not count or scenario.policy.on_demand is OnDemand.eager
    if scenario.policy.prefetch is Prefetch.none:
        assert not in_vain
    if scenario.cache is Residents.none:  # otherwise, what was lost may have come for an earlier pass
        assert in_vain == sum(layer.requested - layer.used for layer in story.prefetch)


def check_group(scenario: Scenario, story: Story) -> None:
    """Batches come in order, stay without a break until they end, and leave no seat empty that could be filled."""
    taken: Counter[int] = Counter()  # steps of each batch
    assert len(story.reports) == len(story.groups())
    for index, (group, report) in enumerate(zip(story.groups(), story.reports, strict=True)):
        waiting = max([*taken, *group]) + 1
        going = [batch for batch in range(waiting) if taken[batch] < len(scenario.batches[batch])]
        assert group == going, "somebody left early, was overtaken, or came back"
        assert 1 <= len(group) <= scenario.n
        prefill = {
            batch: scenario.prompt(batch)[taken[batch]] for batch in group if taken[batch] < len(scenario.prompt(batch))
        }
        assert sum(prefill.values()) <= scenario.prefill_tokens or len(prefill) == 1
        if len(group) < scenario.n and waiting < len(scenario.batches):
            assert prefill
            assert sum(prefill.values()) + scenario.prompt(waiting)[0] > scenario.prefill_tokens
        taken.update(group)
        given = len(scored := [batch for batch in group if taken[batch] >= len(scenario.prompt(batch))])
        assert story.sampled(index) == [
            tuple(scored[begin : begin + scenario.scored]) for begin in range(0, given, scenario.scored)
        ], "not scored at once, or out of order"
        assert (report.index, report.batches, report.output_tokens) == (index, len(group), given)
        assert report.cache_bytes == sum(10 * taken[batch] for batch in group)
        assert (report.prefill_tokens, report.decode_tokens) == (sum(prefill.values()), len(group) - len(prefill))
        assert report.begin == (story.reports[index - 1].end if index else report.begin) <= report.end
    assert taken == {index: len(steps) for index, steps in enumerate(scenario.batches)}
    assert all(batch.is_finished for batch in story.batches)


def check_all(scenario: Scenario, story: Story) -> None:
    check_computed_once_and_in_order(scenario, story)
    check_all_are_here(scenario, story)
    check_together(scenario, story)
    check_moved_once(scenario, story)
    check_group(scenario, story)
    for layer in story.prefetch:
        assert layer.used <= layer.requested <= layer.named * 2
        assert layer.among_hottest <= layer.named
    assert not story.held
    assert not story.under_way, "a slot was given back that is still being written to"


# Schedules.


def only(expert: int, count: int) -> Counts:
    """All tokens on one expert."""
    return tuple(9 * (each == expert % count) for each in range(count)) if count else None


def constant(tokens: Iterable[int], experts: tuple[int, ...], steps: int) -> Steps:
    """The same tokens for each layer's first experts, in each step."""
    counts = tuple(tokens)
    return [[(counts + (0,) * count)[:count] if count else None for count in experts] for _ in range(steps)]


@st.composite
def routings(draw: st.DrawFn, batch: int, experts: tuple[int, ...]) -> Steps:
    lengths = range(draw(st.integers(1, 3)))
    match draw(st.sampled_from(["random", "one expert", "shifting", "all"])):
        case "random":
            return [
                [tuple(draw(st.integers(0, 3)) for _ in range(count)) if count else None for count in experts]
                for _ in lengths
            ]
        case "one expert":
            favourite = draw(st.integers(0, 7))
            return [[only(favourite, count) for count in experts] for _ in lengths]
        case "shifting":
            return [[only(batch + step + layer, count) for layer, count in enumerate(experts)] for step in lengths]
        case "all":
            return [[(2,) * count if count else None for count in experts] for _ in lengths]
    raise AssertionError


@st.composite
def prompts(draw: st.DrawFn, steps: int) -> tuple[int, ...]:
    """A prompt that is read in pieces of one size, and what is left."""
    size = draw(st.integers(1, 12))
    return (size,) * draw(st.integers(0, steps - 1)) + (draw(st.integers(1, size)),)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    experts = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), min_size=1, max_size=4)))
    batches = tuple(draw(routings(batch, experts)) for batch in range(draw(st.integers(1, 5))))
    prefetch, on_demand, order = draw(st.sampled_from(SWITCHES))
    scenario = Scenario(
        experts,
        batches,
        n=draw(st.integers(1, 4)),
        policy=Policy(prefetch, draw(st.integers(1, 4)), on_demand, order, draw(st.sampled_from(Misses))),
        prompts=tuple(draw(prompts(len(steps))) for steps in batches),
        prefill_tokens=draw(st.sampled_from([1, 8, 15, 30, 1000])),
        dense_slots=draw(st.integers(1, 3)),
        expert_slots=draw(st.integers(1, 6)),
        lent_slots=draw(st.integers(0, 4)),
        few=draw(st.sampled_from([0, 2, 4, 10, 1000])),
        scored=draw(st.integers(1, 4)),
        cache=draw(st.sampled_from([Residents.none, Residents.lru, Residents.lfu])),
        kv_slots=draw(st.integers(0, 4)),
        looks_below=draw(st.booleans()),
        prediction=draw(st.sampled_from(list(Prediction))),
        together=draw(st.booleans()),
        places=draw(st.sampled_from([0, 0, 1, 2, 5, 9])),
        costs=MissCosts(*(draw(st.sampled_from([0.1, 1.0, 10.0])) for _ in range(3))),
        late=tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))),
    )
    share = draw(st.sampled_from([0, 0, 0.3, 0.9]))
    random = draw(st.randoms(use_true_random=False))
    residents = frozenset(block for block in scenario.blocks if random.random() < share)
    lying = draw(st.sampled_from([0, 0.5, 1]))
    below = frozenset(block for block in scenario.blocks if random.random() < lying and block not in residents)
    return replace(scenario, residents=residents, below=below)


ONE_LAYER = Scenario((4,), (constant([1, 1, 1, 1], (4,), 3),), 1, EAGER, dense_slots=1, expert_slots=1)
NO_EXPERTS = Scenario((0, 0), (constant([], (0, 0), 2),), 1, EAGER, dense_slots=1)
ALL_COLD = Scenario(
    (8, 0, 8),
    tuple([[only(b + step + layer, e) for layer, e in enumerate((8, 0, 8))] for step in range(3)] for b in range(4)),
    4,
    EAGER,
)
ALL_BELOW = Scenario(
    (2,),
    tuple([[tokens]] for tokens in ((0, 0), (0, 1), (9, 0), (9, 0), (0, 0))),
    1,
    Policy(Prefetch.layer, 1, OnDemand.eager, Order.batch, Misses.cheapest),
    expert_slots=1,
    below=frozenset({Block(0, 0), Block(0, 1)}),
)


@given(scenarios())
@example(ONE_LAYER)
@example(NO_EXPERTS)
@example(ALL_COLD)
@example(ALL_BELOW)
@examples(400)
def test_every_promise_holds_on_a_late_disk(scenario: Scenario) -> None:
    check_all(scenario, play_late(scenario))


@given(scenarios())
@example(ONE_LAYER)
@example(NO_EXPERTS)
@example(ALL_COLD)
@examples(60)
def test_every_promise_holds_on_a_thread(scenario: Scenario) -> None:
    check_all(scenario, play_threaded(scenario))


@given(scenarios())
@examples(60)
def test_the_same_run_takes_the_same_course(scenario: Scenario) -> None:
    assert play_late(scenario).log == play_late(scenario).log


@given(scenarios(), st.sampled_from([Order.index, Order.hot_first, Order.arrival]))
@examples(80)
def test_where_everything_stays_the_order_of_experts_is_the_policys(scenario: Scenario, order: Order) -> None:
    policy = replace(scenario.policy, on_demand=OnDemand.eager, order=order)
    scenario = replace(scenario, policy=policy, residents=frozenset(scenario.blocks), kv_slots=0, together=False)
    story = play_late(scenario)
    check_all(scenario, story)
    assert not [entry for entry in story.log if entry.what == "bring"]
    assert not story.sink.bubbles
    for sweep, totals in zip(story.sweeps(), routing_of(scenario, story.groups()), strict=True):
        for layer, tokens in enumerate(totals):
            computed = [entry.expert for entry in sweep if entry.what == "expert" and entry.layer == layer]
            if order is Order.index:
                assert computed == sorted(computed)
            else:
                assert computed == sorted(computed, key=lambda expert: (-tokens[expert], expert))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(each.value for each in switches))
def test_one_slot_of_each_kind_is_enough_for_every_policy(switches: tuple[Prefetch, OnDemand, Order]) -> None:
    prefetch, on_demand, order = switches
    scenario = replace(
        ALL_COLD, policy=Policy(prefetch, 3, on_demand, order), dense_slots=1, expert_slots=1, late=(0, 1, 5)
    )
    check_all(scenario, play_late(scenario))


# What each strategy sends for, and when.


def positions(log: list[Entry], what: str, block: Block) -> list[int]:
    return [position for position, entry in enumerate(log) if entry.what == what and entry.block == block]


def test_lazy_sends_for_each_block_when_its_turn_comes() -> None:
    story = play_late(Scenario((3, 2), (constant([1, 1, 1], (3, 2), 2),), 1, LAZY))
    check = iter(story.log)
    for entry in check:
        if entry.what == "bring":
            use = next(check)
            assert use.block == entry.block
            assert use.what == ("enter" if entry.block.is_dense else "expert")


def test_eager_sends_for_an_expert_before_the_next_batch_has_been_routed() -> None:
    policy = Policy(Prefetch.none, 1, OnDemand.eager, Order.arrival)
    batches = (constant([4, 0], (2,), 1), constant([0, 4], (2,), 1))
    story = play_late(Scenario((2,), batches, 2, policy))
    order = [(entry.what, entry.expert, entry.batch) for entry in story.log]
    routed, sent = order.index(("attention", DENSE, 0)), order.index(("bring", 0, -1))
    assert routed < sent < order.index(("attention", DENSE, 1)) < order.index(("bring", 1, -1))


@pytest.mark.parametrize("policy", [EAGER, WHOLE_LAYER], ids=["klotski", "overlap"])
def test_the_next_dense_part_is_sent_for_while_experts_are_computed(policy: Policy) -> None:
    story = play_late(Scenario((4, 4), (constant([1, 2, 3, 4], (4, 4), 1),), 1, policy))
    sent = positions(story.log, "bring", Block(1))[0]
    assert positions(story.log, "gather", Block(0))[0] < sent < positions(story.log, "combine", Block(0))[0]


@pytest.mark.parametrize("policy", [EAGER, WHOLE_LAYER], ids=["klotski", "overlap"])
def test_nothing_of_the_next_layer_is_sent_for_before_all_that_this_one_needs(policy: Policy) -> None:
    story = play_late(Scenario((6, 6), (constant([1] * 6, (6, 6), 2),), 1, policy, expert_slots=2))
    sent = [entry.layer for entry in story.log if entry.what == "bring"]
    # Each layer's seven blocks, sweep after sweep, and then what the sweep that does not come would begin with.
    assert sent == [0] * 7 + [1] * 7 + [0] * 7 + [1] * 7 + [0] * 3


def test_the_next_dense_part_is_sent_for_while_batches_pass_a_layer_without_experts() -> None:
    experts = (0, 0, 2)
    story = play_late(Scenario(experts, (constant([1, 1], experts, 1), constant([1, 1], experts, 1)), 2, EAGER))
    for layer in (0, 1):
        sent = positions(story.log, "bring", Block(layer + 1))[0]
        assert sent < positions(story.log, "attention", Block(layer))[0]


def test_a_wrong_guess_gives_its_slot_to_what_is_needed() -> None:
    steps: Steps = [[(5, 0, 0)], [(5, 0, 0)], [(0, 0, 5)]]
    policy = replace(EAGER, hot=1)
    story = play_late(Scenario((3,), (steps,), 1, policy, expert_slots=1))
    last = [entry for entry in story.log if entry.what in ("bring", "expert") and not entry.block.is_dense][-4:]
    assert [(entry.what, entry.expert) for entry in last] == [("bring", 0), ("bring", 2), ("expert", 2), ("bring", 0)]
    assert story.prefetch == [PrefetchCount(requested=4, used=2, named=3, among_hottest=2)]


def test_guesses_at_steady_routing_are_all_of_use_but_those_for_the_sweep_that_does_not_come() -> None:
    experts = (6, 6)
    story = play_late(Scenario(experts, (constant([0, 3, 0, 2], experts, 5),), 1, EAGER, expert_slots=6))
    # The first sweep knows nothing yet and guesses the lowest indices: 1 is right, 0 is not.
    assert sum(layer.requested for layer in story.prefetch) == 2 * 2 * 5 + 2
    assert sum(layer.used for layer in story.prefetch) == 2 + 2 * 2 * 4
    for layer in story.prefetch:  # of the two that it names, both but for the first time
        assert (layer.named, layer.among_hottest) == (2 * 5, 1 + 2 * 4)


def test_hot_brings_no_more_than_its_number_before_routing_is_known() -> None:
    story = play_late(Scenario((8,), (constant([1] * 8, (8,), 1),), 1, replace(EAGER, hot=3), expert_slots=8))
    routed = next(i for i, entry in enumerate(story.log) if entry.what == "attention")
    before = [entry.expert for entry in story.log[:routed] if entry.what == "bring" and not entry.block.is_dense]
    assert before == [0, 1, 2]


def test_where_hot_ones_stay_others_come_ahead_once_nearly_all_are_used() -> None:
    experts = (4, 4)
    resident = frozenset(Block(layer, expert) for layer in (0, 1) for expert in (0, 1))
    scenario = Scenario(experts, (constant([9, 8, 7, 6], experts, 2),), 1, EAGER, expert_slots=3, residents=resident)
    story = play_late(scenario)
    layer = [entry for entry in story.log if entry.layer == 1]
    before = layer[: next(place for place, entry in enumerate(layer) if entry.what == "attention")]
    assert [entry.expert for entry in before if entry.what == "bring"] == [DENSE, 2, 3]
    assert story.prefetch[1] == PrefetchCount(requested=4, used=4, named=4, among_hottest=4)


def test_before_routers_have_spoken_the_window_is_not_filled_with_the_layers_of_the_sweep_after() -> None:
    """All that is known in a first sweep is of the layers that it has passed."""
    experts = (8,) * 6
    story = play_late(Scenario(experts, (constant([1] * 8, experts, 1),), 1, EAGER, places=4, late=(2,)))
    read = [(span.operation.layer, span.operation.expert) for span in story.sink.spans if span.lane == "disk"]
    assert list(dict.fromkeys(layer for layer, _ in read)) == [0, 1, 2, 3, 4, 5]
    assert len(set(read[: 6 * 9])) == 6 * 9


def test_experts_that_are_here_are_computed_while_others_arrive() -> None:
    resident = frozenset({Block(0), Block(0, 3)})
    scenario = Scenario((4,), (constant([9, 9, 9, 1], (4,), 1),), 1, EAGER, expert_slots=3, residents=resident)
    story = play_late(replace(scenario, late=(0,)))
    computed = [entry.expert for entry in story.log if entry.what == "expert"]
    assert computed[0] == 3
    waited = [bubble.operation.expert for bubble in story.sink.bubbles]
    assert 3 not in waited
    assert len(waited) == 3


def all_below(experts: tuple[int, ...], counts: list[int], policy: Policy, **settings: Any) -> Scenario:
    """Everything but dense parts lies where cores compute it; two batches ask for the same."""
    scenario = Scenario(experts, (constant(counts, experts, 2), constant(counts, experts, 2)), 2, policy, **settings)
    return replace(scenario, below=frozenset(block for block in scenario.blocks if not block.is_dense))


CHEAPEST = replace(EAGER, prefetch=Prefetch.none, misses=Misses.cheapest)


def test_cores_compute_the_coldest_so_that_they_end_with_what_moves() -> None:
    # Moving one takes 10 s; computing 1 s, and 1 s for each token: two batches have 2, 4, 6 and 18 of the experts'.
    scenario = all_below((4,), [9, 3, 2, 1], CHEAPEST, costs=MissCosts(10.0, 1.0, 1.0))
    story = play_late(scenario)
    check_all(scenario, story)
    for sweep in story.sweeps():
        assert [entry.expert for entry in sweep if entry.what == "below"] == [3, 2, 1]
        assert [entry.expert for entry in sweep if entry.what == "expert"] == [0]


def test_nothing_is_computed_below_that_is_moved_sooner() -> None:
    scenario = all_below((4,), [9, 3, 2, 1], CHEAPEST, costs=MissCosts(1.0, 10.0, 1.0))
    story = play_late(scenario)
    check_all(scenario, story)
    assert not [entry for entry in story.log if entry.what == "below"]


def test_the_next_layer_comes_ahead_where_cores_compute_all_of_this_one() -> None:
    policy = replace(CHEAPEST, prefetch=Prefetch.hot, hot=1)
    scenario = all_below((4, 4), [0, 3, 3, 3], policy, costs=MissCosts(10.0, 0.1, 0.1))
    story = play_late(scenario)
    check_all(scenario, story)
    assert not [entry for entry in story.sweeps()[0] if entry.what == "expert"], "the guess was wrong"
    left, ahead, back = (
        next(place for place, entry in enumerate(story.log) if (entry.what, entry.layer) == what)
        for what in (("gather", 0), ("bring", 1), ("answer", 0))
    )
    assert left < ahead < back


def test_what_a_first_batch_left_below_is_moved_if_others_ask_for_it_more() -> None:
    first: Steps = [[(1, 9)]]
    others: Steps = [[(80, 0)]]
    scenario = Scenario((2,), (first, others, others), 3, CHEAPEST, costs=MissCosts(10.0, 1.0, 0.5))
    scenario = replace(scenario, below=frozenset({Block(0, 0)}))
    story = play_late(scenario)
    check_all(scenario, story)
    assert not [entry for entry in story.log if entry.what == "below"]
    sent = positions(story.log, "bring", Block(0, 0))[0]
    assert positions(story.log, "attention", Block(0))[-1] < sent < positions(story.log, "gather", Block(0))[0]


def test_a_batch_that_comes_in_shares_the_blocks_of_those_that_decode() -> None:
    experts = (2,)
    batches = (constant([3, 1], experts, 3), constant([3, 1], experts, 1), constant([7, 7], experts, 2))
    story = play_late(Scenario(experts, batches, 2, EAGER))
    assert story.groups() == [[0, 1], [0, 2], [0, 2]]
    assert [(report.prefill_tokens, report.decode_tokens) for report in story.reports] == [(14, 0), (7, 1), (0, 2)]
    assert len(positions(story.log, "expert", Block(0, 0))) == 3


def test_prompts_come_in_as_they_fit_beside_what_decodes() -> None:
    experts = (2,)
    lengths = {0: (6,), 1: (5,), 2: (20, 20, 3), 3: (1,), 4: (9,)}
    batches = tuple(constant([1, 1], experts, len(prompt) + 2) for prompt in lengths.values())
    scenario = Scenario(experts, batches, 4, EAGER, prompts=tuple(lengths.values()), prefill_tokens=11)
    story = play_late(scenario)
    assert story.groups() == [[0, 1], [0, 1, 2], [0, 1, 2], [2, 3], [2, 3, 4], [2, 3, 4], [4]]
    assert [report.prefill_tokens for report in story.reports] == [6 + 5, 20, 20, 3 + 1, 9, 0, 0]
    assert [report.decode_tokens for report in story.reports] == [0, 2, 2, 0, 2, 3, 1]


def test_what_is_on_its_way_for_nobody_is_waited_for_at_the_end() -> None:
    """A wrong guess that was given back before it came, and after which nothing else had to come."""
    experts = (1, 2)
    residents = frozenset({Block(0), Block(0, 0), Block(1), Block(1, 0)})
    scenario = Scenario(experts, (constant([1], experts, 1),), 1, EAGER, residents=residents)
    story = play_late(scenario)
    assert [entry.block for entry in story.log if entry.what == "bring"] == [Block(1, 1)]
    assert not story.under_way


def test_a_sweeper_that_was_closed_may_sweep_again() -> None:
    """Guesses for the sweep that did not come must not be taken for guesses of the next run."""
    log: list[Entry] = []
    disk = LateLane("disk", Sink(), ticks())
    store = FakeStore({SlotKind.DENSE: 2, SlotKind.EXPERT: 2}, [], disk, log)
    compute = InlineLane("compute", Sink(), ticks())
    policy = replace(EAGER, hot=4)  # more than there are slots, so that some still wait for one
    sweeper = Sweeper(
        (5,),
        policy,
        popularity((5,)),
        store.residency,
        compute,
        CheckingWorker(store, log),
        CachesAtHand(),
    )
    for run in range(3):
        batch = FakeBatch(0, [[only(run + step, 5)] for step in range(3)], log.append)
        run_group(iter([batch]), 1, 100, sweeper, compute, ticks(), lambda report: None)
        assert batch.is_finished
        assert not store.residency.held()
    assert [entry.expert for entry in log if entry.what == "expert"] == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert sweeper.prefetch[0].used <= sweeper.prefetch[0].requested


def test_a_group_without_batches_sweeps_nothing() -> None:
    story = play_late(Scenario((2,), (), 3, EAGER))
    assert not story.log
    assert not story.reports


# What goes wrong.


class LostError(Exception):
    pass


class FailedEvent:
    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        raise LostError


@pytest.mark.parametrize("lost", [Block(0), Block(0, 1), Block(1, 0)], ids=str)
def test_a_block_that_cannot_be_read_ends_the_sweep_with_the_disks_error(lost: Block) -> None:
    computed: list[Block] = []
    sink = Sink()
    disk = LateLane("disk", sink, ticks())

    def bring(block: Block, slot: int, after: Iterable[Event]) -> Event:
        return FailedEvent() if block == lost else disk.submit(Operation("read", block.layer), lambda: None)

    class Worker(CheckingWorker):
        def __init__(self) -> None:
            super().__init__(FakeStore({}, [], disk, []), [])

        def enter(self, layer: int) -> None:
            computed.append(Block(layer))

        def compute(self, layer: int, expert: int) -> None:
            computed.append(Block(layer, expert))

    residency = Residency({SlotKind.DENSE: 2, SlotKind.EXPERT: 2}, (), bring)
    compute = InlineLane("compute", sink, ticks())
    sweeper = Sweeper((2, 2), EAGER, popularity((2, 2)), residency, compute, Worker(), CachesAtHand())
    batch = FakeBatch(0, constant([1, 1], (2, 2), 1), lambda entry: None)
    with pytest.raises(LostError):
        run_group(iter([batch]), 1, 100, sweeper, compute, ticks(), lambda report: None)
    assert lost not in computed
    assert not batch.is_finished


def test_an_error_of_the_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(worker: CheckingWorker, layer: int, expert: int) -> None:
        raise LostError

    monkeypatch.setattr(CheckingWorker, "compute", lose)
    with pytest.raises(LostError):
        play_late(ALL_COLD)


# The checks themselves notice what they are there for.


def test_a_block_that_is_used_before_it_has_arrived_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residency, "arrival", lambda self, block: ())
    with pytest.raises(AssertionError, match="should be"):
        play_late(ALL_COLD)


def test_a_second_arrival_is_noticed() -> None:
    story = play_late(ALL_COLD)
    again = next(position for position, entry in enumerate(story.log) if entry.what == "bring")
    story.log.insert(again, story.log[again])
    with pytest.raises(AssertionError):
        check_moved_once(ALL_COLD, story)
