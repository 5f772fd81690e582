"""What the panels show is what the run's own metrics say, however much of it was written."""

import json
from pathlib import Path
from typing import Any

import pytest

from klotski.core import Compute, LaneName, Operation, PrefetchCount, Span, SweepReport
from klotski.telemetry import Allowance, Recorder, RunLog
from monitor.cause import find_bound, find_cause
from monitor.facts import Facts
from monitor.lane import KEPT
from monitor.player import Player
from monitor.source import Run, Status, Tail
from monitor.state import State
from tests.engine import run_engine
from tests.tui.told import event, player_of, said, span, state_of, sweep, view_of, wait

SIMULATED = ("executor=simulate", "model=mixtral", "hw=rtx4090", "history=none", "workload=synthetic")
SMALL = ("workload.num_requests=64", "workload.input_tokens=32", "workload.output_tokens=6", "pipeline.batch_size=16")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(run_engine(tmp_path_factory.mktemp("run"), "workload.limit=6", "workload.max_tokens=12"))


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(run_engine(tmp_path_factory.mktemp("predicted"), *SIMULATED, *SMALL, "placement.attention=device"))


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("below")
    return Run(run_engine(folder, *SIMULATED, *SMALL, "placement.attention=device", "pipeline.misses=cheapest"))


@pytest.fixture(params=["real", "predicted", "below"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.getfixturevalue(request.param)
    return chosen


def is_live(player: Player) -> bool:
    return player.is_live


def test_totals_are_those_of_the_metrics(run: Run) -> None:
    metrics, state = run.metrics(), player_of(run.folder).state
    assert state.num_sweeps == metrics.number("num_sweeps")
    assert state.output_tokens == metrics.number("output_tokens")
    assert state.requests == metrics.number("num_requests")
    assert state.sweep_seconds == pytest.approx(metrics.number("elapsed_time"))
    assert state.rate == pytest.approx(metrics.number("output_tokens_per_second"))
    assert state.bubble_fraction == pytest.approx(metrics.number("bubble_fraction"), rel=1e-6)
    assert list(state.prefetch) == [metrics.number("prefetch", "requested"), metrics.number("prefetch", "used")]
    busy, moved = metrics.numbers("lane_busy_seconds"), metrics.numbers("bytes_moved")
    assert {name: lane.seconds for name, lane in state.lanes.items() if lane.seconds} == pytest.approx(busy, rel=1e-4)
    assert {name: lane.nbytes for name, lane in state.lanes.items() if lane.nbytes} == moved


def test_the_bound_is_that_of_the_metrics(run: Run) -> None:
    metrics, state = run.metrics(), player_of(run.folder).state
    bound = find_bound(state, metrics.numbers("rates"))
    assert bound is not None
    assert bound.resource == metrics.text("bound", "resource")
    assert bound.seconds == pytest.approx(metrics.number("bound", "seconds"))
    assert bound.efficiency == pytest.approx(metrics.number("bound", "efficiency"))


def test_each_panel_says_what_the_metrics_say(run: Run) -> None:
    metrics, player = run.metrics(), player_of(run.folder)
    view = view_of(player)
    overview, lanes = said("Overview", view), said("Lanes", view)
    tokens, requests = metrics.amount("output_tokens"), metrics.amount("num_requests")
    assert "100%" in next(line for line in overview.splitlines() if line.startswith("progress"))
    assert (
        f"{tokens:.0f} tokens and {requests:.0f} requests done in {metrics.amount('num_sweeps'):.0f} sweeps" in overview
    )
    assert f"{metrics.amount('output_tokens_per_second'):.1f} over all" in overview
    of_bound = f"busy for {metrics.amount('bound', 'efficiency'):.0%} of the time"
    assert f"{metrics.text('bound', 'resource')}, by" in overview and of_bound in overview
    assert said("Experts", view).startswith(f"prefetch: {metrics.amount('prefetch', 'hit_rate'):.0%} of ")
    assert all(f"{name:8} " in lanes for name in metrics.numbers("lane_busy_seconds"))
    assert "not told" not in lanes and "the run has ended" in lanes
    whole = view_of(player, window=player.end)
    begin, end = player.state.sweeps[0].begin, player.state.sweeps[-1].end
    for name, seconds in metrics.numbers("lane_busy_seconds").items():
        share = seconds / metrics.amount("elapsed_time")
        assert player.state.lanes[name].busy(begin, end) == pytest.approx(share, rel=0.03, abs=0.01)
    assert whole.cause.waits == pytest.approx(player.state.bubbles.seconds / whole.span[1], rel=0.03, abs=0.01)


def test_tokens_of_experts_are_those_of_the_run(run: Run) -> None:
    learned = json.loads((run.folder / "experts.json").read_text())
    state = player_of(run.folder).state
    for layer, tokens in enumerate(learned["tokens"]):
        assert [state.tokens[layer].get(expert, 0) for expert in range(len(tokens))] == tokens
    assert sum(map(sum, learned["tokens"])) > 0


def test_a_moment_of_the_past_is_what_it_was(run: Run) -> None:
    player = player_of(run.folder)
    newest, sweeps = player.state, list(player.state.sweeps)
    middle = sweeps[len(sweeps) // 2]
    player.seek(middle.end)
    assert not is_live(player) and player.shown == player.state.now == middle.end
    assert player.state.num_sweeps == len(sweeps) // 2 + 1
    assert player.state.output_tokens == sum(each.output_tokens for each in sweeps[: len(sweeps) // 2 + 1])
    overview = said("Overview", view_of(player))
    assert f"{player.state.output_tokens} tokens" in overview, "it is the moment's figures that are shown"
    assert (", by planned rates" if run.is_predicted else ", by measured rates") in overview
    player.seek(player.end + 1)
    assert is_live(player) and player.state is newest


def test_marks_lead_to_the_same_moment(real: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.player.APART", 50)
    player = player_of(real.folder)
    assert sum(1 for segment in player._index._segments if segment.checkpoint) > 3
    for number, each in list(enumerate(player.state.sweeps))[:-1:2]:
        player.seek(each.end)
        assert player.state.num_sweeps == number + 1


# Why compute waits


def of_a_lane(busy: float, count: int = 10) -> State:
    """The disk is busy for a share of each second, and compute waits for 0.8 of it."""
    state = State()
    for number in range(count):
        begin = float(number)
        state.apply(span("disk", "expert", begin, begin + busy, expert=number % 8, bytes=5))
        state.apply(wait("expert", begin, begin + 0.8, expert=number % 8))
        state.apply(span("compute", "expert", begin + 0.8, begin + 1.0, expert=number % 8))
    return state


@pytest.mark.parametrize(
    ("busy", "settings", "words", "lane"),
    [
        (0.98, {}, "disk sets the pace", "disk"),
        (0.4, {"prefetch": "none", "on_demand": "lazy"}, "too late (prefetch=none, on_demand=lazy)", ""),
    ],
)
def test_the_cause_of_bubbles_is_named(busy: float, settings: dict[str, Any], words: str, lane: str) -> None:
    cause = find_cause(of_a_lane(busy), 0.0, 10.0, Facts(settings), Facts())
    assert cause.waits == pytest.approx(0.8)
    assert words in cause.sentence and "experts" in cause.sentence and cause.lane == lane


def test_cores_that_never_rest_over_experts_are_named_and_so_is_what_was_assumed_of_them() -> None:
    state = state_of(
        *(span("cores", "expert", each, each + 0.98, expert=each, tokens=4) for each in range(10)),
        *(wait("answer", each, each + 0.9) for each in range(10)),
    )
    cause = find_cause(state, 0.0, 10.0, Facts(), Facts())
    assert cause.lane == "cores"
    assert "waits for experts on the cores" in cause.sentence and "hw.host_compute_rate" in cause.sentence
    assert state.tokens[0] == dict.fromkeys(range(10), 4) and not state.arrivals


def test_cores_that_compute_experts_alone_leave_attention_to_the_device() -> None:
    state = state_of(
        span("cores", "expert", 0.0, 0.1, expert=0),
        span("compute", "start", 0.1, 0.1, batch=0),
        span("compute", "attention", 0.1, 0.2, batch=0),
    )
    assert state.stages[0].name == "router"
    state.apply(span("cores", "attention", 0.2, 0.3, batch=0))
    state.apply(span("compute", "attention", 0.3, 0.4, layer=1, batch=0))
    assert state.stages[0].name == "attention"


def test_a_run_that_does_not_wait_is_told_so() -> None:
    state = state_of(span("compute", "expert", 0.0, 5.0))
    assert "arithmetic sets the pace" in find_cause(state, 0.0, 5.0, Facts(), Facts()).sentence


def test_a_cause_is_right_however_many_experts_a_sweep_has() -> None:
    """48 layers of 128 experts: a sweep has more operations than are kept, and none is left out of a share."""
    state, now = State(), 0.0
    for layer in range(48):
        for expert in range(128):
            state.apply(span("disk", "expert", now, now + 0.009, layer, expert=expert, bytes=1000))
            state.apply(wait("expert", now, now + 0.004, layer, expert=expert))
            state.apply(span("compute", "expert", now + 0.004, now + 0.01, layer, expert=expert, tokens=3))
            now += 0.01
    assert len(state.lanes["disk"].spans) == KEPT < 48 * 128
    cause = find_cause(state, 0.0, now, Facts(), Facts())
    assert cause.waits == pytest.approx(0.4, rel=0.01)
    assert cause.lane == "disk" and "for experts while disk never rests (90% busy)" in cause.sentence
    assert state.lanes["disk"].curve.between(0.0, now)[1] == pytest.approx(1000 * 48 * 128, rel=0.01)
    assert state.lanes["compute"].busy(0.0, now / 4) == pytest.approx(0.6, rel=0.02)


# What is told where operations are not written


@pytest.fixture(scope="module")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which one sweep is written whole and two layer by layer, and of seventeen only their line is.

    In each, of two seconds, the disk works for 1.5, moving 300 bytes, and compute waits for one and works for one.
    """
    folder = tmp_path_factory.mktemp("terse")
    with RunLog(folder) as log:
        recorder = Recorder(log.events, operations=Allowance(1, 0), layers=Allowance(8, 0))
        recorder.span(Span(LaneName.DISK, Operation("dense", 0, nbytes=999), 0.0, 10.0))
        recorder.begin()
        for number in range(20):
            begin = 10.0 + 2 * number
            for expert in range(3):
                operation = Operation("expert", 0, expert, nbytes=100)
                recorder.span(Span(LaneName.DISK, operation, begin + expert / 2, begin + (expert + 1) / 2))
            computed = Operation(Compute.EXPERT, 0, 1, tokens=10)
            recorder.bubble(Span(LaneName.COMPUTE, computed, begin, begin + 1.0))
            recorder.span(Span(LaneName.COMPUTE, computed, begin + 1.0, begin + 2.0))
            report = SweepReport(number, begin, begin + 2.0, 3, 0, 4, 4, 400, 0, 0)
            recorder.sweep(report, 50, number, PrefetchCount(2 * number, number), is_last=number == 19)
            recorder.flush()
    (folder / "plan.json").write_text(json.dumps({"rates": {"disk": 200.0, "compute": 1000.0}, "output_tokens": 80}))
    return folder


def test_totals_are_right_where_operations_are_not_written(terse: Path) -> None:
    state = player_of(terse).state
    assert len(state.lanes["compute"].spans) == 3, "or this would show nothing"
    assert state.lanes["disk"].seconds == pytest.approx(30.0) and state.lanes["disk"].nbytes == 6000
    assert state.lanes["compute"].seconds == pytest.approx(20.0)
    assert state.bubble_fraction == pytest.approx(0.5)
    assert (state.requests, state.prefetch, state.output_tokens) == (19, (38, 19), 80)
    assert dict(state.tokens) == {0: {1: 200}}
    assert state.arrivals == {0: {0: 20, 1: 20, 2: 20}}
    bound = find_bound(state, {"disk": 200.0, "compute": 1000.0})
    assert bound is not None and bound.resource == "disk" and bound.efficiency == pytest.approx(0.75)


@pytest.mark.parametrize("end", [14.0, 30.0, 50.0])
def test_shares_are_right_where_operations_are_not_written(terse: Path, end: float) -> None:
    player = player_of(terse)
    player.seek(end)
    state = player.state
    assert state.lanes["disk"].busy(end - 4, end) == pytest.approx(0.75)
    assert state.lanes["compute"].busy(end - 4, end) == pytest.approx(0.5)
    cause = find_cause(state, end - 4, end, Facts(), Facts())
    assert cause.waits == pytest.approx(0.5) and "Compute waits for " in cause.sentence


def test_panels_say_what_is_not_written(terse: Path) -> None:
    player = player_of(terse)
    view = view_of(player, status=Status("running"))
    assert view.state.gaps and not view.state.is_in_detail
    line = said("Timeline", view)
    row = next(row for row in line.splitlines() if row.startswith("compute"))
    assert "not written in detail" in line and set(row[9:]) == {"▒"}
    assert "something that is not written in detail" in line
    assert "3 batches took part in the last sweep" in said("Batches", view)
    assert "what it does now is not written" in said("Lanes", view) and "  75%" in said("Lanes", view)
    assert "Nothing is computed" not in said("Overview", view)
    assert "tokens by layer" in said("Experts", view)
    player.seek(12.0)
    assert "░" not in said("Timeline", view_of(player)), "the first sweep is written whole"


def test_how_a_long_sweep_stands_is_told_while_it_goes_on() -> None:
    state = state_of(
        span("compute", "expert", 0.0, 1.0, expert=0),
        sweep(0.0, 1.0, index=0, busy={"compute": 1.0}),
        event("state", time=3.0, busy={"compute": 2.0, "disk": 1.5}, bytes={"disk": 30}, bubble=1.0, memory=5,
              batches=[[4, "attention", 7], [5, "finish", 6], [-1, "gather", 6]]),
    )  # fmt: skip
    assert state.lanes["compute"].busy(1.0, 3.0) == pytest.approx(0.5)
    assert state.lanes["disk"].busy(1.0, 3.0) == pytest.approx(0.75) and state.lanes["disk"].nbytes == 30
    assert state.bubbles.busy(1.0, 3.0) == pytest.approx(0.5)
    assert {batch: stage[:2] for batch, stage in state.stages.items()} == {4: ("router", 7), 5: ("done", 6)}
    assert state.phase == ("experts", 6) and list(state.gaps) == [(1.0, 3.0)]
    state.apply(sweep(1.0, 4.0, index=1, busy={"compute": 3.0, "disk": 1.5}, bytes={"disk": 30}, bubble=1.0))
    assert list(state.gaps) == [(1.0, 4.0)] and state.lanes["compute"].seconds == 3.0
    assert state.lanes["compute"].busy(3.0, 4.0) == pytest.approx(1.0)


def test_what_was_read_before_sweeps_began_is_none_of_theirs() -> None:
    loading = span("disk", "dense", 0.0, 5.0, bytes=500)
    for told in ({}, {"busy": {"disk": 1.0}, "bytes": {"disk": 10}}):
        state = state_of(loading, span("disk", "expert", 5.5, 6.5, bytes=10), sweep(5.0, 7.0, **told))
        assert state.lanes["disk"].seconds == pytest.approx(1.0) and state.lanes["disk"].nbytes == 10
        assert not state.gaps


# Batches


def test_batches_that_have_left_are_not_shown_any_more() -> None:
    state = State()
    for number, group in enumerate([(0, 1, 2), (1, 2), (2, 3)]):
        begin = float(number)
        for batch in group:
            state.apply(span("compute", "attention", begin + 0.1, begin + 0.2, batch=batch))
            state.apply(span("compute", "sample", begin + 0.8, begin + 0.9, batch=batch))
        state.apply(sweep(begin, begin + 1.0, batches=len(group)))
        assert sorted(state.stages) == list(group)


def nobody_attends(state: State) -> bool:
    return state.attending is None


def test_a_batch_is_in_attention_while_it_is() -> None:
    state = state_of(
        *(span("compute", "start", 0.0, 0.0, batch=batch) for batch in range(3)),
        span("compute", "attention", 0.0, 0.1, batch=0),
    )
    assert state.attending == (1, 0)
    state.apply(span("compute", "attention", 0.1, 0.2, batch=1))
    state.apply(span("compute", "attention", 0.2, 0.3, batch=2))
    assert nobody_attends(state), "all have been heard: their experts are next"
    state.apply(span("compute", "expert", 0.3, 0.4, expert=5))
    state.apply(span("compute", "finish", 0.4, 0.5, batch=0))
    assert nobody_attends(state)
    state.apply(span("compute", "finish", 0.4, 0.5, batch=1))
    state.apply(span("compute", "finish", 0.4, 0.5, batch=2))
    assert state.attending == (0, 1)
    state.apply(span("compute", "attention", 0.5, 0.6, layer=1, batch=0))
    assert state.attending == (1, 1)


def test_batches_of_a_run_that_died_are_shown_where_they_were(tmp_path: Path) -> None:
    player = Player(Run(tmp_path))
    player.state.apply(span("compute", "attention", 0.0, 1.0, layer=3, batch=7))
    assert "7          3  ·        ·          ●" in said("Batches", view_of(player, status=Status("dead")))
    assert "all batches have left" in said("Batches", view_of(player, status=Status("ok")))


def test_a_queue_that_nobody_tells_of_is_not_said_to_be_empty(tmp_path: Path) -> None:
    player = Player(Run(tmp_path))
    player.state.apply(span("disk", "expert", 0.0, 1.0))
    running = view_of(player, status=Status("running"))
    assert "waiting: not told" in said("Lanes", running)
    player.state.apply(event("state", time=1.0, waiting={"disk": [1, 3000], "link": [2, 5]}))
    assert "waiting: 1 operation, 3kB" in said("Lanes", running) and "waiting: 2 operations, 5B" in said(
        "Lanes", running
    )
    assert "3kB" not in said("Lanes", view_of(player, status=Status("ok")))


# Files


def test_torn_lines_and_garbage_are_counted_and_newer_events_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    whole = b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":0,"end":1,"bytes":7,"colour":"new"}\n'
    file.write_bytes(whole + b"\xff\xfe not json\n[1]\n" + b'{"event":"dance"}\n{"event":"span"}\n' + whole[:20])
    tail, state = Tail(file), State()
    for each in tail.read():
        state.apply(each)
    assert (state.lanes["disk"].nbytes, tail.damaged) == (7, 3)
    with file.open("ab") as more:
        more.write(whole[20:])
    for each in tail.read():
        state.apply(each)
    assert state.lanes["disk"].nbytes == 14
    file.write_bytes(whole)
    assert not list(tail.read()) and tail.is_replaced
    file.unlink()
    assert not list(tail.read())


def test_a_file_that_another_run_takes_is_read_anew(tmp_path: Path) -> None:
    line = json.dumps({"event": "sweep", "begin": 0, "end": 1, "output_tokens": 5}) + "\n"
    (tmp_path / "events.jsonl").write_text(3 * line)
    player = player_of(tmp_path)
    assert player.state.output_tokens == 15
    (tmp_path / "events.jsonl").write_text(line)
    player.advance(0.0)
    player.advance(0.0)
    assert player.state.output_tokens == 5


def test_memory_is_bounded_however_long_the_run() -> None:
    state = State()
    for number in range(20_000):
        state.apply(span("disk", "expert", number, number + 1, batch=number))
        state.apply(span("compute", "attention", number, number + 1, batch=number))
        busy = {"disk": number + 1.0, "compute": 2.0 * number}
        state.apply(sweep(number, number + 1, index=number, busy=busy, batches=2))
    assert len(state.lanes["disk"].spans) <= KEPT and len(state.lanes["disk"].curve.times) < 10_000
    assert len(state.sweeps) <= 2000 and len(state.works) <= 512 and len(state.gaps) <= 2000
    assert len(state.stages) == 1 and state.num_sweeps == 20_000
    assert sum(work.seconds for work in state.works) == pytest.approx(20_000.0)
