"""Who carries a run out."""

from klotski.executors.base import Executor, create

__all__ = ["Executor", "create"]
