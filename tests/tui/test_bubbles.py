"""Bubbles made on purpose are seen on the timeline, and the overview names their cause."""

import time
from pathlib import Path

import pytest
import torch

import klotski.executors.torch
from klotski.weights.layout import BlockLayout
from klotski.weights.reader import Reader, Reading
from monitor.draw import BUBBLE
from tests.cli.process import run_klotski
from tests.engine import run_engine
from tests.tui.told import player_of, said, view_of

GPU = ("executor=simulate", "model=mixtral", "hw=rtx4090", "workload=synthetic", "history=none")
FEW_TOKENS = ("workload.input_tokens=16", "workload.output_tokens=4")


def shown(run: Path) -> tuple[str, str]:
    """The overview, and the row of waits of the timeline, when all has been read."""
    view = view_of(player_of(run), size=(156, 44))
    line = said("Timeline", view)
    return said("Overview", view), next(row for row in line.splitlines() if row.startswith("waits"))


class SlowReader(Reader):
    """A disk that others use, too."""

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Reading:
        time.sleep(0.01)
        return super().start(layout, slot)


@pytest.mark.parametrize(
    ("earlier_runs", "words"), [(0, "which was not measured on its machine"), (1, "something slows it")]
)
def test_a_disk_that_is_throttled(
    earlier_runs: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("workload.limit=8", "workload.max_tokens=4", f"history={tmp_path / 'history'}")
    for _ in range(earlier_runs):
        run_engine(tmp_path / "earlier", *settings)
    monkeypatch.setattr(klotski.executors.torch, "Reader", SlowReader)
    said, waits = shown(run_engine(tmp_path / "run", *settings))
    assert waits.count(BUBBLE) > 20, waits
    assert "disk never rests" in said and "the plan counted on" in said and words in said


def test_a_group_of_too_few_batches(tmp_path: Path) -> None:
    alone = ("pipeline.n_batches=1", "pipeline.batch_size=64", "workload.num_requests=640")
    said, waits = shown(run_engine(tmp_path / "run", *GPU, *FEW_TOKENS, *alone))
    assert waits.count(BUBBLE) > 20, waits
    assert "link never rests" in said and "n_batches=1 is too small" in said


def test_nothing_is_prefetched(tmp_path: Path) -> None:
    machine = ("executor=simulate", "hw.compute_rate=2GFLOP/s", "hw.disk_bandwidth=100MB/s", "history=none")
    requests = ("workload=synthetic", "workload.num_requests=16", "workload.output_tokens=4")
    one = ("pipeline=sequential", "pipeline.batch_size=8", f"hydra.run.dir={tmp_path / 'run'}")
    assert run_klotski("model=tiny", *machine, *requests, *one, cwd=tmp_path).status == 0
    said, waits = shown(tmp_path / "run")
    assert BUBBLE in waits, waits
    assert "blocks are sent for too late (prefetch=none, on_demand=lazy)" in said
