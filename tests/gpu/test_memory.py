"""Whatever the workload: a run stays within the budget, of which the card's allocator gives no more."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.card import Card
from tests.engine import run_engine
from tests.gpu.conftest import HAS_GPU
from tests.tiers.schedules import FAST_CORES

LARGER = 16 if HAS_GPU else 1  # than on threads: a GPU's allocator takes 20 MB where it is asked for one


class Workload(NamedTuple):
    """A run of the tiny model. `budget`, `below`: bytes of the card's memory, and of CPU memory."""

    requests: int
    tokens_in: int
    tokens_out: int
    budget: int
    below: int
    kv_cache: str
    placement: str
    misses: str


WORKLOADS = st.builds(
    Workload,
    requests=st.integers(1, 12 * LARGER),
    tokens_in=st.integers(1, 48 * LARGER),
    tokens_out=st.integers(1, 5),
    budget=st.integers(8 * LARGER, 20 * LARGER).map(lambda megabytes: megabytes * 10**6),
    below=st.sampled_from([20_000_000 * LARGER, 60_000_000 * LARGER]),
    kv_cache=st.sampled_from(["device", "host", "auto"]),
    placement=st.sampled_from(["none", "greedy", "lfu"]),
    misses=st.sampled_from(["move", "cheapest"]),
)


@settings(
    max_examples=200 if HAS_GPU else 4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not HAS_GPU,
)
@given(workload=WORKLOADS)
def test_no_workload_takes_more_than_was_granted(
    new_card: Callable[[], AbstractContextManager[object]], workload: Workload
) -> None:
    with TemporaryDirectory() as name, new_card() as card:
        run_engine(
            Path(name),
            "model=tiny",
            "model.load_format=dummy",
            "workload=synthetic",
            "history=none",
            f"workload.num_requests={workload.requests}",
            f"workload.input_tokens={workload.tokens_in}",
            f"workload.output_tokens={workload.tokens_out}",
            f"hw.device_memory={workload.budget}B",
            "hw.runtime_memory=0",
            f"hw.host_memory={workload.below}B",
            f"placement={workload.placement}",
            f"placement.kv_cache={workload.kv_cache}",
            f"pipeline.misses={workload.misses}",
            *FAST_CORES,
        )
        metrics = json.loads((Path(name) / "metrics.json").read_text())
        assert metrics["num_requests"] == workload.requests
        assert metrics["peak_memory"]["device"] <= workload.budget
        assert not isinstance(card, Card) or card.limit == workload.budget
