"""A batch's prompts go through a layer in slices: so many sequences that their tokens stay in the processor's cache.

Between two matrix products a layer's code makes a dozen passes over its tokens. Over 4096 of them at
once these took as long as the products, and their results twice the memory of all that waits. Each
slice is a coroutine inside of the batch's, and runs the layer's own code as far as the experts; when
all of them are there the batch asks its question once, and the slices go on with their answers.

Sequences have nothing to do with each other inside of a layer: slices change nothing but the sizes
of the products. A layer is cut if it keeps its tokens in a `ReservedLayer`; other caches know
nothing of slices.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from transformers import DynamicCache

from klotski.model.cache import CacheRows, ReservedLayer
from klotski.model.experts import ExpertsCall
from klotski.model.handover import Handover

__all__ = ["SLICE", "cut_layer", "cut_norm"]

SLICE = 1024  # tokens, or one sequence that has more


class _Slice(greenlet, Handover):
    """Some of a batch's sequences, on their way through one layer."""

    def __init__(self, forward: Callable[[], Any]) -> None:
        super().__init__()
        self._forward = forward
        self.output: Any = None
        self.calls: Sequence[ExpertsCall] = ()
        self.answers: Sequence[torch.Tensor] = ()

    def run(self) -> None:
        """The coroutine's body."""
        self.output = self._forward()

    def ask(self, calls: Sequence[ExpertsCall]) -> Sequence[torch.Tensor]:
        """Leave the question to the batch."""
        assert self.parent is not None
        self.calls = calls
        self.parent.switch()
        self.calls = ()
        answers, self.answers = self.answers, ()
        return answers


def cut_layer(index: int, layer: nn.Module) -> None:
    """Let a decoder layer run in slices where its batch has more tokens than one of them."""
    whole = layer.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        count, tokens = hidden.shape[:2]
        slices = list(cut_rows(count, tokens))
        cache = kwargs.get("past_key_values")
        if len(slices) < 2 or cache is None or type(cache.layers[index]) is not ReservedLayer:
            return whole(hidden, *args, **kwargs)
        return run_slices(
            [
                _Slice(partial(whole, *take((hidden, *args), rows, count), **take(kwargs, rows, count)))
                for rows in slices
            ]
        )

    layer.forward = forward


def cut_norm(norm: nn.Module) -> None:
    """Let a norm of tokens, each for itself, work on a slice of them at a time."""
    whole = norm.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(hidden.flatten(0, -2), SLICE)
        return whole(hidden) if len(pieces) < 2 else torch.cat([whole(piece) for piece in pieces]).view_as(hidden)

    norm.forward = forward


def run_slices(slices: Sequence[_Slice]) -> Any:
    """The layer's output over all slices, its experts asked once."""
    batch = getcurrent()
    assert isinstance(batch, Handover), "a streamed model runs inside a batch's coroutine only"
    for each in slices:
        each.switch()
    if calls := [call for each in slices for call in each.calls]:
        answers = iter(batch.ask(calls))
        for each in slices:
            each.answers = [next(answers) for _ in each.calls]
            each.switch()
    assert all(each.dead for each in slices), "a layer asked for experts twice"
    return join([each.output for each in slices])


def cut_rows(count: int, tokens: int) -> Iterator[slice]:
    """Ranges of `count` sequences of so many tokens each."""
    size = max(1, SLICE // tokens)
    yield from (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def take(value: Any, rows: slice, count: int) -> Any:
    """What concerns these sequences out of what concerns `count`: of tensors, rows; of all else, the same."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() > 1 and len(value) == count else value
    if isinstance(value, tuple | list):
        return type(value)(take(each, rows, count) for each in value)
    if isinstance(value, dict):
        return {name: take(each, rows, count) for name, each in value.items()}
    return CacheRows(value, rows, count) if isinstance(value, DynamicCache) else value


def join(outputs: Sequence[Any]) -> Any:
    """One output of those of all slices; see `take`."""
    if isinstance(outputs[0], tuple):
        return tuple(map(join, zip(*outputs, strict=True)))
    return torch.cat(list(outputs)) if isinstance(outputs[0], torch.Tensor) else outputs[0]
