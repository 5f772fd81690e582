"""The tokens of a GPU's three tiers are those of transformers on the same GPU, and of the cores."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import save_checkpoint
from tests.engine import read_results, run_engine, write_requests
from tests.parity.test_architectures import unequal_requests
from tests.reference import plain_generate

REQUESTS = unequal_requests(12)
SYNCS_OF_A_SAMPLE = 6  # in which transformers asks the device: has a sequence ended, and which tokens are new


def run(folder: Path, model: Path, *overrides: str) -> dict[str, Any]:
    requests = write_requests(folder / "requests.jsonl", REQUESTS)
    run_engine(
        folder,
        "model=custom",
        f"model.path={model}",
        "workload=jsonl",
        f"workload.path={requests}",
        "hw.device_memory=20MB",
        "hw.runtime_memory=0",
        "hw.host_memory=30MB",
        "placement=none",
        "placement.kv_cache=host",
        "pipeline.n_batches=3",
        "pipeline.batch_size=2",
        *overrides,
    )
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize("attention", ["device", "host"])
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "olmoe"])
def test_tokens_are_those_of_the_cores(architecture: str, attention: str, tmp_path: Path) -> None:
    model = save_checkpoint(architecture, tmp_path / "model")
    metrics = run(tmp_path, model, f"placement.attention={attention}")
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    assert metrics["bytes_moved"]["link"] and metrics["bytes_moved"]["kv_out"]


def test_tokens_are_those_of_transformers_on_the_gpu(tmp_path: Path) -> None:
    path = save_checkpoint("mixtral", tmp_path / "model")
    run(tmp_path, path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).cuda().eval()
    for request in REQUESTS:
        prompt = torch.tensor([request["prompt_token_ids"]]).cuda()
        output = model.generate(prompt, max_new_tokens=request["max_tokens"], do_sample=False)
        assert read_results(tmp_path)[request["id"]] == output[0, prompt.shape[1] :].tolist()


def test_a_sweep_waits_for_nothing_but_what_it_chooses_by(tmp_path: Path) -> None:
    """torch warns of each call that makes the host wait; of those there are a few for each sample, and no others."""
    model = save_checkpoint("mixtral", tmp_path / "model")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            metrics = run(tmp_path, model, "workload.max_tokens=8", "placement.attention=device")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    syncs = [each for each in told if "synchroniz" in str(each.message)]
    samples = metrics["num_sweeps"] * 3  # of three batches
    assert len(syncs) <= SYNCS_OF_A_SAMPLE * samples + 50  # what loading asks
