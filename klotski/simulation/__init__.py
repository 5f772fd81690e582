"""A sweep without a model: batches that compute nothing, routers that are drawn, blocks that take their time."""

from klotski.simulation.batch import SyntheticBatch
from klotski.simulation.caches import HostCaches
from klotski.simulation.durations import CoresDurations, Durations
from klotski.simulation.routers import DrawnRouters, RecordedRouters, Routers
from klotski.simulation.supply import Supply
from klotski.simulation.worker import IdleWorker

__all__ = [
    "CoresDurations",
    "DrawnRouters",
    "Durations",
    "HostCaches",
    "IdleWorker",
    "RecordedRouters",
    "Routers",
    "Supply",
    "SyntheticBatch",
]
