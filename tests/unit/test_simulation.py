"""Batches that compute nothing, routers that are drawn, and where blocks come from in virtual time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Block, Compute, LaneName, Operation, Request, Routing
from klotski.errors import WorkloadError
from klotski.lanes import Event, VirtualClock, VirtualLane
from klotski.pipeline import MissCosts, RoutingTable
from klotski.planner import Rates
from klotski.simulation import CoresDurations, DrawnRouters, HostCaches, RecordedRouters, Supply, SyntheticBatch
from klotski.simulation.routers import Chances
from tests.unit.fakes import Sink, examples
from tests.unit.questions import model

EXPERTS = (0, 4, 4)


def requests(*lengths: tuple[int, int]) -> list[Request]:
    return [
        Request(str(number), (0,) * prompt, output, number) for number, (prompt, output) in enumerate(lengths, start=1)
    ]


def batch(
    *lengths: tuple[int, int], prefill: int = 1000, ended: list[str] | None = None, attends_below: bool = False
) -> SyntheticBatch:
    heard = [] if ended is None else ended
    return SyntheticBatch(
        0,
        requests(*lengths),
        EXPERTS,
        DrawnRouters(EXPERTS, 2),
        prefill,
        lambda sequences, context: 10 * context,
        lambda each: heard.append(str(each.id)),
        spares=True,
        attends_below=attends_below,
    )


def seen(shares: Sequence[float]) -> RoutingTable:
    """What runs would have learned of a single layer, if its tokens had used its experts so often."""
    table = RoutingTable((len(shares),))
    table.shares[0] = np.array(shares)
    return table


def steps(one: SyntheticBatch) -> list[tuple[int, bool, list[int]]]:
    """Tokens of each step, whether it reads prompts, and the choices of each layer with experts."""
    seen: list[tuple[int, bool, list[int]]] = []
    one.resume()
    while not one.is_finished:
        tokens, prefilling, choices = one.tokens, one.is_prefilling, []
        for experts in EXPERTS:
            one.resume()
            if experts:
                assert one.routing is not None
                choices.append(sum(one.routing.counts))
                one.resume()
        if one.is_scoring:
            one.resume()
        seen.append((tokens, prefilling, choices))
    return seen


def test_a_batch_reads_its_prompts_and_then_a_token_of_each_sequence_at_a_time() -> None:
    ended: list[str] = []
    one = batch((5, 3), (4, 1), ended=ended)
    # Of the last layer, only the prompts' last tokens are computed; padding asks for no experts.
    assert steps(one) == [(10, True, [18, 4]), (2, False, [2, 2]), (2, False, [2, 2])]
    assert ended == ["2", "1"]
    assert (one.output_tokens, one.cache_bytes) == (4, 0)


def test_prompts_go_in_piece_by_piece() -> None:
    assert [tokens for tokens, _, _ in steps(batch((5, 2), (5, 2), prefill=4))] == [4, 4, 2, 2]


def test_pairs_are_those_of_a_causal_mask() -> None:
    one = batch((3, 2))
    one.resume()
    assert one.pairs == 2 * 6 + 3
    while one.is_prefilling:
        one.resume()
    assert one.pairs == 2 * 4 + 4


@given(
    st.integers(1, 600),
    st.integers(1, 4),
    st.none() | st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(any),
)
@examples(60)
def test_every_token_chooses_as_many_experts_as_the_router_says(
    tokens: int, top_k: int, shares: Sequence[float] | None
) -> None:
    routers = DrawnRouters((6,), top_k, None if shares is None else seen(shares))
    routing = routers.ask(0, 0, tokens)
    assert all(0 <= count <= tokens for count in routing.counts)
    assert sum(routing.counts) == tokens * top_k
    if routing.choices is not None:
        assert all(len(set(row)) == top_k for row in routing.choices.tolist())


def test_routers_favour_what_was_favoured() -> None:
    routers = DrawnRouters((4,), 1, seen([0.7, 0.1, 0.1, 0.1]))
    for tokens in (10_000, 250):
        counts = np.sum([routers.ask(0, 0, tokens).counts for _ in range(20)], axis=0)
        assert counts[0] / sum(counts) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_model_is_as_skewed_as_it_was_seen_to_be(k: int) -> None:
    """Tokens choose several experts, none twice, and yet the likely ones come to their share."""
    shares = np.array([8, 6, 4, 3, *[1] * 12]) / 33
    wanted = np.minimum(k * shares, 1.0)
    routers = DrawnRouters((16,), k, seen(shares.tolist()))
    for tokens in (250, 5000):
        counts = np.sum([routers.ask(0, 0, tokens).counts for _ in range(40)], axis=0)
        assert counts / (40 * tokens) == pytest.approx(wanted, rel=0.12, abs=0.01)


@given(st.lists(st.sampled_from([0.0, 0.01, 1.0, 3.0]), min_size=4, max_size=4).filter(lambda each: sum(each) > 1))
@examples(8)
def test_experts_are_drawn_one_after_another(weights: list[float]) -> None:
    k, tokens = 2, 20_000
    shares = np.maximum(weights, 1e-9) / np.sum(np.maximum(weights, 1e-9))
    expected = [
        share + sum(other * share / (1 - other) for place, other in enumerate(shares) if place != expert)
        for expert, share in enumerate(shares)
    ]
    choices = Chances(np.array([weights[::-1], weights]) + 1e-9).draw(
        np.ones(tokens, dtype=np.intp), k, np.random.default_rng(0)
    )
    assert np.bincount(choices.ravel(), minlength=4) / tokens == pytest.approx(expected, abs=0.02)


def test_a_token_goes_where_others_went_that_came_from_the_same_expert() -> None:
    table = RoutingTable((4, 4))
    ways = np.random.default_rng(0).integers(0, 4, (250, 1))
    for _ in range(20):
        for layer, choices in enumerate((ways, (ways + 1) % 4)):
            table.observe(layer, {0: Routing(tuple(np.bincount(choices.ravel(), minlength=4).tolist()), choices)})
    routers = DrawnRouters((4, 4), 1, table)
    first, second = (routers.ask(7, layer, 200).choices for layer in (0, 1))
    assert first is not None and second is not None
    assert np.mean((first + 1) % 4 == second) > 0.9
    other = routers.ask(8, 1, 200).choices
    assert other is not None
    assert np.mean((first + 1) % 4 == other) < 0.5


def test_the_same_seed_says_the_same() -> None:
    one, other = DrawnRouters((8,), 2, seed=3), DrawnRouters((8,), 2, seed=3)
    assert [one.ask(0, 0, 5).counts for _ in range(5)] == [other.ask(0, 0, 5).counts for _ in range(5)]


def test_recorded_routers_say_what_was_said_in_the_same_order(tmp_path: Path) -> None:
    file = tmp_path / "routing.jsonl"
    file.write_text(
        '{"batch": 0, "layer": 1, "choices": [[0], [0]]}\n'
        '{"batch": 1, "layer": 1, "choices": [[1], [0]]}\n'
        '{"batch": 0, "layer": 1, "choices": [[1]]}\n'
    )
    routers = RecordedRouters(file, (0, 2))
    assert [routers.ask(batch, 1, tokens).counts for batch, tokens in ((0, 2), (0, 1), (1, 2))] == [
        (2, 0),
        (0, 1),
        (1, 1),
    ]
    with pytest.raises(WorkloadError, match="is of another run: of batch 1 in layer 1"):
        routers.ask(1, 1, 2)


@pytest.mark.parametrize(("content", "says"), [(None, "record_routing=true writes it"), ("{", "line 1 is damaged")])
def test_a_recording_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "routing.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WorkloadError, match=says):
        RecordedRouters(file, (0, 2))


class TestHostCaches:
    """A batch of two sequences, of 5 bytes of keys and values for a token in each of two layers."""

    RATES = Rates(100.0, 1e9, "test", link=10.0, back=20.0, below=5.0)

    def caches(self, slots: int) -> tuple[Sink, VirtualClock, Supply, HostCaches, SyntheticBatch]:
        sink, clock = Sink(), VirtualClock()
        facts = model(kv_bytes=10)
        supply = Supply(facts, self.RATES, [Block(0, 0)], 10**6, sink, clock)
        one = batch((5, 3), (5, 3))
        caches = HostCaches(facts, self.RATES, slots, supply.wire, cores(sink, clock), sink, clock, {0: one})
        return sink, clock, supply, caches, one

    def test_a_prompt_brings_nothing_and_sends_all_of_itself_back(self) -> None:
        sink, clock, supply, caches, one = self.caches(1)
        caches.bring(one, 0)
        assert caches.arrival(one) == ()
        caches.release(one, done(clock))
        caches.close()
        supply.settle()
        assert [(span.lane, span.operation.nbytes, span.end) for span in sink.spans] == [(LaneName.KV_OUT, 50, 2.5)]

    def test_what_stays_is_looked_at_by_the_cores(self) -> None:
        sink, clock, supply, caches, _ = self.caches(1)
        one = batch((5, 3), (5, 3), attends_below=True)
        one.seen, one.is_prefilling = 4, False
        lane = cores(sink, clock)
        caches = HostCaches(model(kv_bytes=10), self.RATES, 1, supply.wire, lane, sink, clock, {0: one})
        caches.bring(one, 1)
        assert caches.arrival(one) == ()
        caches.attend(one, 1, done(clock)).wait()
        caches.close()
        lane.close()
        supply.settle()
        assert [(span.lane, span.operation.nbytes, span.end) for span in sink.spans] == [(LaneName.CORES, 40, 8.0)]

    def test_what_is_cached_goes_before_blocks_that_wait_and_its_slot_is_free_once_it_is_back(self) -> None:
        sink, clock, supply, caches, one = self.caches(1)
        one.seen = 4  # tokens of each
        blocks = [supply.bring(Block(0, 0), 0, ()) for _ in range(2)]
        caches.bring(one, 1)
        for event in caches.arrival(one):
            event.wait()
        assert clock() == 50 + 4
        assert not blocks[1].is_done()
        caches.release(one, done(clock))
        caches.bring(one, 0)
        for event in caches.arrival(one):
            event.wait()
        caches.close()
        supply.settle()
        back = next(span for span in sink.spans if span.lane == LaneName.KV_OUT)
        again = [span for span in sink.spans if span.lane == LaneName.KV_IN][1]
        assert again.begin >= back.end


def cores(sink: Sink, clock: VirtualClock) -> VirtualLane:
    """Cores that look at 5 bytes a second, and compute an expert in 2 seconds and one for each token."""
    return VirtualLane(LaneName.CORES, sink, clock, CoresDurations(5.0, MissCosts(moving=10.0, turn=2.0, token=1.0)))


def test_cores_take_as_long_for_an_expert_as_the_policy_expects() -> None:
    sink, clock = Sink(), VirtualClock()
    lane = cores(sink, clock)
    lane.submit(Operation(Compute.EXPERT, 0, 3, tokens=4), lambda: None).wait()
    assert clock() == 2 + 4


def done(clock: VirtualClock) -> Event:
    """Something that has ended by now."""
    lane = VirtualLane("other", Sink(), clock, lambda operation: 0.0)
    return lane.submit(Operation("nothing", 0), lambda: None)


class TestSupply:
    RATES = Rates(100.0, 1e9, "test", link=1000.0, start=0.0)

    def test_without_a_link_blocks_come_from_disk(self) -> None:
        sink, clock = Sink(), VirtualClock()
        supply = Supply(model(), self.RATES._replace(link=None), [], 0, sink, clock)
        supply.bring(Block(0, 1), 0, ()).wait()
        assert clock() == 500 / 100
        supply.settle()
        assert [span.lane for span in sink.spans] == [LaneName.DISK]

    def test_what_cpu_memory_holds_comes_over_the_link_and_the_rest_over_both(self) -> None:
        sink, clock = Sink(), VirtualClock()
        order = [Block(0, 0), Block(0, 1)]
        supply = Supply(model(), self.RATES, order, 500, sink, clock)
        supply.bring(Block(0, 0), 0, ()).wait()
        assert clock() == 0.5
        supply.bring(Block(0, 1), 0, ()).wait()
        assert clock() == 0.5 + 5 + 0.5
        supply.settle()
        assert [span.lane for span in sink.spans] == [LaneName.LINK, LaneName.DISK, LaneName.LINK]

    def test_no_more_is_read_ahead_than_there_is_room_for(self) -> None:
        sink, clock = Sink(), VirtualClock()
        supply = Supply(model(), self.RATES._replace(disk=1e6, link=1.0), [], 0, sink, clock, places=4)
        for _ in range(4 + 1):
            supply.bring(Block(0, 1), 0, ())
        supply.settle()
        reads = [span for span in sink.spans if span.lane == LaneName.DISK]
        links = [span for span in sink.spans if span.lane == LaneName.LINK]
        assert reads[-1].begin == links[0].end
