"""What a newcomer's first run has to show, on the model and the prompts in the package."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from klotski.assets import PROMPTS, TINY
from klotski.core import SweepReport
from klotski.executors.account import Account
from tests.cli.process import run_klotski
from tests.engine import read_lines, read_results, run_engine
from tests.reference import plain_generate


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command with no overrides but the folder."""
    folder = tmp_path_factory.mktemp("first")
    finished = run_klotski(f"hydra.run.dir={folder}", cwd=folder)
    assert finished.status == 0, finished.err
    return folder


def metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return content


def test_every_prompt_has_a_result_in_text(first_run: Path) -> None:
    results = read_lines(first_run / "results.jsonl")
    assert {line["id"] for line in results} == {line["id"] for line in read_lines(PROMPTS)}
    assert sum(any(word in line["text"] for word in (" the ", " I ", " of ", " and ")) for line in results) > 16
    assert all(line["output_tokens"] == 64 or line["finish_reason"] == "stop" for line in results)


def test_what_counts_as_arithmetic_is_what_each_layer_looks_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 10 tokens for each of 4 sequences, in two pieces, then one token of each at a time."""
    reports: list[SweepReport] = []
    monkeypatch.setattr(Account, "sweep", lambda account, report: reports.append(report))
    lengths = ["workload.num_requests=4", "workload.input_tokens=10", "workload.output_tokens=3"]
    group = ["pipeline.n_batches=1", "pipeline.batch_size=4", "pipeline.prefill_tokens=20"]
    run_engine(tmp_path, "workload=synthetic", *lengths, *group)
    layers = json.loads((TINY / "config.json").read_text())["num_hidden_layers"]
    first, second = sum(range(1, 6)), sum(range(6, 11))
    assert [report.pairs for report in reports] == [
        4 * ((layers - 1) * first + 5),
        4 * ((layers - 1) * second + 10),
        4 * layers * 11,
        4 * layers * 12,
    ]
    assert [report.spared for report in reports] == [16, 16, 0, 0]


def test_it_truly_streams(first_run: Path) -> None:
    found = metrics(first_run)
    assert (found["status"], found["mode"]) == ("ok", "measured")
    granted = found["plan"]["budget"] - found["plan"]["memory"]["runtime"]
    assert granted == 12_000_000
    assert granted < sum(tensor.stat().st_size for tensor in TINY.glob("*.safetensors"))
    assert found["bytes_moved"]["disk"] > 10 * granted
    assert found["peak_memory"]["device"] <= granted


def test_the_process_takes_no_more_than_its_budget(first_run: Path) -> None:
    found = metrics(first_run)
    assert sum(found["plan"]["memory"].values()) <= found["plan"]["budget"]
    assert found["peak_memory"]["process"] <= found["plan"]["budget"]


def test_reading_and_computing_overlap_in_the_trace(first_run: Path) -> None:
    entries = json.loads((first_run / "trace.json").read_text())["traceEvents"]
    tracks = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert len(set(tracks.values())) == len(tracks)
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        if entry["ph"] == "X":
            spans[tracks[entry["tid"]]].append((entry["ts"], entry["ts"] + entry["dur"]))
    assert {"compute", "disk"} <= spans.keys()
    assert shared_time(spans["disk"], spans["compute"]) > 0


def shared_time(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """Time in which both tracks are busy; each is in order and without overlaps of its own."""
    one, other, shared = sorted(one), sorted(other), 0.0
    first = second = 0
    while first < len(one) and second < len(other):
        (begin, end), (start, stop) = one[first], other[second]
        shared += max(0.0, min(end, stop) - max(begin, start))
        if end < stop:
            first += 1
        else:
            second += 1
    return shared


def test_spans_add_up_to_the_lanes_busy_seconds(first_run: Path) -> None:
    busy: dict[str, float] = defaultdict(float)
    events = list(read_lines(first_run / "events.jsonl"))
    begin = min(line["begin"] for line in events if line["event"] == "sweep")
    for line in events:
        if line["event"] == "span" and line["end"] > begin:
            busy[line["lane"]] += line["end"] - line["begin"]
    assert busy == pytest.approx(metrics(first_run)["lane_busy_seconds"], rel=0.01)


def test_greedy_tokens_in_float32_are_those_of_generate(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    requests = [
        {
            "id": line["id"],
            "prompt_token_ids": tokenizer.encode(line["prompt"]),
            "max_tokens": 64,
        }
        for line in read_lines(PROMPTS)
    ]
    run = run_engine(tmp_path / "run", "model.dtype=float32", "hw.device_memory=18MB", "hw.runtime_memory=0")
    assert read_results(run) == plain_generate(TINY, requests, batch_size=8)


def test_tokens_are_the_same_where_prompts_lend_experts_their_memory(tmp_path: Path) -> None:
    """Three batches, two at a time: slots are lent, withdrawn when the third comes in, and lent again."""
    lengths = ["workload.num_requests=12", "workload.input_tokens=200", "workload.output_tokens=5"]
    memory = ["model.dtype=float32", "hw.device_memory=31MB", "hw.runtime_memory=0"]
    group = ["pipeline.n_batches=2", "pipeline.batch_size=4", "pipeline.hot_experts=8"]
    runs = {
        tokens: run_engine(
            tmp_path / str(tokens), "workload=synthetic", *lengths, *memory, *group, f"pipeline.prefill_tokens={tokens}"
        )
        for tokens in (16, 800)
    }
    assert [metrics(run)["plan"]["lent_slots"] for run in runs.values()] == [0, 2]
    assert read_results(runs[800]) == read_results(runs[16])
