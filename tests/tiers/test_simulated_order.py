"""On three tiers, too, the simulator does what the run did, in its order: with the run's own routing."""

from pathlib import Path
from typing import Any

import pytest

from tests.architectures import save_checkpoint
from tests.engine import read_lines, run_engine
from tests.tiers.delayed import DelayedDevice
from tests.tiers.schedules import GPU
from tests.tiers.test_three_tiers import run_on

MEMORY = ["hw.device_memory=1.6MB", "hw.host_memory=30MB", "placement.kv_cache=host"]
PLAN = ["pipeline.n_batches=3", "pipeline.batch_size=2", "pipeline.prefill_tokens=16", "pipeline.expert_slots=3"]
# What has arrived, and what has been read, is a matter of luck on late lanes; all other orders are the policy's.
STRATEGY = ["pipeline.hot_experts=2", "pipeline.order=hot_first", "history=none"]


def operations(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What each lane did, in order."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for event in read_lines(run / "events.jsonl"):
        if event["event"] == "span":
            what = event["kind"], event["layer"], event.get("expert", -1), event.get("batch", -1)
            found.setdefault(event["lane"], []).append((*what, event.get("parts")))
    return found


@pytest.mark.parametrize("attention", ["device", "host"])
def test_every_lane_does_the_same_in_the_same_order(attention: str, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    settings = [*MEMORY, *PLAN, *STRATEGY, f"placement.attention={attention}"]
    run = tmp_path / "run"
    run.mkdir()
    run_on(DelayedDevice(3), run, model, *settings, "record_routing=true")
    workload = ["workload=jsonl", f"workload.path={run / 'requests.jsonl'}"]
    predicted = run_engine(
        tmp_path / "predicted",
        "model=custom",
        f"model.path={model}",
        *workload,
        *GPU,
        *settings,
        "executor=simulate",
        f"executor.routing={run}",
    )
    measured, simulated = operations(run), operations(predicted)
    for lanes in (measured, simulated):
        lanes.pop("disk")  # by which everything came there, once
    assert measured.keys() >= {"compute", "link", "kv_out"}
    assert len(measured["compute"]) > 100
    assert any(parts for *_, parts in measured["compute"]), "some experts are computed at once"
    assert simulated == measured
