"""Weights made up on the spot, in the shapes of a model of which only the config is at hand.

No file is read, so that a machine's arithmetic can be measured without its disk.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch

from klotski.core import Block
from klotski.weights.layout import ALIGNMENT, BlockLayout, ParameterSpec, whole
from klotski.weights.memory import whole_pages

__all__ = ["DummyReader", "lay_out_dummy"]

PATTERN = 1 << 20  # random numbers, which repeat: drawing billions would take minutes
SCALE = 0.02  # their standard deviation, as of most models before they are trained


class Made:
    """A block that is there already."""

    def wait(self) -> None:
        """Return at once."""


class DummyReader:
    """Fills slots as a `Reader` does, with random matrices, norms of one and biases of zero."""

    def __init__(self) -> None:
        self._numbers = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)) * SCALE

    def start(self, layout: BlockLayout, slot: torch.Tensor) -> Made:
        """Fill a slot (uint8, at least `layout.slot_bytes`)."""
        for name, view in layout.views_of(slot).items():
            if view.ndim < 2:
                view.fill_(0 if name.endswith("bias") or not view.is_floating_point() else 1)
                continue
            for piece in torch.split(view.view(-1), PATTERN):
                piece.copy_(self._numbers[: len(piece)])
        return Made()

    def read(self, layout: BlockLayout, slot: torch.Tensor) -> None:
        """Fill a slot; see `start`."""
        self.start(layout, slot)

    def close(self) -> None:
        """There is nothing to close."""


def lay_out_dummy(block: Block, specs: Sequence[ParameterSpec]) -> BlockLayout:
    """The layout of a block that lies in no file."""
    sizes = [whole(prod(spec.shape) * spec.dtype.itemsize, ALIGNMENT) for spec in specs]
    offsets = accumulate(sizes, initial=0)
    views = {spec.name: (offset, spec) for offset, spec in zip(offsets, specs, strict=False)}
    return BlockLayout(block, views, (), 0, whole_pages(sum(sizes)))
