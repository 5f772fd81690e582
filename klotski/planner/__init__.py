"""What the run is decided to be before it starts."""

from klotski.planner.facts import Demand, ModelFacts
from klotski.planner.hardware import free_memory
from klotski.planner.plan import Plan, make_plan

__all__ = ["Demand", "ModelFacts", "Plan", "free_memory", "make_plan"]
