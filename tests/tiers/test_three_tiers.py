"""Device, CPU memory and disk: the code of a GPU's three tiers, on CPU, with transfers that are late at random."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from klotski.executors.torch import TorchExecutor
from tests.architectures import save_checkpoint
from tests.engine import read_lines, read_results, run_requests
from tests.reference import plain_generate
from tests.tiers.delayed import DelayedDevice, PoisonedPlaces, PoisonedStore
from tests.tiers.schedules import FAST_CORES, GPU, PHASES, REQUESTS, SCHEDULES, Schedule, believe


def run_on(device: DelayedDevice, folder: Path, model: Path, *overrides: str) -> dict[str, Any]:
    """A run on a device's three tiers; returns its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klotski.executors.create", lambda config: TorchExecutor(device))
        believe(patch)
        patch.setattr("klotski.executors.torch.BlockStore", PoisonedStore)
        patch.setattr("klotski.executors.torch.CachePlaces", PoisonedPlaces)
        return run_requests(folder, model, REQUESTS, *GPU, *overrides)


def check(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    """The tokens are what they are without any of this, and every tier was in use that should be."""
    with TemporaryDirectory() as name:
        metrics = run_on(DelayedDevice(schedule.seed), Path(name), model, *schedule.settings())
        assert read_results(Path(name)) == expected
    moved = metrics["bytes_moved"]
    assert schedule.placement != "none" or moved["link"]
    assert ("kv_out" in moved) == (schedule.kv_cache == "host")
    assert ("kv_in" in moved) <= ("kv_out" in moved)
    assert "kv_in" in moved or schedule.kv_cache == "device" or schedule.attention == "host"
    looked = schedule.kv_cache == schedule.attention == "host"
    assert looked <= ("cores" in metrics["lane_busy_seconds"]) <= (looked or schedule.misses == "cheapest")
    if looked and schedule.prefill_tokens == "auto":
        assert "kv_in" not in moved, "prompts that are read at once have nothing to bring"
    assert schedule.host_memory != "30MB" or "disk" not in moved


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(schedule=SCHEDULES)
def test_tokens_are_the_same_however_late_blocks_and_caches_are(
    model: Path, expected: dict[str, list[int]], schedule: Schedule
) -> None:
    check(model, expected, schedule)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(schedule=SCHEDULES)
def test_a_thousand_schedules(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    check(model, expected, schedule)


@pytest.mark.parametrize("attention", ["device", "host"])
@pytest.mark.parametrize("architecture", ["gpt_oss", "deepseek_v3", "qwen3_next", "jamba", "lfm2_moe"])
def test_windows_states_and_latent_keys_have_their_places(architecture: str, attention: str, tmp_path: Path) -> None:
    """Layers that keep all tokens move, or are looked at below; windows, states and convolutions stay on the device."""
    model = save_checkpoint(architecture, tmp_path / "model")
    device = DelayedDevice(1)
    run_on(
        device,
        tmp_path,
        model,
        "hw.device_memory=20MB",
        "hw.host_memory=20MB",
        "placement=none",
        "placement.kv_cache=host",
        f"placement.attention={attention}",
        "pipeline.n_batches=3",
        "pipeline.batch_size=2",
    )
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    assert device.copied["out"]


@pytest.mark.parametrize(
    ("architecture", "strategy"),
    [
        *((architecture, "klotski") for architecture in ("mixtral", "gpt_oss", "deepseek_v3", "olmoe")),
        *(("mixtral", strategy) for strategy in ("cpu_experts", "sequential")),
    ],
)
def test_the_cores_compute_experts_that_lie_below(architecture: str, strategy: str, tmp_path: Path) -> None:
    model = save_checkpoint(architecture, tmp_path / "model")
    device = DelayedDevice(1)
    metrics = run_on(
        device,
        tmp_path,
        model,
        "hw.device_memory=1.6MB",
        "hw.host_memory=30MB",
        "placement=none",
        f"pipeline={strategy}",
        "pipeline.misses=cheapest",
        "pipeline.batch_size=2",
        *FAST_CORES,
    )
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    experts = [line for line in read_lines(tmp_path / "events.jsonl") if line.get("kind") == "expert"]
    assert sum((line["event"], line["lane"]) == ("span", "cores") for line in experts) > 30
    assert "cores" not in metrics["bytes_moved"], "what stays where it is does not move"


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3", "olmoe"])
def test_experts_that_stay_are_multiplied_at_once(architecture: str, tmp_path: Path) -> None:
    """Some stay, and the others are computed as they arrive."""
    model = save_checkpoint(architecture, tmp_path / "model")
    budget = ["hw.device_memory=1.7MB", "hw.host_memory=20MB", "pipeline.n_batches=3", "pipeline.batch_size=2"]
    run_on(DelayedDevice(1), tmp_path, model, *budget, "pipeline.expert_slots=2", "pipeline.prefill_tokens=32")
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    spans = [line for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "span"]
    computed = [span for span in spans if (span["lane"], span["kind"]) == ("compute", "expert")]
    together = [span for span in computed if "parts" in span]
    assert together and len(together) < len(computed)
    assert all(span["tokens"] == sum(tokens for _, tokens in span["parts"]) for span in together)
    assert any(span["lane"] == "link" for span in spans)
