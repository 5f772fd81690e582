"""The sweep, the policy behind it, and the group of batches that it drives."""

from klotski.pipeline.contracts import Ahead, Batch, Below, Caches, CachesAtHand, NothingAhead, Worker
from klotski.pipeline.cores_pace import CoresPace
from klotski.pipeline.group import run_group
from klotski.pipeline.policy import MissCosts, Policy
from klotski.pipeline.predictors import Predictor, create_predictor
from klotski.pipeline.routing_table import RoutingTable
from klotski.pipeline.sweep import Sweeper

__all__ = [
    "Ahead",
    "Batch",
    "Below",
    "Caches",
    "CachesAtHand",
    "CoresPace",
    "MissCosts",
    "NothingAhead",
    "Policy",
    "Predictor",
    "RoutingTable",
    "Sweeper",
    "Worker",
    "create_predictor",
    "run_group",
]
