"""What the cores are left of a layer, beside what the link brings: before it is known what is missing, and after."""

import json
from pathlib import Path

import pytest

from klotski.core import Block, Compute, Misses, OnDemand, Operation, Order, Prefetch, Span
from klotski.lanes import InlineLane
from klotski.pipeline import Below, CoresPace, MissCosts, Policy
from klotski.pipeline.cores_share import CoresShare
from klotski.simulation import CoresDurations
from tests.engine import run_engine
from tests.unit.fakes import Sink, ticks

POLICY = Policy(Prefetch.hot, 4, OnDemand.eager, Order.arrival, Misses.cheapest)
BLOCKS = [[Block(0, expert) for expert in range(8)]]
ALIKE = [1.0] * 8


def share(costs: MissCosts, lying: int = 8) -> CoresShare:
    """Of eight experts, the first so many lie where the cores are."""
    lane = InlineLane("cores", Sink(), ticks())
    return CoresShare(BLOCKS, POLICY, Below(lane, frozenset(BLOCKS[0][:lying]), CoresPace(costs, Sink())))


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
    cores = share(MissCosts(moving=4.0, turn=0.1, token=1.0))
    cores.enter(batches=2, came_ahead=0)
    assert cores.hold_back(0, {0: 3.0}, moving=0) == {Block(0, 0): 3.0}
    assert not cores.hold_back(0, {1: 3.0}, moving=0), "the cores would end after 6, and the link at 4"
    assert cores.settle(0, {0: 30}, moving=1) == ([], [Block(0, 0)])
    assert cores.settle(0, {0: 3}, moving=1) == ([0], []), "nothing is held back any more"


def test_what_will_come_for_the_next_layer_counts_but_for_what_comes_while_batches_attend() -> None:
    for attention, is_left in ((0.0, True), (6.0, False)):
        cores = share(MissCosts(moving=1.0, turn=5.0, token=0.0, attention=attention))
        cores.enter(batches=1, came_ahead=6)
        assert bool(cores.hold_back(0, {0: 1.0}, moving=0)) == is_left


def test_cores_that_take_longer_than_was_planned_are_left_less_and_are_tried_again() -> None:
    sink = Sink()
    pace = CoresPace(MissCosts(moving=1.0, turn=0.8, token=0.1), sink)
    lane = InlineLane("cores", sink, ticks())
    cores = CoresShare(BLOCKS, POLICY, Below(lane, frozenset(BLOCKS[0]), pace))
    cores.enter(batches=1, came_ahead=0)
    tokens = dict.fromkeys(range(8), 2)

    def left() -> int:
        return len(cores.settle(0, tokens, moving=0)[0])

    assert left() == 4
    for _ in range(200):  # three times as long
        pace.span(Span("cores", Operation(Compute.EXPERT, 0, 1, tokens=2), 10.0, 13.0))
    assert left() == 2
    assert pace.costs.turn == pytest.approx(2.4, rel=0.01) and pace.costs.token == pytest.approx(0.3, rel=0.01)
    for _ in range(200):  # twenty times
        pace.span(Span("cores", Operation(Compute.EXPERT, 0, 1, tokens=2), 10.0, 30.0))
    assert left() == 0
    tries = next(layer for layer in range(1000) if left())
    assert 10 < tries < 200, "not at once, and not never"
    pace.span(Span("cores", Operation("attention", 0, batch=0), 0.0, 100.0))
    assert left(), "what they look at meanwhile is none of this"
    assert len(sink.spans) == 401


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_a_run_whose_cores_are_slower_than_was_planned_is_not_slower_than_one_without_them(
    slower: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = CoresDurations.__call__
    monkeypatch.setattr(CoresDurations, "__call__", lambda self, operation: slower * told(self, operation))
    seconds: dict[str, float] = {}
    for misses in ("move", "cheapest"):
        run = run_engine(
            tmp_path / misses,
            *("model=mixtral", "hw=h200", "hw.device_memory=24GB", "history=none", "placement.attention=device"),
            *("pipeline.n_batches=8", "pipeline.batch_size=8", f"pipeline.misses={misses}", "workload=synthetic"),
            *("workload.num_requests=64", "workload.input_tokens=64", "workload.output_tokens=12", "events=false"),
        )
        seconds[misses] = json.loads((run / "metrics.json").read_text())["elapsed_time"]
    assert seconds["cheapest"] < (0.7 if slower == 1 else 0.9) * seconds["move"]
