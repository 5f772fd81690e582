"""The ways in which runs over three tiers are arranged at random, and what they are given to do."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import Phase
from hypothesis import strategies as st

from tests.parity.test_architectures import unequal_requests

__all__ = ["GPU", "PHASES", "REQUESTS", "SCHEDULES", "Schedule"]

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

    def settings(self) -> list[str]:
        """Its overrides."""
        return [
            *self.strategy,
            "hw.device_memory=2.5MB",
            f"hw.host_memory={self.host_memory}",
            f"placement={self.placement}",
            f"placement.kv_cache={self.kv_cache}",
            f"placement.attention={self.attention}",
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
)
