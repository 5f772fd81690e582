"""The ways in which runs over three tiers are arranged at random, and what they are given to do."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import Phase
from hypothesis import strategies as st

from tests.parity.test_architectures import unequal_requests

__all__ = ["FAST_CORES", "GPU", "PHASES", "REQUESTS", "SCHEDULES", "Schedule", "believe"]

REQUESTS = unequal_requests(9)
GPU = ["hw=rtx4090", "hw.runtime_memory=0"]  # whose speeds the plan goes by
# Strategies, as in the paper and as others have them.
STRATEGIES = [
    ["pipeline.prefetch=hot", "pipeline.on_demand=eager", "pipeline.order=arrival"],
    ["pipeline.prefetch=layer", "pipeline.on_demand=eager", "pipeline.order=hot_first"],
    ["pipeline.prefetch=none", "pipeline.on_demand=eager", "pipeline.order=index"],
    ["pipeline.prefetch=none", "pipeline.on_demand=lazy", "pipeline.order=index"],
]
# Such cores compute even the smallest experts sooner than they are moved, for a run that does not learn otherwise.
FAST_CORES = [
    "hw.host_compute_rate=1000TFLOP/s",
    "hw.host_product_bandwidth=1000GB/s",
    "hw.expert_overhead=0.1us",
    "hw.batch_overhead=0.1us",
    "hw.operation_overhead=0.1us",
]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def believe(patch: pytest.MonkeyPatch) -> None:
    """Let runs take the cores to be as fast as they were told, whatever these do."""
    patch.setattr("klotski.pipeline.cores_pace.LATELY", 1e12)


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
    misses: str

    def settings(self) -> list[str]:
        """Its overrides."""
        return [
            *self.strategy,
            "hw.device_memory=2.5MB",
            f"hw.host_memory={self.host_memory}",
            f"placement={self.placement}",
            f"placement.kv_cache={self.kv_cache}",
            f"placement.attention={self.attention}",
            f"pipeline.misses={self.misses}",
            *(FAST_CORES if self.misses == "cheapest" else []),
            f"pipeline.n_batches={self.n_batches}",
            f"pipeline.batch_size={self.batch_size}",
            f"pipeline.prefill_tokens={self.prefill_tokens}",
        ]


SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(STRATEGIES),
    n_batches=st.sampled_from([1, 2, 4]),
    batch_size=st.sampled_from([1, 2, 3]),
    prefill_tokens=st.sampled_from(["1", "9", "100", "auto"]),
    placement=st.sampled_from(["none", "greedy", "lfu"]),
    kv_cache=st.sampled_from(["device", "host"]),
    attention=st.sampled_from(["device", "host"]),
    host_memory=st.sampled_from(["3MB", "4MB", "30MB"]),
    misses=st.sampled_from(["move", "cheapest"]),
)
