"""Greedy tokens are transformers' own, for every architecture, with most experts on disk."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from klotski.errors import BudgetError
from klotski.executors.facts import gather_facts
from klotski.model import keeps_tokens, open_model, slices
from klotski.planner import ModelFacts
from klotski.weights.memory import PAGE
from tests.architectures import ARCHITECTURES, save_checkpoint
from tests.engine import read_lines, read_results, run_engine, write_requests
from tests.reference import plain_generate

BATCH_SIZE = 3


def unequal_requests(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1616)
    return [
        {
            "id": f"request {number}",
            "prompt_token_ids": [rng.randrange(3, 128) for _ in range(rng.randrange(3, 20))],
            "max_tokens": rng.randrange(4, 14),
        }
        for number in range(count)
    ]


def facts_of(checkpoint: Path) -> ModelFacts:
    return gather_facts(open_model(checkpoint, torch.float32))


def expert_bytes(checkpoint: Path) -> int:
    return sum(size for block, size in facts_of(checkpoint).block_bytes.items() if not block.is_dense)


def sweeps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "events.jsonl") if line["event"] == "sweep"]


class Task(NamedTuple):
    """What an architecture is asked, and what transformers answers."""

    checkpoint: Path
    requests: Path
    expected: dict[str, list[int]]

    def run(self, folder: Path, *overrides: str) -> Path:
        return run_engine(
            folder,
            "model=custom",
            f"model.path={self.checkpoint}",
            "placement=none",
            f"pipeline.batch_size={BATCH_SIZE}",
            "workload=jsonl",
            f"workload.path={self.requests}",
            *overrides,
        )


@pytest.fixture(scope="module", params=ARCHITECTURES)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp(request.param)
    # Sharded where the name's length is even, so that both layouts of the Hub are read.
    shard_size = "150KB" if len(request.param) % 2 == 0 else "10GB"
    checkpoint = save_checkpoint(request.param, folder / "model", shard_size)
    requests = unequal_requests(11)
    # Sparse attention counts padding among the tokens that it chooses from, so that batches have one sequence.
    expected = plain_generate(checkpoint, requests, 1 if "index_topk" in ARCHITECTURES[request.param] else BATCH_SIZE)
    return Task(checkpoint, write_requests(folder / "requests.jsonl", requests), expected)


def test_tokens_are_those_of_generate_while_experts_stream(task: Task, tmp_path: Path) -> None:
    """Within the least that a refusal says would do."""
    group = ("pipeline.n_batches=2", "hw.runtime_memory=0")
    with pytest.raises(BudgetError) as refusal:
        task.run(tmp_path / "refused", *group, "hw.device_memory=1KB")
    run = task.run(tmp_path / "run", *group, str(refusal.value).partition("; set ")[2].removesuffix(" or more"))
    plan = json.loads((run / "plan.json").read_text())
    moved = json.loads((run / "metrics.json").read_text())["bytes_moved"]["disk"]
    assert plan["memory"]["expert_slots"] + plan["memory"]["residents"] < expert_bytes(task.checkpoint) / 2
    assert moved > expert_bytes(task.checkpoint)
    rounding = plan["n_batches"] * 2 * PAGE * len({block.layer for block in facts_of(task.checkpoint).block_bytes})
    kept = plan["memory"]["kv_cache"] + plan["memory"]["layer_states"]
    assert max(sweep["cache_bytes"] for sweep in sweeps_of(run)) <= kept + rounding
    assert read_results(run) == task.expected


@pytest.mark.parametrize("piece", [1, 4])
def test_tokens_are_the_same_where_prompts_are_read_in_pieces(
    task: Task, tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many tokens of each sequence at a time, while batches whose prompts were shorter go on decoding.

    Two sequences of a batch go through a layer together, or one, if they have more tokens than a slice.
    Layers that keep a state instead of tokens get each prompt whole, and the bound is the longest batch's.
    """
    monkeypatch.setattr(slices, "SLICE", 2)
    monkeypatch.setattr(slices, "NORMED", 96)
    run = task.run(tmp_path / "run", "pipeline.n_batches=3", f"pipeline.prefill_tokens={piece * BATCH_SIZE}")
    plan = json.loads((run / "plan.json").read_text())
    sweeps = sweeps_of(run)
    if keeps_tokens(open_model(task.checkpoint, torch.float32).config):
        assert max(sweep["prefill_tokens"] for sweep in sweeps) <= piece * BATCH_SIZE
        assert any(sweep["prefill_tokens"] and sweep["decode_tokens"] for sweep in sweeps)
        assert sum(sweep["prefill_tokens"] > 0 for sweep in sweeps) > 4, "one sweep for each batch would not do"
    assert max(sweep["prefill_tokens"] for sweep in sweeps) <= plan["prefill_tokens"]
    assert read_results(run) == task.expected


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_padding_does_not_change_tokens(architecture: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(architecture, tmp_path / "model")
    requests = unequal_requests(8)
    run = run_engine(
        tmp_path / "run",
        "model=custom",
        f"model.path={checkpoint}",
        "pipeline.batch_size=4",
        "workload=jsonl",
        f"workload.path={write_requests(tmp_path / 'requests.jsonl', requests)}",
    )
    assert read_results(run) == plain_generate(checkpoint, requests, batch_size=1)
