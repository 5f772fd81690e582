"""The sweep, the policy behind it, and the group of batches that it drives."""

from klotski.pipeline.group import run_group
from klotski.pipeline.policy import Policy
from klotski.pipeline.predictor import Popularity, Predictor
from klotski.pipeline.sweep import Batch, PrefetchCount, Sweeper, Worker

__all__ = [
    "Batch",
    "Policy",
    "Popularity",
    "Predictor",
    "PrefetchCount",
    "Sweeper",
    "Worker",
    "run_group",
]
