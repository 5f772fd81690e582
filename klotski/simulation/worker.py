"""Nobody at the bench."""

from collections.abc import Sequence

from klotski.pipeline import Batch

__all__ = ["IdleWorker"]


class IdleWorker:
    """Does nothing for any operation; see `pipeline.Worker`."""

    def enter(self, layer: int) -> None:
        """Nothing."""

    def gather(self, layer: int, group: Sequence[Batch], below: Sequence[int]) -> None:
        """Nothing."""

    def compute(self, layer: int, expert: int) -> None:
        """Nothing."""

    def compute_together(self, layer: int, experts: Sequence[int]) -> None:
        """Nothing."""

    def compute_below(self, layer: int, expert: int) -> None:
        """Nothing."""

    def answer(self, layer: int) -> None:
        """Nothing."""

    def combine(self, layer: int) -> None:
        """Nothing."""

    def score(self, batches: Sequence[Batch]) -> None:
        """Nothing."""
