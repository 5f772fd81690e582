"""What would a model do on that machine? Answered where neither is at hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from klotski.assets import SHAPES
from tests.cli.process import run_klotski


def predict(*overrides: str, cwd: Path) -> tuple[str, dict[str, Any]]:
    finished = run_klotski(*overrides, "hydra.run.dir=run", cwd=cwd)
    assert (finished.status, finished.err.count("Traceback")) == (0, 0), finished.err
    metrics: dict[str, Any] = json.loads((cwd / "run" / "metrics.json").read_text())
    assert (metrics["status"], metrics["mode"]) == ("ok", "predicted")
    return finished.out + finished.err, metrics


def test_a_model_and_a_gpu_that_are_not_here_are_predicted(tmp_path: Path) -> None:
    said, metrics = predict("model=mixtral", "hw=rtx4090", "pipeline=klotski", cwd=tmp_path)
    assert "predicted, not run: hw=rtx4090 is another machine than this one, which has no GeForce RTX 4090" in said
    assert "the weights of mistralai/Mixtral-8x7B-v0.1 are not here either" in said
    assert metrics["reason"] in said
    assert metrics["bound"]["resource"] == "link"
    assert 0 < metrics["bound"]["efficiency"] <= 1
    assert "disk" not in metrics["bytes_moved"], "what stays was loaded before the first sweep"
    assert metrics["output_tokens"] == 32 * 64
    assert f"{metrics['output_tokens_per_second']:.1f} tokens/s" in said
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert {event["args"]["name"] for event in trace["traceEvents"] if event.get("name") == "thread_name"} >= {
        "compute",
        "link",
    }
    assert not (tmp_path / "run" / "results.jsonl").read_text()


def test_without_weights_a_run_on_this_machine_is_predicted_and_told_how_to_be_run(tmp_path: Path) -> None:
    said, metrics = predict("model=mixtral", "workload.limit=2", "workload.max_tokens=2", cwd=tmp_path)
    assert "executor=torch fetches and runs them" in said
    assert metrics["bytes_moved"].keys() == {"disk"}


def test_the_same_run_is_predicted_to_the_last_digit(tmp_path: Path) -> None:
    times = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        metrics = predict("executor=simulate", "workload.max_tokens=8", "hw.runtime_memory=200MB", cwd=tmp_path / name)[
            1
        ]
        times.append((metrics["elapsed_time"], metrics["lane_busy_seconds"]))
    assert times[0] == times[1]


def test_keys_and_values_below_a_gpu_move_on_lanes_of_their_own(tmp_path: Path) -> None:
    lengths = ["workload=synthetic", "workload.num_requests=8", "workload.input_tokens=64", "workload.output_tokens=3"]
    group = ["pipeline.n_batches=2", "pipeline.batch_size=4", "placement.kv_cache=host", "placement.attention=device"]
    said, metrics = predict("model=mixtral", "hw=rtx3090", *lengths, *group, cwd=tmp_path)
    per_token = 2 * 8 * 128 * 2 * 32  # key and value of 8 heads of 128 numbers of two bytes, in 32 layers
    assert metrics["bytes_moved"]["kv_out"] == 8 * 66 * per_token
    assert metrics["bytes_moved"]["kv_in"] == 8 * (64 + 65) * per_token
    assert metrics["peak_memory"]["host"] == sum(metrics["plan"]["host_memory"].values()) > 70e9
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    lanes = {event["args"]["name"] for event in trace["traceEvents"] if event.get("name") == "thread_name"}
    assert lanes >= {"kv_in", "kv_out"}
    assert "are in CPU memory" in said


def test_what_other_engines_do_is_predicted_and_not_run(tmp_path: Path) -> None:
    finished = run_klotski("pipeline.products=batch", "hydra.run.dir=run", cwd=tmp_path)
    assert finished.status == 1
    assert "pipeline.products=batch is how other engines multiply" in finished.err
    predict("pipeline.products=batch", "executor=simulate", "workload.limit=2", cwd=tmp_path)


def test_a_table_of_the_paper_ends_beside_what_was_published(tmp_path: Path) -> None:
    few = ["paper=published_8x7b_rtx3090,8x7b_rtx3090", "pipeline=klotski", "pipeline.batch_size=4"]
    finished = run_klotski("-m", "experiment=paper_fig10", *few, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert finished.status == 0, finished.err
    with (tmp_path / "sweep" / "published.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    published, theirs, ours = (
        float(line[name]) for name in ("published", "predicted_with_its_habits", "predicted_with_ours")
    )
    assert published / 1.5 < theirs < published * 1.5 < ours
    assert "its habits: 1 predictions" in finished.out


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hw.link_bandwidth=200Gb/s", "hw.link_bandwidth=200Gb/s is in bits"),
        ("hw.batch_overhead=-1ms", "hw.batch_overhead=-1ms is not a time"),
        ("hw.disk_bandwidth=3000GB/s", "hw.disk_bandwidth=3000GB/s is not what a machine has"),
        ("hw.device_memory=auto", "hw.device_memory has no value"),
    ],
)
def test_hardware_that_cannot_be_is_refused_by_its_key(override: str, says: str, tmp_path: Path) -> None:
    finished = run_klotski("model=mixtral", "hw=rtx4090", override, "hydra.run.dir=run", cwd=tmp_path)
    assert finished.status == 1
    assert says in finished.err


@pytest.mark.parametrize("hw", ["hw=rtx4090", "hw=auto"])
def test_a_config_alone_is_enough_to_predict(hw: str, tmp_path: Path) -> None:
    config = SHAPES / "olmoe-1b-7b" / "config.json"
    lengths = ["workload=synthetic", "workload.num_requests=4", "workload.input_tokens=8", "workload.output_tokens=2"]
    memory = ["hw.device_memory=4GB", "hw.runtime_memory=200MB", "history=none"]
    said, metrics = predict("model=custom", f"model.path={config}", hw, *memory, *lengths, cwd=tmp_path)
    assert hw != "hw=auto" or f"predicted, not run: {config} is a config without weights" in said
    assert metrics["output_tokens"] == 8


def test_what_the_command_line_sets_is_said_to_be_set(tmp_path: Path) -> None:
    few = ["workload=synthetic", "workload.num_requests=4", "workload.output_tokens=2", "dry_run=true"]
    options = ["model=olmoe", "hw=rtx4090", "hw.link_bandwidth=50GB/s", *few, "hydra.run.dir=run"]
    finished = run_klotski(*options, cwd=tmp_path)
    assert finished.status == 0, finished.err
    rates = json.loads((tmp_path / "run" / "plan.json").read_text())["rates"]
    assert (rates["link"], rates["reasons"]["link"]) == (5e10, "as set")
    assert rates["reasons"]["disk"] == "of hw=rtx4090"
    assert "within 24GB (of hw=rtx4090)" in finished.err


@pytest.mark.parametrize(("model", "form"), [("gpt_oss_20b", "MXFP4"), ("deepseek_v3", "FP8")])
def test_of_a_checkpoint_that_cannot_be_read_as_it_is_that_is_said(model: str, form: str, tmp_path: Path) -> None:
    few = ["workload=synthetic", "workload.num_requests=2", "workload.output_tokens=2", "hw=h200", "dry_run=true"]
    finished = run_klotski(f"model={model}", *few, "hydra.run.dir=run", cwd=tmp_path)
    assert finished.status == 0, finished.err
    assert f"its checkpoint is in {form}, which cannot be read yet" in " ".join((finished.out + finished.err).split())


def test_predicting_a_model_of_the_package_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from klotski.app import main; main(); "
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    options = ["model=mixtral", "hw=rtx4090", "hydra.run.dir=run", "history=none"]
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["mode"] == "predicted"
