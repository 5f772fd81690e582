"""Whatever a predicted run writes says that it is one, and the same run writes the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine import run_engine

GPU = ("model=mixtral", "hw=rtx4090", "workload.limit=4", "workload.max_tokens=4", "history=none")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_engine(tmp_path_factory.mktemp("predicted") / "run", *GPU)


@pytest.mark.parametrize("name", ["run", "plan", "experts", "metrics"])
def test_every_file_says_so(run: Path, name: str) -> None:
    content: dict[str, Any] = json.loads((run / f"{name}.json").read_text())
    assert content["mode"] == "predicted"


def test_so_does_the_trace_above_its_tracks(run: Path) -> None:
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == ["klotski, predicted"]


def test_a_run_that_is_carried_out_says_that(tmp_path: Path) -> None:
    run = run_engine(tmp_path / "run", "workload.limit=2", "workload.max_tokens=2", "history=none")
    modes = [json.loads((run / f"{name}.json").read_text())["mode"] for name in ("run", "plan", "experts", "metrics")]
    assert modes == ["measured"] * 4


def test_the_same_run_has_the_same_events_to_the_last_byte(run: Path, tmp_path: Path) -> None:
    again = run_engine(tmp_path / "run", *GPU)
    assert (again / "events.jsonl").read_bytes() == (run / "events.jsonl").read_bytes()


def test_cores_that_compute_what_is_missing_are_predicted_to_help_and_by_as_much_as_was_planned(tmp_path: Path) -> None:
    """15 batches of 4 within 24 GB: the link brings less, and never rests."""
    found: dict[str, dict[str, Any]] = {}
    for misses in ("move", "cheapest"):
        run = run_engine(
            tmp_path / misses,
            *("model=mixtral", "hw=h200", "hw.device_memory=24GB", "history=none", "events=false"),
            *("pipeline.n_batches=15", "pipeline.batch_size=4", f"pipeline.misses={misses}", "workload=synthetic"),
            *("workload.num_requests=60", "workload.input_tokens=512", "workload.output_tokens=16"),
        )
        found[misses] = json.loads((run / "metrics.json").read_text())
    move, cheapest = found["move"], found["cheapest"]
    assert cheapest["output_tokens_per_second"] > 1.4 * move["output_tokens_per_second"]
    assert cheapest["bytes_moved"]["link"] < 0.7 * move["bytes_moved"]["link"]
    assert cheapest["lane_busy_seconds"]["link"] > 0.9 * cheapest["elapsed_time"]
    assert cheapest["plan"]["forecast"]["seconds"] == pytest.approx(cheapest["elapsed_time"], rel=0.1)
