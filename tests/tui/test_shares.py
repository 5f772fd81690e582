"""Shares of rates: only of those that were measured, and never more than all of one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from klotski.planner.rates import NOMINAL, NOMINAL_GPU, Rates
from monitor.cause import find_bound
from monitor.panels import PANELS
from monitor.player import Player
from monitor.source import Status
from tests.tui.told import player_of, said, state_of, sweep, view_of

MEASURED = ["disk", "compute"]
LIVE = Status("running")


def told(sweeps: int) -> list[dict[str, Any]]:
    """Sweeps of two seconds, in which the disk moves 300 bytes in 1.5, and compute does 50 operations in one."""
    lines: list[dict[str, Any]] = []
    for number in range(sweeps):
        begin, done = 2.0 * number, number + 1
        lines += [
            {"event": "span", "lane": "disk", "kind": "expert", "layer": 0, "expert": 0, "bytes": 300}
            | {"begin": begin, "end": begin + 1.5},
            {"event": "bubble", "lane": "compute", "kind": "expert", "layer": 0, "begin": begin, "end": begin + 1},
            {"event": "span", "lane": "compute", "kind": "expert", "layer": 0, "begin": begin + 1, "end": begin + 2},
            {"event": "sweep", "begin": begin, "end": begin + 2, "batches": 1, "output_tokens": 4, "flops": 50}
            | {
                "busy": {"disk": 1.5 * done, "compute": 1.0 * done},
                "bytes": {"disk": 300 * done},
                "bubble": 1.0 * done,
            },
        ]
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told(10)))
    return tmp_path


def planned(folder: Path, **about: Any) -> Player:
    """The run, with this plan."""
    (folder / "plan.json").write_text(json.dumps(about))
    return player_of(folder)


def shares(text: str) -> list[int]:
    return [int(share) for share in re.findall(r"(\d+) ?%", text)]


@pytest.mark.parametrize("measured", [[], ["disk"], MEASURED])
@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("is_predicted", [False, True])
@pytest.mark.parametrize("moment", [None, 7.0])
def test_no_panel_shows_more_than_all(
    folder: Path, measured: list[str], factor: float, is_predicted: bool, moment: float | None
) -> None:
    rates = {"disk": 200.0 * factor, "compute": 50.0 * factor, "measured": measured}
    more = {
        "predicted_output_tokens_per_second": 2.0 * factor,
        "output_tokens": 20,
        "budget": 5,
        "memory": {"fixed": 9},
    }
    player = planned(folder, rates=rates, **more)
    if moment is not None:
        player.seek(moment)
    view = view_of(player, status=LIVE, is_predicted=is_predicted)
    view.state.memory = 12  # of 5 that were granted
    for name in PANELS:
        assert max(shares(said(name, view)), default=0) <= 100, said(name, view)


@pytest.mark.parametrize(
    ("rates", "is_predicted", "bound", "disk"),
    [
        ({"disk": 400.0, "compute": 100.0, "measured": MEASURED}, False, "busy for 38% of the time", "50% of 400B/s"),
        (
            {"disk": 100.0, "compute": 100.0, "measured": MEASURED},
            False,
            "busy for 75%",
            "200B/s, more than the 100B/s",
        ),
        ({"disk": 100.0, "compute": 100.0}, False, "known when the run has ended", "; 200B/s\n"),
        ({"disk": 400.0, "compute": 100.0}, True, "busy for 38% of the time", "50% of 400B/s"),
    ],
)
def test_a_rate_that_nobody_measured_is_no_measure(
    folder: Path, rates: dict[str, Any], is_predicted: bool, bound: str, disk: str
) -> None:
    view = view_of(planned(folder, rates=rates), status=LIVE, is_predicted=is_predicted)
    assert bound in next(line for line in said("Overview", view).splitlines() if line.startswith("bound"))
    assert disk in said("Lanes", view)


@pytest.mark.parametrize(
    ("predicted", "measured", "words"),
    [
        (4.0, MEASURED, "of which it reaches 50%"),
        (1.0, MEASURED, "and it is faster"),
        (1.0, ["disk"], "by rates that were not measured"),
        (4.0, [], "by rates that were not measured"),
    ],
)
def test_what_is_reached_of_a_plan(folder: Path, predicted: float, measured: list[str], words: str) -> None:
    rates = {"disk": 400.0, "compute": 100.0, "measured": measured}
    player = planned(folder, rates=rates, predicted_output_tokens_per_second=predicted)
    assert f"planned   {predicted} tokens/s, {words}" in said("Overview", view_of(player, status=LIVE))


def test_a_run_that_has_ended_is_held_to_the_rates_that_it_measured(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"status": "ok", "rates": {"disk": 400.0, "compute": 100.0}}')
    player = planned(folder, rates={"disk": 100.0, "compute": 100.0})
    player.seek(7.0)
    assert "bound     disk, by measured rates: busy for 38% of the time" in said("Overview", view_of(player))


@pytest.mark.parametrize(("efficiency", "words"), [(0.5, "busy for 50% of the time"), (1.81, "which it exceeded")])
def test_a_share_that_an_older_version_wrote_is_not_shown_if_it_cannot_be(
    folder: Path, efficiency: float, words: str
) -> None:
    metrics = {"status": "ok", "bound": {"resource": "disk", "efficiency": efficiency}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    overview = said("Overview", view_of(planned(folder)))
    assert words in overview and max(shares(overview)) <= 100


def test_sweeps_of_which_one_was_faster_than_all_in_the_mean() -> None:
    state = state_of(
        sweep(0.0, 1.0, busy={"disk": 1.0}, bytes={"disk": 300}),
        sweep(1.0, 2.0, busy={"disk": 2.0}, bytes={"disk": 301}),
    )
    bound = find_bound(state, {"disk": 10.0})
    assert bound is not None and bound.efficiency == pytest.approx((1 + 1 / 150.5) / 2)


@pytest.mark.parametrize(
    ("rates", "measured"),
    [
        (NOMINAL, []),
        (NOMINAL_GPU, []),
        (NOMINAL.because("as set", disk=1.0, compute=1.0), []),
        (NOMINAL.because("measured by earlier runs of this model", disk=1.0), ["disk"]),
        (
            NOMINAL.because("of hw=measured", disk=1.0).because("measured on this machine (2 cores)", compute=1.0),
            ["compute"],
        ),
    ],
)
def test_a_plan_says_which_of_its_rates_were_measured(rates: Rates, measured: list[str]) -> None:
    assert rates.measured == measured
