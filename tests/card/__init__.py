"""A card made of threads: what this project uses of CUDA, on cores, and stricter than a card would be.

With it the code for GPUs runs where there is none, unchanged: tensors that say they are on `cuda:0`, streams
that work through what is queued on them while the host runs ahead, events, pinned memory, a limit of memory.
See `Card` for what it finds. What it cannot show is speed, and what a driver does otherwise than it says.
"""

from tests.card.card import Card

__all__ = ["Card"]
