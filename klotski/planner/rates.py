"""What the machine does in a second, as far as a plan is concerned."""

from typing import NamedTuple

__all__ = ["NOMINAL", "Rates"]


class Rates(NamedTuple):
    """Bytes a second at which blocks come from disk, operations a second at which experts are multiplied, and why."""

    disk: float
    compute: float
    reason: str


NOMINAL = Rates(1.6e9, 4e11, "nominal: two cores and an NVMe drive")
"""Where nothing is known. What rates decide is a ratio, bytes moved for arithmetic done, and a plan that is best at
this one is near the best at others."""
