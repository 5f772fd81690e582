"""What a run leaves behind says what happened, whole and in agreement with itself."""

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import DENSE, Compute, LaneName, Operation, PrefetchCount, Request, Result, Span, SweepReport
from klotski.errors import KlotskiError, OutputError
from klotski.executors.account import Account
from klotski.lanes import InlineLane, ThreadLane
from klotski.lanes.cuda import CudaClock, CudaLane
from klotski.planner import ModelFacts
from klotski.telemetry import Allowance, Recorder, RunLog, StateEvent, SweepUse, Totals, summarize, write_trace
from klotski.workload import Encoder, Limits
from tests.card import Card
from tests.card.streams import CurrentStream
from tests.engine import read_lines, run_engine
from tests.unit.fakes import examples

# From the design: other programs rely on these names.
METRICS = [
    "status",
    "error",
    "mode",
    "elapsed_time",
    "num_requests",
    "prompt_tokens",
    "output_tokens",
    "total_num_tokens",
    "requests_per_second",
    "tokens_per_second",
    "output_tokens_per_second",
    "prefill_seconds",
    "prefill_rate",
    "prefill_efficiency",
    "decode_seconds",
    "decode_tokens_per_second",
    "num_sweeps",
    "bytes_moved",
    "lane_busy_seconds",
    "bubble_fraction",
    "bound",
    "rates",
    "peak_memory",
    "prefetch",
    "plan",
]
LANES = [LaneName.COMPUTE, LaneName.DISK, "copy_in", "copy_out"]


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    return Operation(
        kind=draw(st.sampled_from([*Compute, "dense"])),
        layer=draw(st.integers(0, 40)),
        expert=draw(st.integers(DENSE, 9)),
        batch=draw(st.integers(-1, 5)),
        nbytes=draw(st.integers(0, 10**9)),
        tokens=draw(st.integers(0, 1000)),
    )


@st.composite
def spans(draw: st.DrawFn, lane: str) -> list[Span]:
    """Operations of one lane, which never overlap."""
    steps = draw(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), operations()), max_size=8))
    now, found = draw(st.floats(0, 10_000)), []
    for pause, duration, operation in steps:
        begin = now + pause
        now = begin + duration
        found.append(Span(lane, operation, begin, now))
    return found


@st.composite
def timelines(draw: st.DrawFn) -> list[Span]:
    """Operations of several lanes, in the order in which they end."""
    lanes = draw(st.sets(st.sampled_from(LANES), min_size=1))
    return sorted((span for lane in sorted(lanes) for span in draw(spans(lane))), key=lambda span: span.end)


def check_trace(file: Path, lanes: set[str]) -> list[dict[str, Any]]:
    """Assert that a trace is one that Perfetto shows well; its complete events."""
    trace = json.loads(file.read_text())
    entries = trace["traceEvents"]
    names = [(entry["tid"], entry["args"]["name"]) for entry in entries if entry["name"] == "thread_name"]
    assert len({tid for tid, _ in names}) == len({name for _, name in names}) == len(names)
    assert {name for _, name in names} == lanes
    complete = [entry for entry in entries if entry["ph"] == "X"]
    assert {entry["tid"] for entry in complete} == {tid for tid, _ in names}
    tracks = defaultdict(list)
    for entry in complete:
        assert entry["dur"] >= 0
        tracks[entry["tid"]].append((entry["ts"], entry["ts"] + entry["dur"]))
    for track in tracks.values():
        # A nanosecond, the last digit that is kept; in microseconds.
        assert all(before[1] <= after[0] + 0.0011 for before, after in pairwise(sorted(track)))
    return complete


@given(timelines())
@examples(60)
def test_events_of_each_lane_add_up_to_its_busy_seconds(
    tmp_path_factory: pytest.TempPathFactory, timeline: list[Span]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder) as log:
        log.plan({})
        recorder = Recorder(log.events)
        for number, span in enumerate(timeline):
            recorder.span(span)
            if number % 3 == 0:
                recorder.flush()
        recorder.flush()
        metrics = summarize("ok", "measured", Totals(), recorder, None)
    seconds: dict[str, float] = defaultdict(float)
    nbytes: dict[str, int] = defaultdict(int)
    for line in read_lines(folder / "events.jsonl"):
        assert line["event"] == "span"
        seconds[line["lane"]] += line["end"] - line["begin"]
        nbytes[line["lane"]] += line.get("bytes", 0)
    assert metrics["lane_busy_seconds"] == pytest.approx(seconds, abs=1e-7)
    assert metrics["bytes_moved"] == {lane: count for lane, count in nbytes.items() if count}


@given(timelines(), st.booleans())
@examples(60)
def test_the_trace_has_a_track_for_each_lane_on_which_nothing_overlaps(
    tmp_path_factory: pytest.TempPathFactory, timeline: list[Span], waits: bool
) -> None:
    folder = tmp_path_factory.mktemp("run")
    expected = {str(span.lane) for span in timeline}
    with RunLog(folder) as log:
        log.plan({})
        recorder = Recorder(log.events)
        for span in timeline:
            recorder.span(span)
        if waits:
            recorder.bubble(Span(LaneName.COMPUTE, Operation(Compute.EXPERT, 3, 1), 1.0, 2.0))
            recorder.sweep(SweepReport(0, 0.0, 2.0, 1, 10, 0, 1, 400, 0, 0))
            recorder.sweep(SweepReport(1, 2.0, 5.0, 1, 0, 1, 1, 440, 0, 0))
            expected |= {"bubbles", "sweeps"}
        recorder.flush()
    write_trace(folder / "events.jsonl", folder / "trace.json")
    assert len(check_trace(folder / "trace.json", expected)) == len(timeline) + 3 * waits


def test_lanes_at_work_leave_a_trace_that_can_be_opened(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        recorder = Recorder(log.events)
        disk = ThreadLane(LaneName.DISK, recorder, log.clock)
        is_waited_for = threading.Event()

        def waiting() -> float:
            """The compute lane looks at its clock when it begins to wait: no read ends sooner."""
            now = log.clock()
            is_waited_for.set()
            return now

        compute = InlineLane(LaneName.COMPUTE, recorder, waiting)
        for expert in range(10):
            is_waited_for.clear()
            read = disk.submit(Operation("expert", 0, expert, nbytes=100), lambda: is_waited_for.wait(60))
            compute.submit(Operation(Compute.EXPERT, 0, expert, tokens=3), lambda: None, [read])
        disk.close()
        recorder.flush()
    write_trace(tmp_path / "events.jsonl", tmp_path / "trace.json")
    complete = check_trace(tmp_path / "trace.json", {"disk", "compute", "bubbles"})
    assert {"L0 expert 9", "wait for L0 expert 9"} <= {entry["name"] for entry in complete}
    assert recorder.bytes_moved[LaneName.DISK] == 1000
    assert 0 < recorder.bubble_seconds <= log.clock()


def test_a_long_run_leaves_a_trace_of_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klotski.telemetry.trace.MOST", 3)
    for count in (3, 4):
        with RunLog(tmp_path / str(count)) as log:
            recorder = Recorder(log.events)
            for number in range(count):
                recorder.span(Span(LaneName.DISK, Operation("expert", number), number, number + 0.5))
            recorder.flush()
        is_whole = write_trace(log.folder / "events.jsonl", log.folder / "trace.json")
        assert is_whole == (count == 3)
        assert len(check_trace(log.folder / "trace.json", {"disk"})) == 3


def test_a_long_run_is_summed_up_where_its_file_would_grow_too_large(tmp_path: Path) -> None:
    """Ten sweeps of 40 operations: one is written whole, five by layer, and the others are a line each."""
    with RunLog(tmp_path) as log:
        recorder = Recorder(log.events, operations=Allowance(50, 0), layers=Allowance(15, 0))
        for sweep in range(10):
            for number in range(40):
                begin = sweep + number / 40
                expert = Operation("expert", number // 20, number, nbytes=5, tokens=number)
                recorder.span(Span(LaneName.COMPUTE, expert, begin, begin + 0.02))
                if number < 20:
                    recorder.bubble(Span(LaneName.COMPUTE, expert, begin + 0.02, begin + 0.025))
            recorder.sweep(SweepReport(sweep, sweep, sweep + 1, 1, 0, 1, 1, 400, 0, 0))
            recorder.flush()
    kinds = [line["event"] for line in read_lines(tmp_path / "events.jsonl")]
    whole = ["span", "bubble"] * 20 + ["span"] * 20 + ["sweep"]
    assert kinds == whole + ["spans", "bubbles", "spans", "sweep"] * 5 + ["sweep"] * 4
    sums = [line for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "spans" and line["layer"] == 1]
    assert sums[0] == {
        "event": "spans",
        "lane": "compute",
        "kind": "expert",
        "layer": 1,
        "begin": 1.5,
        "end": pytest.approx(1.995),
        "seconds": pytest.approx(0.4),
        "count": 20,
        "bytes": 100,
        "tokens": sum(range(20, 40)),
    }
    assert recorder.busy_seconds == {"compute": pytest.approx(8.0)}
    assert recorder.bubble_seconds == pytest.approx(1.0)
    write_trace(tmp_path / "events.jsonl", tmp_path / "trace.json")
    names = {entry["name"] for entry in check_trace(tmp_path / "trace.json", {"compute", "bubbles", "sweeps"})}
    assert {"L1 expert, 20 times", "20 waits for L0 expert"} <= names


def test_what_has_been_done_is_told_in_any_detail(tmp_path: Path) -> None:
    """Of three sweeps one is written whole, one by layer, one not at all: the line of each counts everything."""
    with RunLog(tmp_path) as log:
        recorder = Recorder(log.events, operations=Allowance(1, 0), layers=Allowance(1, 0))
        for sweep in range(3):
            for expert in range(2):
                operation = Operation("expert", 1, expert, nbytes=5)
                recorder.span(Span(LaneName.DISK, operation, sweep, sweep + 0.5))
                computed = operation._replace(nbytes=0, tokens=10 + expert)
                recorder.bubble(Span(LaneName.COMPUTE, computed, sweep, sweep + 0.5))
                recorder.span(Span(LaneName.COMPUTE, computed, sweep + 0.5, sweep + 0.75))
            report = SweepReport(sweep, sweep, sweep + 1, 1, 0, 1, 1, 400, 0, 0)
            recorder.sweep(report, 70, sweep, PrefetchCount(3 * sweep, 2 * sweep), is_last=sweep == 2)
            recorder.flush()
    lines = read_lines(tmp_path / "events.jsonl")
    sweeps = [line for line in lines if line["event"] == "sweep"]
    assert [line["event"] for line in lines].count("span") == 4
    assert [line["busy"] for line in sweeps] == [{"disk": 1.0 + 1.0 * n, "compute": 0.5 + 0.5 * n} for n in range(3)]
    assert [line["bytes"] for line in sweeps] == [{"disk": 10}, {"disk": 20}, {"disk": 30}]
    assert [line["bubble"] for line in sweeps] == [1.0, 2.0, 3.0]
    assert [line["flops"] for line in sweeps] == [70, 70, 70]
    assert [(line.get("requests", 0), line.get("requested", 0), line.get("used", 0)) for line in sweeps] == [
        (0, 0, 0),
        (1, 3, 2),
        (2, 6, 4),
    ]
    # Of experts, the first and the last are told; between them is less than three seconds.
    assert [line.get("tokens") for line in sweeps] == [[[], [10, 11]], None, [[], [30, 33]]]
    assert [line.get("arrivals") for line in sweeps] == [[[], [1, 1]], None, [[], [3, 3]]]
    write_trace(tmp_path / "events.jsonl", tmp_path / "trace.json")


def test_what_was_done_before_sweeps_began_is_not_counted() -> None:
    written: list[bytes] = []
    recorder = Recorder(written.append)
    recorder.span(Span(LaneName.DISK, Operation("expert", 0, 3, nbytes=5), 0.0, 1.0))
    recorder.begin()
    recorder.span(Span(LaneName.DISK, Operation("expert", 0, 1, nbytes=7), 1.0, 1.5))
    recorder.sweep(SweepReport(0, 1.0, 2.0, 1, 0, 1, 1, 400, 0, 0))
    recorder.flush()
    sweep = json.loads(written[-1].splitlines()[-1])
    assert (sweep["busy"], sweep["bytes"], sweep["arrivals"]) == ({"disk": 0.5}, {"disk": 7}, [[0, 1]])


def test_where_there_is_a_link_it_is_by_that_that_experts_arrive() -> None:
    written: list[bytes] = []
    recorder = Recorder(written.append)
    for lane in (LaneName.DISK, LaneName.LINK, LaneName.LINK):
        recorder.span(Span(lane, Operation("expert", 0, 0), 0.0, 1.0))
    recorder.span(Span(LaneName.COMPUTE, Operation("expert", 0, parts=((0, 4), (2, 5))), 1.0, 2.0))
    recorder.sweep(SweepReport(0, 0.0, 2.0, 1, 0, 1, 1, 400, 0, 0))
    recorder.flush()
    sweep = json.loads(written[-1].splitlines()[-1])
    assert (sweep["tokens"], sweep["arrivals"]) == ([[4, 0, 5]], [[2]])


def test_an_hour_of_counts_stays_within_megabytes() -> None:
    """48 layers of 128 experts, each with hundreds of thousands of tokens, in 7,200 sweeps."""
    size = 0

    def write(lines: bytes) -> None:
        nonlocal size
        size += len(lines)

    recorder = Recorder(write, operations=Allowance(0, 0), layers=Allowance(0, 0))
    for layer in range(48):
        every = tuple((expert, 300_000) for expert in range(128))
        recorder.span(Span(LaneName.COMPUTE, Operation("expert", layer, parts=every), 0.0, 1.0))
        for expert in range(128):
            recorder.span(Span(LaneName.DISK, Operation("expert", layer, expert), 0.0, 1.0))
    for sweep in range(7200):
        recorder.sweep(SweepReport(sweep, sweep / 2, sweep / 2 + 0.5, 1, 0, 1, 1, 400, 0, 0))
        recorder.flush()
    assert 5e6 < size < 20e6


def test_how_things_stand_counts_what_was_told_before_it() -> None:
    """At the end of all that is told once more; what a sum says is never told behind a state that counts it."""
    written: list[bytes] = []
    recorder = Recorder(written.append, operations=Allowance(0, 0))
    recorder.span(Span(LaneName.COMPUTE, Operation(Compute.START, 0, batch=9), 0.0, 0.0))
    recorder.sweep(SweepReport(0, 0.0, 1.0, 1, 0, 1, 1, 400, 0, 0))  # from now on by layer
    with recorder.telling(lambda: StateEvent(2.0, {"disk": (1, 5)}, {}, 10**6, 0, 0, 1, 0)):
        recorder.span(Span(LaneName.COMPUTE, Operation(Compute.ATTENTION, 3, batch=7), 1.0, 1.5))
        recorder.bubble(Span(LaneName.COMPUTE, Operation(Compute.GATHER, 3), 1.5, 1.75))
        recorder.span(Span(LaneName.COMPUTE, Operation(Compute.GATHER, 3), 1.75, 2.0))
    lines = [json.loads(line) for line in b"".join(written).splitlines()]
    states = [number for number, line in enumerate(lines) if line["event"] == "state"]
    sums = [number for number, line in enumerate(lines) if line["event"] in ("spans", "bubbles")]
    assert sums and max(sums) < states[-1] == len(lines) - 1
    assert (lines[-1]["busy"], lines[-1]["bubble"]) == ({"compute": 0.75}, 0.25)
    assert lines[-1]["batches"] == [[7, "attention", 3], [-1, "gather", 3]]


def test_a_run_without_events_leaves_a_valid_trace(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    write_trace(tmp_path / "events.jsonl", tmp_path / "trace.json")
    assert not check_trace(tmp_path / "trace.json", set())


def test_events_leave_out_what_is_at_its_default() -> None:
    written: list[bytes] = []
    recorder = Recorder(written.append)
    recorder.span(Span("disk", Operation("dense", 2, nbytes=7), 0.5, 0.75))
    recorder.bubble(Span("compute", Operation(Compute.ATTENTION, 2, batch=1, tokens=4), 0.5, 0.75))
    recorder.flush()
    recorder.flush()
    (lines,) = written
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"event": "span", "lane": "disk", "kind": "dense", "layer": 2, "begin": 0.5, "end": 0.75, "bytes": 7},
        {
            "event": "bubble",
            "lane": "compute",
            "kind": "attention",
            "layer": 2,
            "begin": 0.5,
            "end": 0.75,
            "batch": 1,
            "tokens": 4,
        },
    ]
    assert recorder.busy_seconds == {"disk": 0.25}
    assert recorder.bubble_seconds == 0.25


def test_a_gpus_copy_lane_says_what_waits_for_it() -> None:
    """What the host has not queued yet, and what the stream has not come to; nothing of it is waited for."""
    with Card():
        clock = CudaClock(time.monotonic, torch.device("cuda", 0))
        lane = CudaLane(LaneName.LINK, Recorder(None), time.monotonic, clock)
        copied, read = threading.Event(), threading.Event()
        host = SimpleNamespace(is_done=read.is_set, wait=read.wait)
        lane.submit(Operation("expert", 0, 0, nbytes=5), lambda: CurrentStream.get().queue(copied.wait))
        lane.submit(Operation("expert", 0, 1, nbytes=7), lambda: None, [host])
        lane.submit(Operation("expert", 0, 2, nbytes=11), lambda: None)
        assert lane.waiting == (3, 23)
        copied.set()
        while lane.waiting[0] == 3:
            time.sleep(0.001)
        assert lane.waiting == (2, 18)
        read.set()
        lane.close()
        assert lane.waiting == (0, 0)


def test_without_a_file_events_are_added_up_all_the_same() -> None:
    recorder = Recorder(None)
    recorder.span(Span("disk", Operation("dense", 2, nbytes=7), 0.5, 0.75))
    recorder.bubble(Span("compute", Operation(Compute.ATTENTION, 2), 0.5, 0.75))
    recorder.sweep(SweepReport(0, 0.0, 2.0, 1, 10, 0, 1, 400, 0, 0))
    recorder.flush()
    assert (recorder.busy_seconds, recorder.bytes_moved) == ({"disk": 0.25}, {"disk": 7})
    assert recorder.bubble_seconds == 0.25
    assert not recorder.is_writing
    assert Recorder(lambda lines: None).is_writing


def test_no_span_is_lost_or_written_twice_when_lanes_and_flushes_meet(tmp_path: Path) -> None:
    each = 300
    with RunLog(tmp_path) as log:
        recorder = Recorder(log.events)

        def work(lane: str) -> None:
            for layer in range(each):
                recorder.span(Span(lane, Operation("read", layer), layer, layer + 1))
                if layer % 20 == 0:
                    recorder.flush()

        threads = [threading.Thread(target=work, args=(lane,)) for lane in LANES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.flush()
    lines = read_lines(tmp_path / "events.jsonl")
    for lane in LANES:
        assert sorted(line["layer"] for line in lines if line["lane"] == lane) == list(range(each))
        assert recorder.busy_seconds[lane] == each


# metrics.json


def use(seconds: float, nbytes: int, flops: int, tokens: int = 1, prefill: bool = False, busy: float = 0.0) -> SweepUse:
    """A sweep in which each lane is busy for so long, and the compute lane waits for the rest."""
    lanes: dict[str, float] = dict.fromkeys((LaneName.DISK, LaneName.COMPUTE), busy)
    return SweepUse(seconds, lanes, seconds - busy, {LaneName.DISK: nbytes}, flops, prefill, tokens)


def test_metrics_have_every_key_that_others_rely_on_even_of_a_run_that_never_began() -> None:
    metrics = summarize("failed", "measured", Totals(), Recorder(lambda lines: None), "no such model")
    assert set(METRICS) <= set(metrics)
    assert set(metrics["bound"]) == {"resource", "seconds", "efficiency", "decode_efficiency", "sweeps"}
    assert set(metrics["prefetch"]) == {
        *("requested", "used", "hit_rate", "named", "among_hottest", "first_sweep", "layers"),
    }
    assert (metrics["status"], metrics["mode"], metrics["error"]) == ("failed", "measured", "no such model")
    assert json.loads(json.dumps(metrics)) == metrics


def test_metrics_add_up() -> None:
    recorder = Recorder(lambda lines: None)
    recorder.bubble(Span(LaneName.COMPUTE, Operation(Compute.EXPERT, 0), 1.0, 2.0))
    totals = Totals(
        num_requests=2,
        prompt_tokens=30,
        output_tokens=10,
        prefetch=[PrefetchCount(6, 4, 8, 2), PrefetchCount(2, 2, 2, 2)],
        first_prefetch=PrefetchCount(3, 0, 4, 1),
        sweeps=[
            use(4.0, 100, 3000, 2, prefill=True, busy=3.0),
            use(2.0, 190, 1000, 4, busy=1.5),
            use(2.0, 200, 1000, 4, busy=2.0),
        ],
        sampled={LaneName.DISK: 100.0, LaneName.COMPUTE: 1000.0},
    )
    metrics = summarize("ok", "measured", totals, recorder, None)
    expected = {
        "elapsed_time": 8.0,
        "total_num_tokens": 40,
        "requests_per_second": 0.25,
        "tokens_per_second": 5.0,
        "output_tokens_per_second": 1.25,
        "prefill_seconds": 4.0,
        "prefill_rate": 750.0,
        "prefill_efficiency": 0.75,
        "decode_seconds": 4.0,
        "decode_tokens_per_second": 2.0,
        "num_sweeps": 3,
        "bubble_fraction": 0.125,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert metrics["rates"] == {"disk": 100.0, "compute": 1000.0}
    first = {"layer": 0, "requested": 6, "used": 4, "hit_rate": 4 / 6, "named": 8, "among_hottest": 0.25}
    second = {"layer": 1, "requested": 2, "used": 2, "hit_rate": 1.0, "named": 2, "among_hottest": 1.0}
    total = {"requested": 8, "used": 6, "hit_rate": 0.75, "named": 10, "among_hottest": 0.4}
    begin = {"requested": 3, "used": 0, "hit_rate": 0, "named": 4, "among_hottest": 0.25}
    assert metrics["prefetch"] == total | {"first_sweep": begin, "layers": [first, second]}
    # At 100 bytes and 1000 operations a second the first sweep is bound by compute (3 s), the others by
    # the disk (1.9 and 2 s).
    sweeps = metrics["bound"].pop("sweeps")
    shares = {"efficiency": 0.8625, "decode_efficiency": 0.975}
    assert metrics["bound"] == pytest.approx({"resource": "disk", "seconds": 6.9, **shares})
    assert sweeps == {
        "compute": {"count": 1, "elapsed_time": 4.0, "busy": 0.75, "bubble": 0.25},
        "disk": {"count": 2, "elapsed_time": 4.0, "busy": 0.875, "bubble": 0.125},
    }


def test_keys_and_values_take_the_way_of_blocks() -> None:
    nbytes: dict[str, int] = {LaneName.LINK: 80, LaneName.KV_IN: 20, LaneName.KV_OUT: 500}
    sweep = SweepUse(2.0, {LaneName.LINK: 1.5, LaneName.KV_IN: 0.25}, 0.0, nbytes, 1, False, 1)
    rates: dict[str, float] = {LaneName.LINK: 100.0}
    metrics = summarize("ok", "measured", Totals(sweeps=[sweep], sampled=rates), Recorder(lambda lines: None), None)
    assert (metrics["bound"]["resource"], metrics["bound"]["seconds"]) == ("link", 1.0)
    assert sweep.worked(LaneName.LINK) == 1.75


AMOUNTS = st.integers(0, 10**15)
RATES = st.dictionaries(st.sampled_from([LaneName.DISK, LaneName.COMPUTE]), st.floats(1e-3, 1e15) | st.just(0.0))


@st.composite
def uses(draw: st.DrawFn) -> SweepUse:
    """A sweep that did anything at all in its time."""
    seconds = draw(st.floats(0.001, 100))
    busy = seconds * draw(st.floats(0.01, 1))
    return use(seconds, draw(AMOUNTS), draw(AMOUNTS), draw(st.integers(0, 100)), draw(st.booleans()), busy)


@given(st.lists(uses(), max_size=9), RATES)
@examples(100)
def test_the_bound_is_what_the_busier_resource_needs_in_each_sweep(
    sweeps: list[SweepUse], rates: dict[str, float]
) -> None:
    metrics = summarize("ok", "measured", Totals(sweeps=sweeps, sampled=rates), Recorder(lambda lines: None), None)
    bound, reached = metrics["bound"], {lane: rate for lane, rate in metrics["rates"].items() if rate}
    assert all(reached.get(lane, 0.0) >= rate for lane, rate in rates.items())
    needs = [{lane: min(sweep.work[lane] / rate, sweep.seconds) for lane, rate in reached.items()} for sweep in sweeps]
    assert bound["seconds"] == pytest.approx(sum(max(each.values(), default=0.0) for each in needs))
    assert bound["resource"] in ((*reached,) if bound["seconds"] else (None,))
    bound_by_any = sum(each["count"] for each in bound["sweeps"].values())
    assert bound_by_any == sum(any(each.values()) for each in needs)
    assert bound["efficiency"] == pytest.approx(bound["seconds"] / metrics["elapsed_time"] if sweeps else 0.0)
    assert metrics["prefill_seconds"] + metrics["decode_seconds"] == pytest.approx(metrics["elapsed_time"])
    json.dumps(metrics, allow_nan=False)


@given(st.lists(uses(), max_size=9), RATES)
@examples(100)
def test_no_share_is_above_one_however_low_the_rates_that_were_sampled(
    sweeps: list[SweepUse], rates: dict[str, float]
) -> None:
    metrics = summarize("ok", "measured", Totals(sweeps=sweeps, sampled=rates), Recorder(lambda lines: None), None)
    bound = metrics["bound"]
    shares = [metrics["prefill_efficiency"], bound["efficiency"], bound["decode_efficiency"]]
    shares += [each[name] for each in bound["sweeps"].values() for name in ("busy", "bubble")]
    assert all(0 <= share <= 1 + 1e-9 for share in shares)


@pytest.mark.parametrize(
    ("sampled", "reached"),
    [
        ({"disk": 500.0, "compute": 5000.0}, {"disk": 500.0, "compute": 5000.0}),
        ({"disk": 10.0, "compute": 10.0}, {"disk": 105.0, "compute": 2000.0}),  # beside another busy program
        ({"disk": 0.0, "compute": 10.0}, {"disk": 105.0, "compute": 2000.0}),  # no expert streams, to be sampled with
        ({"compute": 10.0}, {"compute": 2000.0}),  # nothing streamed
    ],
)
def test_a_run_that_reached_more_than_was_sampled_proves_the_rate(
    sampled: dict[str, float], reached: dict[str, float]
) -> None:
    prefill, decode = use(1.0, 10, 2000, prefill=True, busy=1.0), use(2.0, 200, 1000, busy=1.0)
    totals = Totals(sweeps=[prefill, decode], sampled=sampled)
    assert totals.rates == reached


# What a run adds up to while it goes on.


FACTS = ModelFacts(
    fixed_bytes=0,
    block_bytes={},
    stored_bytes={},
    expert_counts=[1],
    top_k=1,
    kv_bytes=0,
    kv_layer_bytes=0,
    waiting_bytes=0,
    workspace_bytes=0,
    rows_bytes=0,
    attention_bytes=0,
    score_bytes=0,
    scores_bytes=0,
    logits_bytes=0,
    staging_bytes=0,
    dense_flops=10,
    expert_flops=20,
    head_flops=1000,
    pair_flops=100,
    spared_flops=7,
)


@pytest.fixture
def totals() -> Totals:
    return Totals()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(lambda lines: None)


@pytest.fixture
def account(tmp_path: Path, recorder: Recorder, totals: Totals) -> Iterator[Account]:
    """Of two requests of at most 5 tokens."""
    requests = [Request(str(number), (7,) * 3, 5, number) for number in range(2)]
    with RunLog(tmp_path) as log, Account(requests, FACTS, Encoder(None, Limits(9)), log, recorder, totals) as account:
        yield account


def read(recorder: Recorder, nbytes: int, seconds: float) -> None:
    recorder.span(Span(LaneName.DISK, Operation("expert", 0, nbytes=nbytes), 1.0, 1.0 + seconds))


def test_what_was_read_before_the_first_sweep_belongs_to_none(
    account: Account, recorder: Recorder, totals: Totals
) -> None:
    read(recorder, 1000, 3.0)
    account.ready(10_000)
    read(recorder, 200, 0.5)
    read(recorder, 100, 0.25)
    account.sweep(SweepReport(0, 4.0, 6.0, 2, 6, 1, 2, 400, 0, 0))
    account.sweep(SweepReport(1, 6.0, 6.5, 2, 0, 2, 2, 440, 0, 0))
    read(recorder, 50, 0.125)
    account.sweep(SweepReport(2, 6.5, 7.0, 1, 0, 1, 0, 20, 0, 0))
    assert [use.nbytes.get(LaneName.DISK) for use in totals.sweeps] == [300, 0, 50]
    assert [use.busy.get(LaneName.DISK) for use in totals.sweeps] == pytest.approx([0.75, 0.0, 0.125])
    assert [use.seconds for use in totals.sweeps] == [2.0, 0.5, 0.5]
    assert [use.is_prefill for use in totals.sweeps] == [True, False, False]
    assert recorder.bytes_moved[LaneName.DISK] == 350


def test_a_sweeps_arithmetic_is_that_of_its_tokens_of_their_pairs_and_of_the_head_for_those_that_were_given_one(
    account: Account, totals: Totals
) -> None:
    account.ready(0)
    account.sweep(SweepReport(0, 0.0, 1.0, 2, 6, 1, 2, 400, 15, 4))
    account.sweep(SweepReport(1, 1.0, 2.0, 2, 0, 2, 2, 400, 9, 0))
    assert [use.flops for use in totals.sweeps] == [7 * 30 - 4 * 7 + 15 * 100 + 2 * 1000, 2 * 30 + 9 * 100 + 2 * 1000]
    assert totals.output_tokens == 4


def test_the_peak_of_memory_is_what_lasts_and_the_largest_cache(account: Account, totals: Totals) -> None:
    account.ready(10_000)
    for index, cache in enumerate((400, 900, 100)):
        account.sweep(SweepReport(index, index, index + 1.0, 1, 0, 1, 1, cache, 0, 0))
    assert totals.peak_memory["device"] == 10_900
    assert totals.peak_memory["process"] > 10**6


def test_a_result_is_on_disk_and_in_the_totals_when_it_has_been_told(
    tmp_path: Path, account: Account, totals: Totals
) -> None:
    account.result(Result(Request("1", (7,) * 3, 5, 1), (4, 2), "stop"))
    assert [(line["id"], line["token_ids"]) for line in read_lines(tmp_path / "results.jsonl")] == [("1", [4, 2])]
    assert (totals.num_requests, totals.prompt_tokens) == (1, 3)


@pytest.mark.parametrize(
    "override", ["pipeline.n_batches=none", "model=custom model.path={tmp}/nowhere"], ids=["config", "model"]
)
def test_a_run_that_fails_leaves_metrics_that_say_so(tmp_path: Path, override: str) -> None:
    (tmp_path / "nowhere").mkdir()
    run = tmp_path / "run"
    with pytest.raises(KlotskiError) as refusal:
        run_engine(run, *override.format(tmp=tmp_path).split())
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(METRICS) <= set(metrics)
    assert (metrics["status"], metrics["error"]) == ("failed", str(refusal.value))
    left = [file.name for file in run.iterdir() if file.name.startswith(".") or file.suffix == ".draft"]
    assert left == [".lock"]


# The run's folder


def test_the_folder_says_whose_run_it_is(tmp_path: Path) -> None:
    began = time.time()
    with RunLog(tmp_path / "deep" / "run") as log:
        identity = json.loads((log.folder / "run.json").read_text())
    assert identity["pid"] == os.getpid()
    assert identity["host"]
    assert identity["schema"] == 1
    assert began - 1 <= identity["start"] <= time.time()


def test_a_line_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for number in range(3):
            log.result({"id": str(number), "text": "line\nbreak \u2028 and \U0001f40e"})
            assert [line["id"] for line in read_raw(tmp_path / "results.jsonl")] == list("012")[: number + 1]
        log.error({"line": 4, "error": "no prompt"})
        assert log.num_errors == 1
    assert read_raw(tmp_path / "errors.jsonl") == [{"line": 4, "error": "no prompt"}]


def read_raw(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that must consist of whole ones; text may hold what looks like a line's end."""
    data = file.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def test_lines_of_several_threads_are_whole(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:

        def write(writer: int) -> None:
            for number in range(100):
                log.result({"id": f"{writer}-{number}", "text": "x" * random.Random(number).randrange(20_000)})

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ids = [line["id"] for line in read_raw(tmp_path / "results.jsonl")]
    assert sorted(ids) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(100))


WRITER = """
import sys
from pathlib import Path
from klotski.telemetry.runlog import RunLog
log = RunLog(Path(sys.argv[1]))
while True:
    log.result({"id": "x", "text": "y" * 100_000})
"""


def test_a_killed_process_leaves_no_line_but_its_last_unfinished(tmp_path: Path) -> None:
    """SIGKILL interrupts a write between two pages, so the file may end in a piece without a line's end."""
    file = tmp_path / "results.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as process:
        while not file.exists() or file.stat().st_size < 1_000_000:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    *finished, rest = file.read_bytes().split(b"\n")
    assert len(finished) >= 9
    assert all(len(json.loads(line)["text"]) == 100_000 for line in finished)
    assert len(rest) < len(finished[0])


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/run/run\.json could not be written: Not a directory"):
        RunLog(tmp_path / "file" / "run")


def test_a_full_disk_is_told_by_the_file_and_what_was_finished_stays(tmp_path: Path) -> None:
    # A device that has no space whatever is written to it.
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    with RunLog(tmp_path) as log:
        log.error({"line": 1})
        with pytest.raises(OutputError, match=r"results\.jsonl could not be written: no space is left; what was"):
            log.result({"id": "1"})
        log.metrics({"status": "failed"})
    assert read_raw(tmp_path / "errors.jsonl") == [{"line": 1}]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"status": "failed"}


def test_space_is_kept_back_for_the_metrics_until_they_are_written(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        reserve = tmp_path / ".reserve"
        assert reserve.stat().st_size >= 1 << 16
        log.metrics({"status": "ok"})
        assert not reserve.exists()


def test_a_folder_with_results_is_refused_and_one_without_is_begun_anew(tmp_path: Path) -> None:
    for number in range(2):
        with RunLog(tmp_path) as log:
            log.error({"line": number, "error": "no prompt"})
    assert read_raw(tmp_path / "errors.jsonl") == [{"line": 1, "error": "no prompt"}]
    with RunLog(tmp_path) as log:
        log.result({"id": "1"})
    with pytest.raises(OutputError, match="holds the results of an earlier run"):
        RunLog(tmp_path)
    assert read_raw(tmp_path / "results.jsonl") == [{"id": "1"}]


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with RunLog(tmp_path), pytest.raises(OutputError, match="belongs to a run that is under way"):
        RunLog(tmp_path)
    RunLog(tmp_path).close()


def test_a_folder_on_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunLog(tmp_path) as log:
        log.result({"id": "1"})
    assert "No locks available; nothing keeps a second run out of the folder" in caplog.text
    with pytest.raises(OutputError, match="holds the results of an earlier run"):
        RunLog(tmp_path)


def test_events_that_cannot_be_written_are_switched_off_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("events.jsonl", "experts.json", "experts.draft"):
        (tmp_path / name).symlink_to("/dev/full")
    run_engine(tmp_path, "workload.limit=2", "workload.max_tokens=3")
    assert "events.jsonl could not be written: no space is left" in caplog.text
    assert caplog.text.count("the run goes on without events") == 1
    assert "experts.json could not be written" in caplog.text
    assert len(read_raw(tmp_path / "results.jsonl")) == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "ok"
    assert not (tmp_path / "trace.json").exists()


def test_the_log_may_be_closed_twice(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.close()
    log.close()
    assert not (tmp_path / ".reserve").exists()


def test_the_clock_starts_with_the_run_and_goes_forward(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        first, second = log.clock(), log.clock()
    assert 0 <= first <= second < 60
