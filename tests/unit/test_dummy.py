"""Weights that are made up: the model's shapes, numbers that a model can compute with, and no file."""

import json
from pathlib import Path

import pytest
import torch

from klotski.errors import BudgetError
from klotski.model import open_model
from klotski.weights.dummy import DummyReader
from klotski.weights.memory import allocate
from tests.architectures import ARCHITECTURES, save_checkpoint
from tests.engine import read_results, run_engine


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    """A folder with nothing but a config."""
    checkpoint = save_checkpoint("mixtral", tmp_path / "whole")
    (tmp_path / "model").mkdir()
    (checkpoint / "config.json").rename(tmp_path / "model" / "config.json")
    return tmp_path / "model"


def settings(model: Path, *more: str) -> list[str]:
    workload = ["workload=synthetic", "workload.num_requests=5", "workload.input_tokens=6", "workload.output_tokens=4"]
    return ["model=custom", f"model.path={model}", "model.load_format=dummy", *workload, *more]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_those_of_the_checkpoint(architecture: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(architecture, tmp_path)
    real, made = (open_model(checkpoint, torch.float32, is_dummy=each) for each in (False, True))
    assert made.layouts.keys() == real.layouts.keys()
    for block, layout in made.layouts.items():
        specs = [{name: spec for name, (_, spec) in each.views.items()} for each in (layout, real.layouts[block])]
        assert specs[0] == specs[1]
        assert (layout.requests, layout.disk_bytes) == ((), 0)


def test_matrices_are_random_norms_are_one_and_a_slot_holds_them_without_overlap(config_alone: Path) -> None:
    model = open_model(config_alone, torch.float32, is_dummy=True)
    for layout in model.layouts.values():
        slot = allocate(layout.slot_bytes)
        DummyReader().start(layout, slot).wait()
        views = layout.views_of(slot)
        for name, view in views.items():
            if view.ndim == 1:
                assert "norm" in name
                assert (view == 1).all()
            else:
                assert 0.015 < view.std() < 0.025
        again = allocate(layout.slot_bytes)
        DummyReader().read(layout, again)
        assert torch.equal(slot, again)


def test_a_run_needs_a_config_alone_and_moves_nothing(config_alone: Path, tmp_path: Path) -> None:
    run = run_engine(tmp_path / "run", *settings(config_alone, "placement=none", "hw.device_memory=2GB"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["status"] == "ok"
    assert metrics["bytes_moved"] == {}
    assert all(len(tokens) == 4 for tokens in read_results(run).values())
    assert len(read_results(run)) == 5


def test_what_does_not_fit_is_refused_because_there_is_nothing_to_stream_from(
    config_alone: Path, tmp_path: Path
) -> None:
    small = settings(config_alone, "hw.runtime_memory=0", "hw.device_memory=1MB")
    with pytest.raises(BudgetError, match="weights that have no file to be streamed from") as refusal:
        run_engine(tmp_path / "run", *small)
    remedy = str(refusal.value).partition("; set ")[2].removesuffix(" or more")
    run = run_engine(tmp_path / "again", *settings(config_alone, "hw.runtime_memory=0", remedy))
    assert len(read_results(run)) == 5
