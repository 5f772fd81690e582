"""Greedy tokens are transformers' own, for every architecture, with most experts on disk."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from klotski.executors.facts import gather_facts
from klotski.model import open_model
from tests.architectures import ARCHITECTURES, save_checkpoint
from tests.engine import read_results, run_engine, write_requests
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


def expert_bytes(checkpoint: Path) -> int:
    facts = gather_facts(open_model(checkpoint, torch.float32))
    return sum(size for block, size in facts.block_bytes.items() if not block.is_dense)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_generate_while_experts_stream(architecture: str, tmp_path: Path) -> None:
    # Sharded where the name's length is even, so that both layouts of the Hub are read.
    shard_size = "150KB" if len(architecture) % 2 == 0 else "10GB"
    checkpoint = save_checkpoint(architecture, tmp_path / "model", shard_size)
    requests = unequal_requests(11)
    run = run_engine(
        tmp_path / "run",
        "model=custom",
        f"model.path={checkpoint}",
        "placement=none",
        "pipeline.n_batches=2",
        f"pipeline.batch_size={BATCH_SIZE}",
        "workload=jsonl",
        f"workload.path={write_requests(tmp_path / 'requests.jsonl', requests)}",
    )
    plan = json.loads((run / "plan.json").read_text())
    moved = json.loads((run / "metrics.json").read_text())["bytes_moved"]["disk"]
    assert plan["memory"]["expert_slots"] + plan["memory"]["residents"] < expert_bytes(checkpoint) / 2
    assert moved > expert_bytes(checkpoint)
    assert read_results(run) == plain_generate(checkpoint, requests, BATCH_SIZE)


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
