"""Bubbles made on purpose are seen on the timeline, and the overview names their cause."""

import asyncio
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import klotski.executors.torch
from klotski.weights.layout import BlockLayout
from klotski.weights.reader import Reader, Reading
from monitor.app import Monitor
from monitor.draw import BUBBLE
from monitor.panels import overview, time_line
from monitor.source import Run
from tests.cli.process import run_klotski
from tests.engine import run_engine

GPU = ("executor=simulate", "model=mixtral", "hw=rtx4090", "workload=synthetic", "history=none")
FEW_TOKENS = ("workload.input_tokens=16", "workload.output_tokens=4")


def shown(run: Path) -> tuple[str, str]:
    """The overview, and the row of waits of the timeline, when all has been read."""

    async def look() -> tuple[str, str]:
        app = Monitor(Run(run), run.parent)
        async with app.run_test(size=(160, 50)) as pilot:
            await pilot.pause(0.5)
            out = StringIO()
            console = Console(file=out, width=400, no_color=True)
            console.print(time_line(app.view()))
            waits = next(line for line in out.getvalue().splitlines() if line.startswith("waits"))
            out.truncate(out.seek(0))
            console.print(overview(app.view()))
            return out.getvalue(), waits

    return asyncio.run(look())


class SlowReader(Reader):
    """A disk that others use, too."""

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Reading:
        time.sleep(0.01)
        return super().start(layout, slot)


def test_a_disk_that_is_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klotski.executors.torch, "Reader", SlowReader)
    run = run_engine(tmp_path / "run", "workload.limit=8", "workload.max_tokens=4", "history=none")
    said, waits = shown(run)
    assert waits.count(BUBBLE) > 20, waits
    assert "disk never rests" in said and "the plan counted on" in said and "something slows it" in said


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
