"""What is told of many runs is what lies in their folders, whatever state they are in."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from klotski.errors import ConfigError
from klotski.report import collect, print_table, write_rows
from klotski.report.rows import FIGURES
from tests.engine import read_lines
from tests.unit.runs import METRICS, write_run, write_sweep


def figures(folder: Path, path: str) -> list[Any]:
    return [row.figures[path] for row in collect([folder])]


# What varied


def test_a_group_goes_by_its_option_and_brings_no_columns_of_its_own(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": "sequential"}, {"pipeline": "overlap"}, {"pipeline": "klotski"}])
    rows = collect([tmp_path])
    assert [row.name for row in rows] == ["0", "1", "2"]
    assert [dict(row.settings) for row in rows] == [
        {"pipeline": "sequential"},
        {"pipeline": "overlap"},
        {"pipeline": "klotski"},
    ]


def test_a_key_that_varies_within_an_option_has_a_column(tmp_path: Path) -> None:
    jobs = [{"pipeline": name, "pipeline.batch_size": size} for name in ("overlap", "klotski") for size in ("4", "16")]
    write_sweep(tmp_path, jobs)
    assert [dict(row.settings) for row in collect([tmp_path])] == jobs


def test_a_key_that_was_set_for_one_sweep_has_a_column_when_it_differs_from_the_other_sweeps(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", [{"pipeline": "sequential"}])
    write_sweep(tmp_path / "b", [{"pipeline": "klotski", "pipeline.n_batches": "4"}])
    rows = collect([tmp_path / "a", tmp_path / "b"])
    assert {row.name: dict(row.settings) for row in rows} == {
        "a/0": {"pipeline": "sequential", "pipeline.n_batches": "1"},
        "b/0": {"pipeline": "klotski", "pipeline.n_batches": "4"},
    }


def test_an_option_that_comes_with_another_has_no_column_and_one_that_was_chosen_has(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", [{"pipeline": "overlap"}, {"pipeline": "expert_cache"}])
    assert [dict(row.settings) for row in collect([tmp_path])] == [
        {"pipeline": "overlap"},
        {"pipeline": "expert_cache"},
    ]
    write_sweep(tmp_path / "b", [{"pipeline": "overlap", "placement": "lru"}])
    assert [row.settings["placement"] for row in collect([tmp_path])] == ["none", "lfu", "lru"]


def test_runs_of_one_setting_have_no_columns_but_a_row_each(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{}, {}, {}])
    assert [dict(row.settings) for row in collect([tmp_path])] == [{}] * 3


def test_jobs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"workload.limit": number} for number in range(1, 13)])
    assert [row.settings["workload.limit"] for row in collect([tmp_path])] == list(range(1, 13))


def test_a_run_that_is_given_twice_is_one_row(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{}, {}])
    assert [row.name for row in collect([tmp_path, tmp_path / "1"])] == ["0", "1"]


# What it did


def test_figures_are_those_of_the_metrics(tmp_path: Path) -> None:
    write_run(tmp_path)
    (row,) = collect([tmp_path])
    assert row.error is None
    assert row.figures["bound.efficiency"] == METRICS["bound"]["efficiency"]
    assert row.figures["bytes_moved.disk"] == METRICS["bytes_moved"]["disk"]
    assert row.figures["lane_busy_share.disk"] == pytest.approx(0.4)
    assert None not in row.figures.values()


def test_a_groups_seconds_are_its_share_of_the_requests(tmp_path: Path) -> None:
    plan = {"n_batches": 2, "batch_size": 4}
    write_run(tmp_path / "0", metrics=METRICS | {"elapsed_time": 10.0, "num_requests": 32, "plan": plan})
    write_run(tmp_path / "1", metrics=METRICS | {"elapsed_time": 10.0, "num_requests": 5, "plan": plan})
    assert figures(tmp_path, "group_seconds") == [2.5, 10.0]


def test_a_share_of_nothing_is_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path / "0", metrics=METRICS | {"prefetch": METRICS["prefetch"] | {"requested": 0, "hit_rate": 0.0}})
    write_run(tmp_path / "1", metrics=METRICS | {"prefetch": METRICS["prefetch"] | {"named": 0, "among_hottest": 0.0}})
    assert figures(tmp_path, "prefetch.hit_rate") == [None, 0.9]
    assert figures(tmp_path, "prefetch.among_hottest") == [0.75, None]


def test_a_refused_job_is_a_row_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, [{"pipeline.batch_size": "4"}, {"pipeline.batch_size": "x"}])
    refused = METRICS | {"status": "failed", "error": "pipeline.batch_size=x must be a whole [number]"}
    (tmp_path / "1" / "metrics.json").write_text(json.dumps(refused))
    rows = collect([tmp_path])
    assert [row.run.status for row in rows] == ["ok", "failed"]
    print_table(rows)
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split() == ["1", "x", "failed"]
    assert shown[3] == "1: pipeline.batch_size=x must be a whole [number]"


def test_a_killed_job_is_a_row_that_says_so(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{}, {}])
    (tmp_path / "1" / "metrics.json").unlink()
    row = collect([tmp_path])[1]
    assert (row.run.status, row.is_ok) == ("unfinished", False)
    assert "metrics.json is not there" in str(row.error)
    assert set(row.figures.values()) == {None}


@pytest.mark.parametrize("content", [b"", b'{"status": "ok", "elap', b"[1, 2]", b"{}", b'{"status": 3}', b"\xff\xfe"])
def test_torn_metrics_are_a_row_that_says_so(content: bytes, tmp_path: Path) -> None:
    write_sweep(tmp_path, [{}, {}])
    (tmp_path / "0" / "metrics.json").write_bytes(content)
    rows = collect([tmp_path])
    assert [row.run.status for row in rows] == ["unreadable", "ok"]
    assert "torn" in str(rows[0].error)


def test_missing_figures_are_named_and_the_others_are_there(tmp_path: Path) -> None:
    write_run(tmp_path, metrics={key: value for key, value in METRICS.items() if key not in ("bound", "plan")})
    (row,) = collect([tmp_path])
    assert row.error == "metrics.json has no bound, plan"
    assert row.figures["elapsed_time"] == METRICS["elapsed_time"]
    assert row.figures["bound.efficiency"] is None


@pytest.mark.parametrize(("share", "shown"), [(0.5, 0.5), (1.0, 1.0), (1.81, None)])
def test_a_share_of_a_rate_that_was_too_low_is_left_out(share: float, shown: float | None, tmp_path: Path) -> None:
    busy = {"disk": share * METRICS["elapsed_time"]}
    write_run(
        tmp_path, metrics=METRICS | {"bound": METRICS["bound"] | {"efficiency": share}, "lane_busy_seconds": busy}
    )
    (row,) = collect([tmp_path])
    assert row.figures["bound.efficiency"] == shown
    assert row.figures["lane_busy_share.disk"] == pytest.approx(min(share, 1.0))


@pytest.mark.parametrize("file", ["config.yaml", "overrides.yaml"])
def test_a_run_whose_config_is_torn_is_a_row_without_settings(file: str, tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": "overlap"}, {"pipeline": "klotski"}, {"pipeline": "klotski"}])
    (tmp_path / "2" / ".hydra" / file).write_text("{pipeline: {name")
    rows = collect([tmp_path])
    assert [row.settings["pipeline"] for row in rows[:2]] == ["overlap", "klotski"]
    assert rows[2].is_ok


def test_there_have_to_be_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=f"there is no run in {tmp_path}"):
        collect([tmp_path])


# As files and as a table


def test_both_files_hold_the_same_rows(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": "overlap"}, {"pipeline": "klotski"}, {"pipeline": "klotski"}])
    failed = METRICS | {"status": "failed", "error": 'no, "really"\nnot', "elapsed_time": 0.0}
    (tmp_path / "1" / "metrics.json").write_text(json.dumps(failed))
    (tmp_path / "2" / "metrics.json").unlink()
    rows = collect([tmp_path])
    table, lines = write_rows(rows, tmp_path)
    read = read_lines(lines)
    assert read == [row.flat() for row in rows]
    assert list(read[0]) == ["run", "pipeline", "status", "error", *FIGURES]
    with table.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {key: "" if value is None else str(value) for key, value in line.items()} for line in read
        ]


def test_the_table_shows_what_varied_and_the_figures_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, [{"pipeline": "sequential"}, {"pipeline": "klotski"}])
    for job in ("0", "1"):
        metrics = METRICS | {"prefetch": {}}
        (tmp_path / job / "metrics.json").write_text(json.dumps(metrics))
    print_table(collect([tmp_path]))
    heading, *shown = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["run", "pipeline", "n"]
    assert "tokens/s" in heading
    assert "hits" not in heading
    assert [line.split()[:3] for line in shown] == [["0", "sequential", "4"], ["1", "klotski", "4"]]
    assert all(line.split()[-1] == "ok" for line in shown)
