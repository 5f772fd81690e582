"""Routers that make every guess wrong cost time, never a token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from klotski.core import Prediction
from tests.architectures import save_checkpoint
from tests.engine import read_results, run_engine, write_requests
from tests.parity.test_architectures import unequal_requests
from tests.reference import plain_generate

LAYERS, EXPERTS, TOP_K = 4, 8, 2  # of the checkpoint
REQUESTS = unequal_requests(7)
ONE_PAIR = [(0, 1)] * LAYERS
ANOTHER_PAIR = [(6, 7)] * LAYERS
A_PAIR_A_LAYER = [(2 * layer, 2 * layer + 1) for layer in range(LAYERS)]


def save_obstinate(folder: Path, favourites: Sequence[Sequence[int]]) -> Path:
    """A model whose router in each layer has its favourites, and hears nothing that tokens say."""
    save_checkpoint("gpt_oss", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for layer, experts in zip(model.model.layers, favourites, strict=True):
            layer.mlp.router.weight.zero_()
            layer.mlp.router.bias.zero_()
            layer.mlp.router.bias[list(experts)] = 1.0
    model.save_pretrained(folder)
    return folder


def run(model: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    requests = write_requests(folder / "requests.jsonl", REQUESTS)
    settings = ["model=custom", f"model.path={model}", "placement=none", "pipeline.expert_slots=3"]
    settings += ["pipeline.n_batches=3", "pipeline.batch_size=2", f"pipeline.hot_experts={TOP_K}"]
    settings += ["workload=jsonl", f"workload.path={requests}", f"history={folder / 'history'}"]
    runs = len(list(folder.glob("run*")))
    left = run_engine(folder / f"run{runs}", *settings, *overrides)
    assert read_results(left) == plain_generate(model, REQUESTS)
    metrics: dict[str, Any] = json.loads((left / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize("favourites", [ONE_PAIR, A_PAIR_A_LAYER], ids=["one pair", "another pair in each layer"])
@pytest.mark.parametrize("prediction", list(Prediction), ids=lambda prediction: prediction.value)
def test_routers_that_want_the_same_whatever_comes(
    prediction: Prediction, favourites: Sequence[Sequence[int]], tmp_path: Path
) -> None:
    model = save_obstinate(tmp_path / "model", favourites)
    metrics = run(model, tmp_path, f"pipeline.predictor={prediction.value}")
    layers = metrics["prefetch"]["layers"]
    assert all(layer["used"] <= layer["requested"] for layer in layers)
    # Each sweep reads both favourites of each layer, and a wrong guess or two; once more for the sweep that does
    # not come.
    most = (metrics["num_sweeps"] + 1) * LAYERS * 2 * TOP_K
    expert = metrics["plan"]["memory"]["expert_slots"] / 3
    dense = metrics["plan"]["memory"]["dense_slots"] / 2
    assert metrics["bytes_moved"]["disk"] <= most * expert + (metrics["num_sweeps"] + 1) * LAYERS * dense


def test_a_run_that_begins_with_nothing_but_errors(tmp_path: Path) -> None:
    """Weights change under the same name, so that what was learned names only experts that nobody wants."""
    run(save_obstinate(tmp_path / "model", ONE_PAIR), tmp_path)
    first = run(save_obstinate(tmp_path / "model", ANOTHER_PAIR), tmp_path)["prefetch"]
    assert first["first_sweep"]["named"] == LAYERS * TOP_K
    assert first["first_sweep"]["among_hottest"] == 0
    assert first["among_hottest"] > 0, "it learns better in the end"


def test_the_first_sweep_of_the_next_run_knows_what_this_one_learned(tmp_path: Path) -> None:
    model = save_obstinate(tmp_path / "model", A_PAIR_A_LAYER)
    first, second = (run(model, tmp_path)["prefetch"]["first_sweep"] for _ in range(2))
    assert first["among_hottest"] < 1
    assert second["among_hottest"] == 1
