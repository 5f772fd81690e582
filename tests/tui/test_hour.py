"""An hour of events, as the engine writes it: any moment is shown at once and exactly, in little memory."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor import index
from monitor.events import Event, ends, read_line
from monitor.player import Player
from monitor.source import Run, read_events
from monitor.state import State
from monitor.units import when
from tests.engine import run_engine
from tests.tui.told import player_of
from tests.watching import watching

SIMULATED = ("executor=simulate", "model=mixtral", "hw=rtx4090", "history=none", "workload=synthetic")
MIXTRAL = (*SIMULATED, "workload.input_tokens=64", "pipeline.n_batches=4", "pipeline.batch_size=16")
# Keys and values move, too, so that every lane has something to tell.
HOUR = (
    *MIXTRAL,
    "placement.attention=device",
    "hw.link_bandwidth=7GB/s",
    "workload.num_requests=256",
    "workload.output_tokens=87",
)
MINUTE = (*MIXTRAL, "workload.num_requests=64", "workload.output_tokens=8")
LOOK = '{"event":"state","time":%s,"waiting":{"disk":[%d,%d]},"wanted":{"hot":%d},"memory":%d,"requested":%d,"used":%d,'
LOOK += '"output_tokens":0,"requests":0}\n'


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(with_looks(run_engine(tmp_path_factory.mktemp("hour") / "run", *HOUR)))


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(with_looks(run_engine(tmp_path_factory.mktemp("minute") / "run", *MINUTE)))


@pytest.fixture(scope="module")
def player(hour: Run) -> Player:
    return player_of(hour.folder)


def with_looks(run: Path) -> Path:
    """The same run with what only real ones say: how things stood, four times a second."""
    file, number, seconds = run / "events.jsonl", 0, 0.0
    lines = file.read_bytes().splitlines(keepends=True)
    with file.open("wb") as out:
        for line in lines:
            out.write(line)
            event = read_line(line)
            assert event is not None
            seconds = max(seconds, ends(event))
            while number / 4 < seconds:
                look = LOOK % (number / 4, number % 7, number << 20, number % 5, number << 10, number, number // 2)
                out.write(look.encode())
                number += 1
    return run


def read_until(run: Run, moments: list[float]) -> Iterator[State]:
    """How things stood at moments: all that was over by then, applied from the start."""
    file = run.folder / "events.jsonl"
    states = [(moment, State()) for moment in moments]
    for event in read_events(file, 0, file.stat().st_size):
        over = ends(event)
        for moment, state in states:
            if over <= moment:
                state.apply(event)
    for moment, state in states:
        state.now = moment
        yield state


def test_an_hour_is_one(hour: Run) -> None:
    assert hour.metrics().amount("elapsed_time") > 3600
    assert 2e7 < (hour.folder / "events.jsonl").stat().st_size < 8e7
    with (hour.folder / "events.jsonl").open("rb") as file:
        kinds = [line[:20] for line in file]
    assert len(kinds) > 250_000
    assert {line[10:].split(b'"')[0] for line in kinds} == {
        b"span",
        b"spans",
        b"bubble",
        b"bubbles",
        b"sweep",
        b"state",
    }


def test_any_moment_of_an_hour_is_shown_after_few_of_its_events(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 100,000 events are read in a second."""
    applied = 0

    def count(file: Path, begin: int, end: int) -> Iterator[Event]:
        nonlocal applied
        for event in read_events(file, begin, end):
            applied += 1
            yield event

    monkeypatch.setattr("monitor.index.read_events", count)
    rng = random.Random(1)
    for _ in range(40):
        moment, applied = rng.uniform(0.0, player.end), 0
        player.seek(moment)
        assert player.state.now == moment
        assert applied < 12_000


def test_an_hour_in_a_terminal_takes_little_memory(hour: Run, player: Player) -> None:
    with watching(hour.folder) as monitor:
        monitor.until_drawn(when(player.end))
        for key in ("home", "right", "4", "end", "left"):
            monitor.press(key)
            assert monitor.process.memory_info().rss < 300e6


def test_a_moment_by_seeking_is_that_by_reading(hour: Run, player: Player) -> None:
    rng = random.Random(2)
    moments = [1.0, *(rng.uniform(0.0, player.end) for _ in range(3))]
    moments.append(moments[-1] + 0.25)
    for moment, expected in zip(moments, read_until(hour, moments), strict=True):
        player.seek(moment)
        assert vars(player.state) == vars(expected)


def test_it_stays_so_when_checkpoints_have_been_given_up(minute: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.player.APART", 20)
    monkeypatch.setattr(index, "LIMIT", 4)
    player, rng = player_of(minute.folder), random.Random(3)
    moments = [rng.uniform(0.0, player.end) for _ in range(12)]
    moments += [moments[-1] + step / 4 for step in range(8)]  # as it is replayed
    for moment, expected in zip(moments, read_until(minute, moments), strict=True):
        player.seek(moment)
        assert vars(player.state) == vars(expected)
    checkpoints = [segment for segment in player._index._segments if segment.checkpoint]
    assert 1 < len(checkpoints) <= 4


def test_a_long_run_is_right_at_any_moment_by_its_own_count(hour: Run, player: Player) -> None:
    """Many sweeps of an hour are summed up: what lanes did is what the run counted all the same."""
    metrics = hour.metrics()
    player.seek(player.end)
    state = player.state
    busy = {name: lane.seconds for name, lane in state.lanes.items() if lane.seconds}
    assert busy == pytest.approx(metrics.numbers("lane_busy_seconds"), rel=1e-6)
    assert state.bubble_fraction == pytest.approx(metrics.number("bubble_fraction"), rel=1e-6)
    for share in (0.3, 0.6, 0.9):
        player.seek(share * player.end)
        begin, end = player.state.last_sweep
        spent = [player.state.lanes["compute"].busy(begin, end), player.state.bubbles.busy(begin, end)]
        assert 0.9 < sum(spent) <= 1.01, "the compute lane works or waits"
