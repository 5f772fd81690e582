"""What the panels show is what the run's own metrics say."""

import json
from pathlib import Path
from typing import Any

import pytest

from monitor.player import Player
from monitor.source import Run, Tail
from monitor.state import State
from tests.engine import run_engine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(run_engine(tmp_path_factory.mktemp("run"), "workload.limit=6", "workload.max_tokens=12"))


@pytest.fixture(scope="module")
def state(run: Run) -> State:
    player = Player(run)
    player.advance(0.0)
    return player.state


def test_totals_are_those_of_the_metrics(run: Run, state: State) -> None:
    metrics = run.metrics()
    assert state.num_sweeps == metrics["num_sweeps"]
    assert state.output_tokens == metrics["output_tokens"]
    assert state.rate == pytest.approx(metrics["output_tokens"] / state.sweep_seconds)
    sweeps = state.sweeps[0]["begin"]  # what was read before belongs to no sweep
    for name, seconds in metrics["lane_busy_seconds"].items():
        spans = [span for span in state.lanes[name].spans if span.end > sweeps]
        assert sum(span.seconds for span in spans) == pytest.approx(seconds, rel=0.02)
        moved = sum(span.nbytes for span in spans)
        assert moved == pytest.approx(metrics["bytes_moved"].get(name, 0), rel=0.02)
    assert state.unknown == 0


def test_experts_and_guesses_are_those_of_the_run(run: Run, state: State) -> None:
    learned = json.loads((run.folder / "experts.json").read_text())
    for layer, tokens in enumerate(learned["tokens"]):
        assert [state.tokens[layer].get(expert, 0) for expert in range(len(tokens))] == tokens
    assert state.prefetch[0] <= run.metrics()["prefetch"]["requested"]


def test_a_moment_of_the_past_is_what_it_was(run: Run, state: State) -> None:
    player = Player(run)
    player.advance(0.0)
    middle = state.sweeps[len(state.sweeps) // 2]
    player.seek(middle["end"])
    assert player.shown == middle["end"]
    assert player.state.num_sweeps == len(state.sweeps) // 2 + 1
    assert player.state.now == middle["end"]
    player.seek(player.end + 1)
    assert player.is_live
    assert player.state.num_sweeps == state.num_sweeps


def test_marks_lead_to_the_same_moment(run: Run, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.player.APART", 50)
    player = Player(run)
    player.advance(0.0)
    for sweep in list(state.sweeps)[::5]:
        player.seek(sweep["end"])
        assert player.state.num_sweeps == sweep["index"] + 1 or player.is_live


@pytest.mark.parametrize(
    ("busy", "settings", "words"),
    [
        (0.98, {}, "disk sets the pace"),
        (0.4, {"prefetch": "none", "on_demand": "lazy"}, "too late (prefetch=none, on_demand=lazy)"),
    ],
)
def test_the_cause_of_bubbles_is_named(busy: float, settings: dict[str, Any], words: str) -> None:
    state = State()
    for number in range(10):
        begin = float(number)
        expert = {"layer": 0, "expert": number, "kind": "expert"}
        state.apply({"event": "span", "lane": "disk", "begin": begin, "end": begin + busy, "bytes": 5} | expert)
        state.apply({"event": "bubble", "lane": "compute", "begin": begin, "end": begin + 0.8} | expert)
        state.apply({"event": "span", "lane": "compute", "begin": begin + 0.8, "end": begin + 1.0} | expert)
    cause = state.cause(0.0, 10.0, settings, {})
    assert cause.waits == pytest.approx(0.8)
    assert words in cause.sentence and "experts" in cause.sentence


def test_a_run_that_does_not_wait_is_told_so() -> None:
    state = State()
    state.apply({"event": "span", "lane": "compute", "kind": "expert", "layer": 0, "begin": 0.0, "end": 5.0})
    assert "arithmetic sets the pace" in state.cause(0.0, 5.0, {}, {}).sentence


def test_torn_lines_garbage_and_newer_events_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    whole = b'{"event":"span","lane":"disk","kind":"expert","layer":0,"begin":0,"end":1,"bytes":7,"colour":"new"}\n'
    file.write_bytes(whole + b"\xff\xfe not json\n[1]\n" + b'{"event":"dance"}\n{"event":"span"}\n' + whole[:20])
    tail, state = Tail(file), State()
    for event in tail.read():
        state.apply(event)
    assert (state.lanes["disk"].nbytes, tail.damaged, state.unknown) == (7, 2, 2)
    with file.open("ab") as more:
        more.write(whole[20:])
    for event in tail.read():
        state.apply(event)
    assert state.lanes["disk"].nbytes == 14
    file.write_bytes(whole)  # another run took the folder
    assert len(list(tail.read())) == 1
    file.unlink()
    assert not list(tail.read())


def test_memory_is_bounded_however_long_the_run() -> None:
    state = State()
    for number in range(20_000):
        state.apply(
            {
                "event": "span",
                "lane": "disk",
                "kind": "expert",
                "layer": 0,
                "begin": number,
                "end": number + 1,
                "batch": number,
            }
        )
        state.apply({"event": "sweep", "index": number, "begin": number, "end": number + 1, "batches": 2})
    assert len(state.lanes["disk"].spans) <= 6000
    assert len(state.sweeps) <= 2000
    assert state.num_sweeps == 20_000
