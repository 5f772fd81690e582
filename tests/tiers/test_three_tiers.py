"""Device, CPU memory and disk: the code of a GPU's three tiers, on CPU, with transfers that are late at random."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from klotski.executors.torch import TorchExecutor
from tests.architectures import save_checkpoint
from tests.engine import read_lines, read_results, run_engine, write_requests
from tests.parity.test_architectures import unequal_requests
from tests.reference import plain_generate
from tests.tiers.delayed import DelayedDevice, PoisonedStore

REQUESTS = unequal_requests(9)
GPU = ["hw=rtx4090", "hw.runtime_memory=0"]  # whose speeds the plan goes by
# Strategies, as in the paper and as others have them.
STRATEGIES = [
    ["pipeline.prefetch=hot", "pipeline.on_demand=eager", "pipeline.order=arrival"],
    ["pipeline.prefetch=layer", "pipeline.on_demand=eager", "pipeline.order=hot_first"],
    ["pipeline.prefetch=none", "pipeline.on_demand=eager", "pipeline.order=index"],
    ["pipeline.prefetch=none", "pipeline.on_demand=lazy", "pipeline.order=index"],
]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def run_on(device: DelayedDevice, folder: Path, model: Path, *overrides: str) -> dict[str, Any]:
    """A run on a device's three tiers; returns its metrics."""
    requests = write_requests(folder / "requests.jsonl", REQUESTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klotski.executors.create", lambda config: TorchExecutor(device))
        patch.setattr("klotski.executors.torch.BlockStore", PoisonedStore)
        run_engine(
            folder,
            "model=custom",
            f"model.path={model}",
            "workload=jsonl",
            f"workload.path={requests}",
            *GPU,
            *overrides,
        )
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield save_checkpoint("mixtral", Path(name))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[int]]:
    return plain_generate(model, REQUESTS)


class Schedule(NamedTuple):
    """How a run is arranged, and how late its transfers are."""

    seed: int
    strategy: Sequence[str]
    n_batches: int
    batch_size: int
    prefill_tokens: str
    placement: str
    kv_cache: str
    attention: str
    host_memory: str


SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(STRATEGIES),
    n_batches=st.sampled_from([1, 2, 4]),
    batch_size=st.sampled_from([1, 2, 3]),
    prefill_tokens=st.sampled_from(["1", "9", "auto"]),
    placement=st.sampled_from(["none", "greedy", "lfu"]),
    kv_cache=st.sampled_from(["device", "host"]),
    attention=st.sampled_from(["device", "host"]),
    host_memory=st.sampled_from(["3MB", "4MB", "30MB"]),
)


def check(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    """The tokens are what they are without any of this, and every tier was in use that should be."""
    with TemporaryDirectory() as name:
        metrics = run_on(
            DelayedDevice(schedule.seed),
            Path(name),
            model,
            *schedule.strategy,
            "hw.device_memory=2.5MB",
            f"hw.host_memory={schedule.host_memory}",
            f"placement={schedule.placement}",
            f"placement.kv_cache={schedule.kv_cache}",
            f"placement.attention={schedule.attention}",
            f"pipeline.n_batches={schedule.n_batches}",
            f"pipeline.batch_size={schedule.batch_size}",
            f"pipeline.prefill_tokens={schedule.prefill_tokens}",
        )
        assert read_results(Path(name)) == expected
    moved = metrics["bytes_moved"]
    assert schedule.placement != "none" or moved["link"]
    assert ("kv_out" in moved) == (schedule.kv_cache == "host")
    assert ("kv_in" in moved) <= ("kv_out" in moved)
    assert "kv_in" in moved or schedule.kv_cache == "device" or schedule.attention == "host"
    looked = schedule.kv_cache == schedule.attention == "host"
    assert ("cores" in metrics["lane_busy_seconds"]) == looked
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


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3", "olmoe"])
def test_experts_that_stay_are_multiplied_at_once(architecture: str, tmp_path: Path) -> None:
    """Some stay, and the others are computed as they arrive."""
    model = save_checkpoint(architecture, tmp_path / "model")
    budget = ["hw.device_memory=1.6MB", "hw.host_memory=20MB", "pipeline.n_batches=3", "pipeline.batch_size=2"]
    run_on(DelayedDevice(1), tmp_path, model, *budget, "pipeline.expert_slots=2", "pipeline.prefill_tokens=32")
    assert read_results(tmp_path) == plain_generate(model, REQUESTS)
    spans = [line for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "span"]
    computed = [span for span in spans if (span["lane"], span["kind"]) == ("compute", "expert")]
    together = [span for span in computed if "parts" in span]
    assert together and len(together) < len(computed)
    assert all(span["tokens"] == sum(tokens for _, tokens in span["parts"]) for span in together)
    assert any(span["lane"] == "link" for span in spans)
