"""What the run is decided to be before it starts."""

from klotski.planner.facts import Demand, ModelFacts
from klotski.planner.hardware import free_memory, peak_memory, process_memory, runtime_memory
from klotski.planner.plan import Budget, Plan, Wishes, make_plan

__all__ = [
    "Budget",
    "Demand",
    "ModelFacts",
    "Plan",
    "Wishes",
    "free_memory",
    "make_plan",
    "peak_memory",
    "process_memory",
    "runtime_memory",
]
