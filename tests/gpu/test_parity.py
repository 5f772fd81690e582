"""The tokens of a GPU's three tiers are those of transformers on the same GPU, and of the cores."""

import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import save_checkpoint
from tests.card import Card
from tests.engine import read_lines, read_results, run_requests
from tests.parity.test_architectures import unequal_requests
from tests.reference import plain_generate
from tests.tiers.schedules import FAST_CORES

REQUESTS = unequal_requests(12)
WAITS_OF_A_SAMPLE = 3  # which tokens are new; has every sequence ended; is there padding
WAITS_OF_A_BATCH = 4  # transformers looks at prompts before it begins


def run(card: AbstractContextManager[object], folder: Path, model: Path, *overrides: str) -> dict[str, Any]:
    with card:
        return run_requests(
            folder,
            model,
            REQUESTS,
            "hw.device_memory=1GB",
            "hw.runtime_memory=0",
            "hw.host_memory=30MB",
            "placement=none",
            "placement.kv_cache=host",
            "pipeline.n_batches=3",
            "pipeline.batch_size=2",
            *overrides,
        )


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "olmoe"])
def test_tokens_are_those_of_the_cores(
    architecture: str, where: str, card: AbstractContextManager[object], tmp_path: Path
) -> None:
    """What lies below the device is moved there, or attention, where it can be, and experts are computed below."""
    model = save_checkpoint(architecture, tmp_path / "model")
    below = ["pipeline.misses=cheapest", *FAST_CORES] if where == "host" else []
    metrics = run(card, tmp_path, model, f"placement.attention={where}", *below)
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    assert metrics["bytes_moved"]["link"] and metrics["bytes_moved"]["kv_out"]
    spans = [line for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "span"]
    assert (where == "host") == any((span["lane"], span["kind"]) == ("cores", "expert") for span in spans)


def test_tokens_are_those_of_transformers_on_the_gpu(card: AbstractContextManager[object], tmp_path: Path) -> None:
    if isinstance(card, Card):
        pytest.skip("of a card of threads this says nothing")
    path = save_checkpoint("mixtral", tmp_path / "model")
    run(card, tmp_path, path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).cuda().eval()
    for request in REQUESTS:
        prompt = torch.tensor([request["prompt_token_ids"]]).cuda()
        output = model.generate(prompt, max_new_tokens=request["max_tokens"], do_sample=False)
        assert read_results(tmp_path)[request["id"]] == output[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "settings",
    [["placement.attention=device"], ["placement.attention=host"], ["pipeline.misses=cheapest", *FAST_CORES]],
    ids=["attention on the device", "attention on the cores", "experts on the cores"],
)
def test_a_sweep_waits_for_nothing_but_what_it_chooses_by(
    settings: list[str], card: AbstractContextManager[object], tmp_path: Path
) -> None:
    """torch warns of each call that makes the host wait: a few for each sample, and none within the layers."""
    model = save_checkpoint("mixtral", tmp_path / "model")
    with card, warnings.catch_warnings(record=True) as told, ExitStack() as stack:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        metrics = run(nullcontext(), tmp_path, model, *settings)
    waits = [each for each in told if "synchroniz" in str(each.message)]
    samples = sum(line["batches"] for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "sweep")
    batches, layers = len(REQUESTS) // 2, 3
    asked = WAITS_OF_A_SAMPLE * samples + WAITS_OF_A_BATCH * batches + len(REQUESTS)
    assert samples < len(waits) <= asked < samples * layers * 2, "as many as there were layers to go through"
    assert metrics["num_sweeps"]
