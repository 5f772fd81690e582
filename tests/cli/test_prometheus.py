"""A run with `prometheus=PORT` is scraped while it goes on, and gives the port back."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.architectures import save_checkpoint
from tests.cli.process import PATIENCE, only_sentence, run_python, short_requests, start_klotski

Scrape = dict[str, dict[str, float]]
"""Values by name, and by lane or tier; those without one go by the empty name."""

LOADED = """
import sys
from klotski.app import main
status = main()
print(sorted({"torch", "prometheus_client"} & sys.modules.keys()))
sys.exit(status)
"""
PREDICTED = ["model=mixtral", "hw=rtx4090", "history=none", "workload.limit=8", "workload.max_tokens=16"]


@pytest.fixture
def port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number


def scrapes(port: int, process: subprocess.Popen[str]) -> Iterator[tuple[dict[str, str], Scrape]]:
    """What a process says of its run, and of what it has done, again and again until it has ended."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < deadline, "it hangs"
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
                yield parse(answer.read().decode())
        except OSError:  # it has not begun to listen, or has just ended
            pass
        time.sleep(0.01)


def parse(text: str) -> tuple[dict[str, str], Scrape]:
    run: dict[str, str] = {}
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "klotski_run_info":
                run = labels
            key = labels.get("lane", labels.get("tier", ""))
            found.setdefault(sample.name.removeprefix("klotski_"), {})[key] = sample.value
            assert not sample.name.startswith("klotski_") or labels["mode"] == run["mode"]
    return run, found


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def assert_within(scrape: Scrape, metrics: dict[str, Any]) -> None:
    """What was scraped had been done when the run ended."""
    ends = {
        "lane_busy_seconds_total": metrics["lane_busy_seconds"],
        "lane_bytes_total": {"compute": 0} | metrics["bytes_moved"],
        "bubble_seconds_total": {"": metrics["bubble_fraction"] * metrics["elapsed_time"] * (1 + 1e-9)},
        "sweep_seconds_total": {"": metrics["elapsed_time"]},
        "sweeps_total": {"": metrics["num_sweeps"]},
        "requests_total": {"": metrics["num_requests"]},
        "prompt_tokens_total": {"": metrics["prompt_tokens"]},
        "output_tokens_total": {"": metrics["output_tokens"]},
        "prefetch_requested_total": {"": metrics["prefetch"]["requested"]},
        "prefetch_used_total": {"": metrics["prefetch"]["used"]},
        "peak_memory_bytes": metrics["peak_memory"],
    }
    for name, most in ends.items():
        for key, value in scrape[name].items():
            assert value <= most[key], (name, key)


def test_a_run_is_scraped_while_it_goes_on(port: int, tmp_path: Path) -> None:
    settings = [
        "model=custom",
        f"model.path={save_checkpoint('mixtral', tmp_path / 'model')}",
        "hw.device_memory=3MB",
        "hw.runtime_memory=0",
        "placement=none",
        "pipeline.batch_size=2",
        "workload=jsonl",
        f"workload.path={short_requests(tmp_path / 'requests.jsonl', 60)}",
    ]
    with start_klotski(*settings, f"prometheus={port}", "hydra.run.dir=run", cwd=tmp_path) as process:
        seen = list(scrapes(port, process))
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in out + err) == (0, False), err
    assert f"metrics are on http://127.0.0.1:{port}/metrics" in err
    assert all(run == {"model": "custom", "hw": "auto", "pipeline": "klotski", "mode": "measured"} for run, _ in seen)
    metrics = metrics_of(tmp_path / "run")
    swept = [scrape for _, scrape in seen if scrape["sweeps_total"][""]]
    tokens = [scrape["output_tokens_total"][""] for scrape in swept]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 3, "the run went on from scrape to scrape"
    assert swept[-1]["lane_bytes_total"]["disk"] > 0
    assert swept[-1]["process_resident_memory_bytes"][""] > 10**8
    for scrape in swept:
        assert_within(scrape, metrics)


def test_a_predicted_run_says_so_in_every_sample(port: int, tmp_path: Path) -> None:
    with start_klotski(*PREDICTED, f"prometheus={port}", "hydra.run.dir=run", cwd=tmp_path) as process:
        seen = list(scrapes(port, process))
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert seen
    for run, scrape in seen:
        assert run == {"model": "mixtral", "hw": "rtx4090", "pipeline": "klotski", "mode": "predicted"}
        if scrape["sweeps_total"][""]:
            assert_within(scrape, metrics_of(tmp_path / "run"))


def test_the_runs_of_a_sweep_share_a_port_one_after_the_other(port: int, tmp_path: Path) -> None:
    sweep = ["-m", "pipeline=sequential,klotski", "hydra.sweep.dir=sweep"]
    with start_klotski(*sweep, *PREDICTED, f"prometheus={port}", cwd=tmp_path) as process:
        seen = {run["pipeline"] for run, _ in scrapes(port, process)}
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert seen == {"sequential", "klotski"}
    assert [metrics_of(tmp_path / "sweep" / str(job))["status"] for job in range(2)] == ["ok", "ok"]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        finished = run_python("-c", LOADED, f"prometheus={port}", "hydra.run.dir=run", cwd=tmp_path)
    sentence = only_sentence(finished)
    assert sentence.startswith(f"prometheus={port} is not a port that can be listened on: Address already in use; set ")
    assert finished.out.splitlines()[-1] == "['prometheus_client']", "and no torch"
    assert metrics_of(tmp_path / "run")["error"] == sentence


def test_a_run_that_is_not_to_be_scraped_does_not_load_what_it_takes(tmp_path: Path) -> None:
    finished = run_python("-c", LOADED, *PREDICTED, "hydra.run.dir=run", cwd=tmp_path)
    assert (finished.status, finished.out.splitlines()[-1]) == (0, "[]"), finished.err
