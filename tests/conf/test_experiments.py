"""Every experiment, run small through the command itself: the rows, columns and plots that it is there for."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from klotski import app
from klotski.report import collect
from klotski.report.plots import draw_plots
from scripts.random_checkpoint import SHAPES, folder_of
from tests.architectures import save_checkpoint
from tests.engine import read_lines

Command = Callable[..., int]

FEW_TOKENS = ["workload.num_requests=8", "workload.input_tokens=4", "workload.output_tokens=3"]
FEW_PROMPTS = ["workload.limit=8", "workload.max_tokens=4"]
PAPER_CASES = ["published_8x7b_rtx3090", "8x7b_rtx3090"]
PAPER = [f"paper={','.join(PAPER_CASES)}", "workload.num_requests=64"]
STRATEGIES = ["sequential", "overlap", "expert_cache", "cpu_experts", "klotski"]


@dataclass(frozen=True)
class Experiment:
    """What makes it small, what its rows are told apart by, in order, and the plots that it is there for."""

    shrink: list[str]
    varies: dict[str, list[str]]
    plots: set[str]


EXPERIMENTS = {
    "ablation": Experiment(
        [*FEW_TOKENS, "pipeline.batch_size=2"],
        {"pipeline": ["one_batch", "many_batches", "hot_experts", "klotski"]},
        {"throughput"},
    ),
    "architectures": Experiment(FEW_TOKENS, {"model": list(SHAPES)}, {"throughput"}),
    "hot_experts": Experiment(FEW_PROMPTS, {}, {"hot_experts", "prefetch_by_layer"}),
    "latency_throughput": Experiment(
        [*FEW_TOKENS, "pipeline.batch_size=1,4"],
        {"pipeline": STRATEGIES, "pipeline.batch_size": ["1", "4"]},
        {"throughput", "throughput_by_latency"},
    ),
    "n_sweep": Experiment(
        [*FEW_TOKENS, "pipeline.n_batches=1,2,4", "pipeline.batch_size=1,2"],
        {"pipeline.n_batches": ["1", "2", "4"], "pipeline.batch_size": ["1", "2"]},
        {"throughput_by_n", "throughput_by_latency"},
    ),
    "paper_fig10": Experiment(
        [*PAPER, "pipeline.batch_size=16,64"],
        {"paper": PAPER_CASES, "pipeline": ["flexgen", "klotski"], "pipeline.batch_size": ["16", "64"]},
        {"throughput", "throughput_by_latency"},
    ),
    "paper_fig14": Experiment(
        [*PAPER, "pipeline.n_batches=3,15", "pipeline.batch_size=16"],
        {"paper": PAPER_CASES, "pipeline.n_batches": ["3", "15"]},
        {"throughput", "throughput_by_n"},
    ),
    "paper_table3": Experiment(
        PAPER,
        {"paper": PAPER_CASES, "pipeline": ["one_batch", "flexgen", "hot_experts", "klotski"]},
        {"throughput"},
    ),
    "placements": Experiment(FEW_PROMPTS, {"placement": ["none", "greedy", "usage", "lru", "lfu"]}, {"throughput"}),
    "prefetch_accuracy": Experiment(
        ["workload.limit=4", "workload.max_tokens=4", "pipeline.n_batches=1,4"],
        {
            "pipeline.predictor": ["random", "popularity", "correlation", "lookahead"],
            "pipeline.n_batches": ["1", "4"],
        },
        {"throughput", "throughput_by_n", "prefetch", "prefetch_by_layer"},
    ),
    "strategies": Experiment(FEW_TOKENS, {"pipeline": STRATEGIES}, {"throughput"}),
    "what_if": Experiment(
        [*FEW_TOKENS, "model=olmoe,deepseek_v2_lite", "hw=t4,rtx4090"],
        {"model": ["olmoe", "deepseek_v2_lite"], "hw": ["t4", "rtx4090"]},
        {"throughput"},
    ),
    "what_if_memory": Experiment(
        [*FEW_TOKENS, "model=olmoe", "hw.device_memory=8GB,16GB", "hw.link_bandwidth=25GB/s,50GB/s"],
        {"hw.device_memory": ["8GB", "16GB"], "hw.link_bandwidth": ["25GB/s", "50GB/s"]},
        {"throughput_by_memory", "throughput_by_link"},
    ),
}


@pytest.fixture
def klotski(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command in this process, with its runs below `tmp_path`; its exit status."""
    root = logging.getLogger()
    level, handlers, raises = root.level, list(root.handlers), logging.raiseExceptions
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["klotski", *arguments])
        return app.main()

    yield run
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], logging.raiseExceptions = handlers, raises
    root.setLevel(level)


def save_shapes(folder: Path) -> None:
    """Where the experiments look for them, checkpoints of the shapes' architectures, of a few kilobytes."""
    for name, (architecture, _) in SHAPES.items():
        save_checkpoint(architecture, folder / folder_of(name))


def plots_in(folder: Path) -> set[str]:
    """The plots that a sweep ended in, each of them in both formats."""
    drawn = {file.stem for file in folder.glob("*.png")}
    assert drawn == {file.stem for file in folder.glob("*.svg")}
    return drawn


def test_every_experiment_is_tried() -> None:
    assert {file.stem for file in (app.config_folder() / "experiment").glob("*.yaml")} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_gives_the_rows_and_plots_that_it_is_there_for(
    name: str, tmp_path: Path, klotski: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = EXPERIMENTS[name]
    if name == "architectures":
        save_shapes(tmp_path)
    folder = ["-m", "hydra.sweep.dir=runs"] if experiment.varies else ["hydra.run.dir=runs"]
    assert klotski(*folder, f"experiment={name}", *experiment.shrink) == 0
    rows = collect([Path("runs")])
    assert [(row.run.status, row.error) for row in rows] == [("ok", None)] * len(rows)
    for key, values in experiment.varies.items():
        assert list(dict.fromkeys(row.settings[key] for row in rows)) == values
    combinations = {tuple(row.settings.items()) for row in rows}
    assert len(combinations) == len(rows)
    assert set(rows[0].settings) == set(experiment.varies)
    if experiment.varies:
        shown = capsys.readouterr().out
        assert all(value in shown for values in experiment.varies.values() for value in values)
        assert read_lines(Path("runs/results.jsonl")) == [row.flat() for row in rows]
        assert plots_in(Path("runs")) == experiment.plots
    else:
        assert {file.stem for file in draw_plots(rows, tmp_path)} == experiment.plots


def test_shapes_that_are_not_there_are_rows_that_say_so(
    tmp_path: Path, klotski: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert klotski("-m", "experiment=architectures", "hydra.sweep.dir=runs") == 1
    rows = collect([tmp_path / "runs"])
    assert [row.settings["model"] for row in rows] == list(SHAPES)
    assert {row.run.status for row in rows} == {"failed"}
    assert all(f"model.path={folder_of(name)}" in str(row.error) for name, row in zip(SHAPES, rows, strict=True))
    assert all("`make shapes` writes it" in str(row.error) for row in rows)
    assert ["0", "eight_large", "failed"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_job_that_is_refused_does_not_stop_the_others(
    tmp_path: Path, klotski: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert klotski("-m", "hydra.sweep.dir=runs", "pipeline.batch_size=2,x,4", *FEW_PROMPTS) == 1
    rows = collect([tmp_path / "runs"])
    assert [row.run.status for row in rows] == ["ok", "failed", "ok"]
    assert f"\n1: {rows[1].error}\n" in capsys.readouterr().out
