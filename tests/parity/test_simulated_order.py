"""The simulator is the pipeline: with a run's own routing it does the same things in the same order."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import read_lines, run_engine

MEMORY = ("hw.device_memory=12MB", "hw.runtime_memory=0")
GROUP = ("pipeline.n_batches=2", "pipeline.batch_size=3", "workload.limit=9", "workload.max_tokens=6")
PLAN = ("pipeline.prefill_tokens=200", "pipeline.expert_slots=4", "pipeline.hot_experts=3")


def operations(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What each lane did, in order."""
    found: dict[str, list[tuple[Any, ...]]] = {"disk": [], "compute": []}
    for event in read_lines(run / "events.jsonl"):
        if event["event"] == "span":
            what = (event["kind"], event["layer"], event.get("expert", -1), event.get("batch", -1))
            found[event["lane"]].append((*what, event.get("tokens", 0)) if event["lane"] == "compute" else what)
    return found


# What arrives first depends on the disk; all other orders are the policy's alone.
ARRIVING = ("klotski", "cpu_experts")


@pytest.mark.parametrize("pipeline", ["klotski", "overlap", "flexgen", "sequential", "expert_cache", "cpu_experts"])
def test_with_a_runs_own_routing_every_lane_does_the_same_in_the_same_order(tmp_path: Path, pipeline: str) -> None:
    settings = [*MEMORY, *GROUP, *PLAN, f"pipeline={pipeline}", "history=none"]
    settings += ["pipeline.order=hot_first"] if pipeline in ARRIVING else []
    run = run_engine(tmp_path / "run", *settings, "record_routing=true")
    predicted = run_engine(tmp_path / "predicted", *settings, "executor=simulate", f"executor.routing={run}")
    measured, simulated = operations(run), operations(predicted)
    assert len(measured["compute"]) > 100
    assert simulated["compute"] == measured["compute"]
    assert simulated["disk"] == measured["disk"]
