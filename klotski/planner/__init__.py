"""What the run is decided to be before it starts."""

from klotski.planner.calibration import Calibration
from klotski.planner.costs import CROWDED, Costs
from klotski.planner.demand import Demand
from klotski.planner.explain import explain
from klotski.planner.facts import ModelFacts
from klotski.planner.hardware import (
    find_gpus,
    free_memory,
    granted_cores,
    peak_memory,
    process_budget,
    process_memory,
    reset_peak_memory,
    runtime_memory,
)
from klotski.planner.placement import first_blocks, placement_order
from klotski.planner.plan import Plan, make_plan
from klotski.planner.rates import NOMINAL, Rates
from klotski.planner.table import show_plan
from klotski.planner.terms import Budget, Terms, Wishes

__all__ = [
    "CROWDED",
    "NOMINAL",
    "Budget",
    "Calibration",
    "Costs",
    "Demand",
    "ModelFacts",
    "Plan",
    "Rates",
    "Terms",
    "Wishes",
    "explain",
    "find_gpus",
    "first_blocks",
    "free_memory",
    "granted_cores",
    "make_plan",
    "peak_memory",
    "placement_order",
    "process_budget",
    "process_memory",
    "reset_peak_memory",
    "runtime_memory",
    "show_plan",
]
