"""What many sequences keep on a card, wherever keys and values are planned to be: never more than was planned."""

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch

from klotski.errors import BudgetError
from klotski.executors.devices import CudaDevice
from klotski.executors.torch import TorchExecutor
from tests.architectures import save_checkpoint
from tests.card import Card
from tests.engine import read_results, run_requests
from tests.tiers.schedules import GPU

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


class Case(NamedTuple):
    """A model whose layers keep more than all else takes, and how its sequences are cut into batches and chunks.

    `prefill`: tokens of prompts in one sweep.
    """

    architecture: str
    settings: dict[str, Any]
    n_batches: int
    batch_size: int
    prefill: int
    kv_cache: str


WINDOWS = {"num_hidden_layers": 8, "head_dim": 64, "sliding_window": 64}  # in every second layer
ONLY_WINDOWS = {"num_hidden_layers": 16}
STATES = {"num_hidden_layers": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
CASES = {
    "windows beside host memory": Case("gpt_oss", WINDOWS, 2, 16, 160, "host"),
    "windows that hold all tokens": Case("phimoe", ONLY_WINDOWS | {"sliding_window": 4096}, 2, 16, 4096, "host"),
    "windows of long chunks": Case("phimoe", ONLY_WINDOWS | {"sliding_window": 16}, 2, 16, 4096, "device"),
    "states beside host memory": Case("qwen3_next", STATES, 8, 4, 4096, "host"),
}


def unequal_prompts(count: int, longest: int) -> list[dict[str, Any]]:
    """Prompts of which all but one are padded."""
    rng = Random(5)
    return [
        {
            "id": f"r{number}",
            "prompt_token_ids": [rng.randrange(3, 128) for _ in range(rng.randint(longest // 2, longest))],
            "max_tokens": 8,
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_least_budget_that_is_accepted_is_enough(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_checkpoint(case.architecture, tmp_path / "model", **case.settings)
    requests = unequal_prompts(32, 60)
    monkeypatch.setattr("klotski.executors.create", lambda config: TorchExecutor(CudaDevice()))
    settings = [
        *GPU,
        f"placement.kv_cache={case.kv_cache}",
        f"pipeline.prefill_tokens={case.prefill}",
        f"pipeline.n_batches={case.n_batches}",
        f"pipeline.batch_size={case.batch_size}",
        "placement=none",
        "hw.host_memory=100MB",
    ]
    with Card() as card:
        with pytest.raises(BudgetError) as refusal:
            run_requests(tmp_path, model, requests, *settings, "hw.device_memory=1KB")
        least = str(refusal.value).partition("; set ")[2].removesuffix(" or more")
        metrics = run_requests(tmp_path, model, requests, *settings, least)
        assert len(read_results(tmp_path)) == len(requests)
        memory = metrics["plan"]["memory"]
        assert card.peak <= sum(memory.values()) <= card.limit
