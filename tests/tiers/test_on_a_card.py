"""The code of a GPU, streams and events and all, on a card of threads: no schedule loses a race on it."""

import gc
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm

from klotski.executors.devices import CpuDevice, CudaDevice, Device
from klotski.executors.torch import TorchExecutor
from klotski.lanes.cuda import CudaClock
from klotski.model import slices
from tests.card import Card
from tests.card.streams import Stream
from tests.engine import read_lines, read_results, run_requests
from tests.reference import plain_generate
from tests.tiers.schedules import GPU, PHASES, REQUESTS, SCHEDULES, Schedule, believe

BUDGET = ["hw.device_memory=2.5MB", "hw.host_memory=4MB", "pipeline.n_batches=2", "pipeline.batch_size=3"]
LARGE = ["hw.device_memory=2GB", "hw.host_memory=20MB", "pipeline.batch_size=9", "pipeline.prefill_tokens=2000"]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


def run_on(card: Card, folder: Path, model: Path, *overrides: str) -> dict[str, Any]:
    """A run on a card that is there; returns its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klotski.executors.create", lambda config: TorchExecutor(CudaDevice()))
        believe(patch)
        metrics = run_requests(folder, model, REQUESTS, *GPU, *overrides)
    assert metrics["peak_memory"]["device"] == card.peak
    return metrics


def check(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    """No race, the same tokens, and no more of the card's memory than was planned."""
    with TemporaryDirectory() as name, Card(seed=schedule.seed) as card:
        metrics = run_on(card, Path(name), model, *schedule.settings())
        assert read_results(Path(name)) == expected
        assert card.limit == 2_500_000
        assert sum(metrics["plan"]["memory"].values()) >= card.peak


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(schedule=SCHEDULES)
def test_no_schedule_loses_a_race(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    check(model, expected, schedule)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(schedule=SCHEDULES)
def test_no_schedule_of_a_hundred_does(model: Path, expected: dict[str, list[int]], schedule: Schedule) -> None:
    check(model, expected, schedule)


@pytest.mark.parametrize("is_on_card", [True, False])
def test_only_the_cores_compute_in_blocks_for_their_caches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_on_card: bool
) -> None:
    """Prompts of 130 tokens: all at once on a card; on a CPU at most two prompts, 64 queries and 50 tokens."""
    requests = [
        {"id": f"r{number}", "prompt_token_ids": [3 + number] * (130 - number % 2), "max_tokens": 2}
        for number in range(9)
    ]
    sequences, queries, normed = set(), set(), set()
    attention, norm = torch.nn.functional.scaled_dot_product_attention, MixtralRMSNorm.forward

    def attend(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        of_all_heads = query.shape[1] * query.shape[2]
        if of_all_heads > 4:  # not of one new token
            sequences.add(query.shape[0])
            queries.add(of_all_heads // 4)
        return attention(query, *args, **kwargs)

    def norm_tokens(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        normed.add(hidden.shape[:-1].numel())
        output: torch.Tensor = norm(module, hidden)
        return output

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(MixtralRMSNorm, "forward", norm_tokens)
    monkeypatch.setattr(slices, "SLICE", 300)
    monkeypatch.setattr(slices, "NORMED", 50 * 64)
    with ExitStack() as stack:
        device: Device = CpuDevice()
        if is_on_card:
            stack.enter_context(Card())
            device = CudaDevice()
        monkeypatch.setattr("klotski.executors.create", lambda config: TorchExecutor(device))
        run_requests(tmp_path, model, requests, "model.dtype=float32", *(GPU if is_on_card else []), *LARGE)
    assert (max(sequences), max(queries), max(normed)) == ((9, 130, 9 * 130) if is_on_card else (2, 64, 50))
    assert read_results(tmp_path) == plain_generate(model, requests, batch_size=9)


def test_hours_into_a_run_times_are_as_exact_as_at_its_begin() -> None:
    with Card():
        clock, stream = CudaClock(time.monotonic, torch.device("cuda", 0)), torch.Stream("cuda")
        marks: list[Any] = [clock.mark(stream) for _ in range(1000)]
        stream.synchronize()
        begin = marks[0]._time
        for minute, mark in enumerate(marks):
            mark._time = begin + 60.0001 * minute
        times = [clock.time(mark) for mark in marks]
    assert all(abs(later - earlier - 60.0001) < 1e-5 for earlier, later in pairwise(times))
    assert abs(times[-1] - times[0] - 999 * 60.0001) < 1e-2


def test_lanes_that_did_not_wait_for_each_other_would_lose_races(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "wait_event", lambda stream, event: None)
    card = Card()
    with pytest.raises(AssertionError, match="races"), card:
        run_on(card, tmp_path, model, *BUDGET, "placement.kv_cache=host", "placement.attention=device")
    assert any("attention on stream" in race and "copy_" in race for race in card.races)


def test_a_run_has_the_memory_that_the_one_before_it_had(model: Path, tmp_path: Path) -> None:
    """A sweep's jobs are runs of one process."""
    with Card(memory=2_600_000) as card:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            run_on(card, tmp_path / name, model, *BUDGET)


def test_memory_is_pinned_before_the_first_sweep_and_given_back_after_the_last(model: Path, tmp_path: Path) -> None:
    """The driver is slow at it, and keeps what it has pinned from the system."""
    pinned: list[int] = []
    with Card() as card, pytest.MonkeyPatch.context() as patch:
        register = card._register

        def count(address: int, nbytes: int, flags: int) -> int:
            assert threading.current_thread() is threading.main_thread()
            assert not (tmp_path / "results.jsonl").read_text(), "before any result"
            pinned.append(nbytes)
            return register(address, nbytes, flags)

        patch.setattr(card, "_register", count)
        metrics = run_on(card, tmp_path, model, *BUDGET, "placement.kv_cache=host")
        gc.collect()
        assert not card.registered
    plan = metrics["plan"]
    assert plan["kv_places"] == plan["n_batches"] < len(REQUESTS) / plan["batch_size"], "places are used again"
    assert plan["host_memory"]["kv_cache"] in pinned
    assert len(pinned) == 3, "of blocks, of the window, of keys and values"
    assert sum(pinned) == metrics["peak_memory"]["host"]


def test_where_memory_cannot_be_pinned_copies_wait_and_tokens_are_the_same(
    model: Path, expected: dict[str, list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Card(can_pin=False) as card:
        run_on(card, tmp_path, model, *BUDGET, "placement.kv_cache=host", "placement.attention=device")
    assert read_results(tmp_path) == expected
    assert caplog.text.count("could not be pinned") == 1


def test_experts_that_stay_are_multiplied_at_once(model: Path, tmp_path: Path) -> None:
    """In bfloat16, which a card has kernels for."""
    with Card() as card:
        budget = ["hw.device_memory=1.2MB", "hw.host_memory=20MB", "pipeline.n_batches=3", "pipeline.batch_size=2"]
        run_on(card, tmp_path, model, *budget, "model.dtype=bfloat16", "pipeline.expert_slots=2")
    spans = [line for line in read_lines(tmp_path / "events.jsonl") if line["event"] == "span"]
    assert any("parts" in span for span in spans)
    assert any(span["lane"] == "link" for span in spans)
