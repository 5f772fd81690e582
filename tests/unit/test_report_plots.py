"""Plots are drawn for what varied, in both formats; and the command that draws them."""

import itertools
import json
import random
import struct
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from klotski.report import collect
from klotski.report.command import main
from klotski.report.plots import draw_plots, size_of
from klotski.report.rows import GROUP_SECONDS
from klotski.report.series import BATCH_SIZE, N_BATCHES, figure, gather
from tests.cli.process import only_sentence, run_python
from tests.unit.runs import write_experts, write_run, write_sweep

STRATEGIES = ("sequential", "overlap", "klotski")


def drawn(folder: Path) -> set[str]:
    """The names of the plots of all runs in a folder, each there in both formats and with something in it."""
    files = draw_plots(collect([folder]), folder)
    for file in files:
        if file.suffix == ".png":
            width, height = struct.unpack(">II", file.read_bytes()[16:24])
            assert width > 800
            assert height > 500
        else:
            assert sum(1 for _ in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}path")) > 20
    assert {file.name for file in files} == {f"{file.stem}.{kind}" for file in files for kind in ("png", "svg")}
    return {file.stem for file in files}


def product(**values: Any) -> list[dict[str, Any]]:
    """A job for each combination; `n` and `size` stand for their keys."""
    names = {"n": N_BATCHES, "size": BATCH_SIZE, "predictor": "pipeline.predictor"}
    keys = [names.get(name, name) for name in values]
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def give(folder: Path, job: int, **changed: Any) -> None:
    """Change figures of a job."""
    file = folder / str(job) / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


# Which plots


@pytest.mark.parametrize("group", ["pipeline", "model", "placement"])
def test_options_are_compared_by_bars(group: str, tmp_path: Path) -> None:
    write_sweep(tmp_path, [{group: name} for name in ("a", "b", "c_and_d")], [10.0, 300.0, 240.0])
    assert drawn(tmp_path) == {"throughput"}


def test_n_is_a_line_for_each_batch_size(tmp_path: Path) -> None:
    jobs = product(n=("1", "2", "4", "8", "15"), size=("4", "16"))
    write_sweep(tmp_path, jobs, [100 + 30 * job for job in range(len(jobs))])
    for job, settings in enumerate(jobs):
        plan = {"n_batches": int(settings[N_BATCHES]), "batch_size": int(settings[BATCH_SIZE])}
        give(tmp_path, job, plan=plan, num_requests=240)
    assert drawn(tmp_path) == {"throughput_by_n", "throughput_by_latency"}


def test_latency_is_a_line_for_each_strategy(tmp_path: Path) -> None:
    jobs = product(pipeline=STRATEGIES, size=("4", "16", "64"))
    write_sweep(tmp_path, jobs, [20, 50, 120, 40, 130, 380, 45, 150, 410])
    for job, settings in enumerate(jobs):
        plan = {"n_batches": 1 if job < 3 else 4, "batch_size": int(settings[BATCH_SIZE])}
        give(tmp_path, job, plan=plan, num_requests=256, elapsed_time=40.0 - job)
    assert drawn(tmp_path) == {"throughput", "throughput_by_latency"}


def test_predictors_are_compared_over_all_and_by_layer(tmp_path: Path) -> None:
    jobs = product(predictor=("random", "popularity", "correlation", "lookahead"), n=("1", "8"))
    write_sweep(tmp_path, jobs)
    dice = random.Random(0)
    for job in range(len(jobs)):
        shares = [min(1.0, 0.25 + 0.1 * job + dice.uniform(-0.1, 0.1)) for _ in range(6)]
        layers = [{"layer": layer, "named": 9, "among_hottest": share} for layer, share in enumerate(shares)]
        prefetch = {"named": 54, "among_hottest": sum(shares) / 6, "layers": layers}
        give(tmp_path, job, prefetch=prefetch, plan={"n_batches": 1 if job % 2 else 8, "batch_size": 1})
    assert drawn(tmp_path) >= {"prefetch", "prefetch_by_layer"}


def test_a_single_run_shows_its_hot_experts(tmp_path: Path) -> None:
    dice = random.Random(0)
    tokens = [[], *([round(1000 * dice.random() ** 3) for _ in range(16)] for _ in range(5))]
    write_experts(write_run(tmp_path), tokens, [None, 0.9, 0.4, None, 0.7, 0.66], top_k=2)
    assert drawn(tmp_path) == {"hot_experts", "prefetch_by_layer"}


@pytest.mark.parametrize("content", ["", '{"schema": 1, "tok', "[]", "{}"])
def test_torn_experts_are_no_plot(content: str, tmp_path: Path) -> None:
    (write_run(tmp_path) / "experts.json").write_text(content)
    assert "hot_experts" not in drawn(tmp_path)


def test_runs_without_figures_are_no_plot(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": name} for name in STRATEGIES])
    for job in range(3):
        (tmp_path / str(job) / "metrics.json").unlink()
    assert drawn(tmp_path) == set()


def test_a_failed_setting_keeps_its_place(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": name} for name in STRATEGIES], [10.0, 20.0, 30.0])
    give(tmp_path, 1, status="failed", error="refused")
    assert drawn(tmp_path) == {"throughput"}
    assert "no figures" in (tmp_path / "throughput.svg").read_text()


@pytest.mark.parametrize(
    ("key", "values", "plot"),
    [
        ("hw.device_memory", ("8GB", "16GB", "32GB"), "throughput_by_memory"),
        ("hw.host_memory", ("64GB", "512GB", "1TB"), "throughput_by_host_memory"),
        ("hw.link_bandwidth", ("900MB/s", "6GB/s", "12.5GB/s"), "throughput_by_link"),
    ],
)
def test_sizes_and_rates_are_a_line_from_the_least_to_the_most(
    key: str, values: tuple[str, ...], plot: str, tmp_path: Path
) -> None:
    write_sweep(tmp_path, [{key: value} for value in values], [10.0, 20.0, 30.0])
    assert drawn(tmp_path) == {plot}
    (points,) = gather(
        collect([tmp_path]), key, partial(size_of, key), partial(figure, "output_tokens_per_second")
    ).values()
    assert [point.x for point in points] == sorted(point.x for point in points)
    assert [point.middle for point in points] == [10.0, 20.0, 30.0]


# Points


def test_repeated_settings_are_one_point_with_its_reach(tmp_path: Path) -> None:
    jobs = product(n=("1", "4"), **{"workload.seed": (0, 1, 2)})
    write_sweep(tmp_path, jobs, [10, 30, 11, 50, 52, 58])
    for job in range(6):
        give(tmp_path, job, plan={"n_batches": 1 if job < 3 else 4, "batch_size": 8})
    rows = collect([tmp_path])
    (points,) = gather(
        rows,
        N_BATCHES,
        lambda row: figure("plan.n_batches", row),
        lambda row: figure("output_tokens_per_second", row),
    ).values()
    assert [(point.x, point.middle, point.reach) for point in points] == [(1, 11, (1, 19)), (4, 52, (2, 6))]
    assert drawn(tmp_path) == {"throughput_by_n"}


def test_settings_that_differ_are_never_one_point(tmp_path: Path) -> None:
    jobs = product(pipeline=("overlap", "klotski"), size=("4", "16"), placement=("none", "greedy"))
    write_sweep(tmp_path, jobs)
    series = gather(collect([tmp_path]), BATCH_SIZE, lambda row: figure(GROUP_SECONDS, row), lambda row: 1.0)
    assert set(series) == {"none, overlap", "none, klotski", "greedy, overlap", "greedy, klotski"}
    assert all(len(point.values) == 1 for points in series.values() for point in points)


def test_the_same_rows_give_the_same_files_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    write_sweep(tmp_path, [{"pipeline": name} for name in STRATEGIES])
    before = dict(matplotlib.rcParams)
    drawn(tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.glob("throughput.*")}
    drawn(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("throughput.*")} == first
    assert dict(matplotlib.rcParams) == before


# The command


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["klotski-report", *map(str, arguments)])
    return main()


def test_a_report_on_a_sweep_lies_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, [{"pipeline": name} for name in STRATEGIES])
    assert report(monkeypatch, tmp_path) == 0
    files = "results.csv, results.jsonl, throughput.png, throughput.svg"
    assert capsys.readouterr().out.splitlines()[-1] == f"files     {tmp_path}: {files}"
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == set(files.split(", "))


def test_a_report_on_a_run_leaves_the_runs_own_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_run(tmp_path) / "results.jsonl").write_text('{"id": "r0"}\n')
    assert report(monkeypatch, tmp_path) == 0
    assert (tmp_path / "results.jsonl").read_text() == '{"id": "r0"}\n'
    assert (tmp_path / "report" / "results.csv").is_file()
    assert report(monkeypatch, tmp_path, "--out", tmp_path) == 0
    assert (tmp_path / "results.jsonl").read_text() == '{"id": "r0"}\n'


def test_a_report_on_two_sweeps_lies_where_both_are_or_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "a", [{"pipeline": "sequential"}])
    write_sweep(tmp_path / "b", [{"pipeline": "klotski"}])
    assert report(monkeypatch, tmp_path / "a", tmp_path / "b") == 0
    assert report(monkeypatch, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "new" / "folder") == 0
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        assert (folder / "results.csv").read_text().splitlines()[1].startswith("a/0,sequential,")
        assert (folder / "throughput.png").is_file()


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_runs_ends_in_one_sentence(folder: str, tmp_path: Path) -> None:
    sentence = only_sentence(run_python("-m", "klotski.report", folder, cwd=tmp_path))
    assert folder in sentence


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, [{}])
    (tmp_path / "file").touch()
    assert report(monkeypatch, tmp_path, "--out", tmp_path / "file" / "folder") == 1
    assert capsys.readouterr().err == f"{tmp_path / 'file' / 'folder'} could not be made: Not a directory\n"
    (tmp_path / "out" / "results.csv").mkdir(parents=True)
    assert report(monkeypatch, tmp_path, "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"{tmp_path / 'out' / 'results.csv'} could not be written: Is a directory\n"
