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
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from transformers import DynamicCache

from klotski.model.cache import CacheRows, KeysKeptError
from klotski.model.experts import ExpertsCall
from klotski.model.handover import Handover

__all__ = ["SLICE", "cut_last_layer", "cut_layer", "cut_norm"]

SLICE = 1024  # tokens, or one sequence that has more
NORMED = 1 << 18  # numbers that a norm works on at a time: a megabyte of its float32


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
        if len(slices) < 2 or cache is None or not getattr(cache.layers[index], "can_be_cut", False):
            return whole(hidden, *args, **kwargs)
        taken = [take(((hidden, *args), kwargs), rows, count) for rows in slices]
        return join(run_slices([_Slice(partial(whole, *part, **named)) for part, named in taken]), hidden)

    layer.forward = forward


def cut_last_layer(layer: nn.Module, *, in_slices: bool) -> None:
    """Let the last decoder layer compute what somebody will look at: of a prompt, the last token.

    Of the tokens before it only keys and values will be wanted; with those in the cache, the layer's
    code is left. Its output has one token for each sequence. `in_slices`: see `cut_layer`.
    """
    whole = layer.forward
    if in_slices:
        cut_layer(-1, layer)
    compute = layer.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        (count, tokens), cache = hidden.shape[:2], kwargs.get("past_key_values")
        if tokens == 1 or cache is None:
            return compute(hidden, *args, **kwargs)
        before, last = slice(0, tokens - 1), slice(tokens - 1, tokens)
        for rows in cut_rows(count, tokens) if in_slices else [slice(0, count)]:
            part = take(take_tokens((hidden, *args), before, tokens), rows, count)
            named = take(take_tokens(kwargs, before, tokens), rows, count)
            with suppress(KeysKeptError):
                whole(*part, **named | {"past_key_values": CacheRows(cache, rows, count, keys_only=True)})
        return compute(*take_tokens((hidden, *args), last, tokens), **take_tokens(kwargs, last, tokens))

    layer.forward = forward


def cut_norm(norm: nn.Module) -> None:
    """Let a norm of tokens, each for itself, work on so many at a time that they stay in a core's own cache."""
    whole = norm.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        pieces = torch.split(tokens, max(1, NORMED // tokens.shape[1]))
        return whole(hidden) if len(pieces) < 2 else torch.cat([whole(piece) for piece in pieces]).view_as(hidden)

    norm.forward = forward


def run_slices(slices: Sequence[_Slice]) -> list[Any]:
    """The layer's output over each slice, its experts asked once."""
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
    return [each.output for each in slices]


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


def take_tokens(value: Any, part: slice, tokens: int) -> Any:
    """What concerns these tokens out of what concerns so many of each sequence; a mask has a row for each."""
    if isinstance(value, torch.Tensor):
        dim = {1: 0, 4: 2}.get(value.dim(), 1)
        return value.narrow(dim, part.start, part.stop - part.start) if value.shape[dim] == tokens else value
    if isinstance(value, tuple | list):
        return type(value)(take_tokens(each, part, tokens) for each in value)
    if isinstance(value, dict):
        return {name: take_tokens(each, part, tokens) for name, each in value.items()}
    return value


def join(outputs: Sequence[Any], hidden: torch.Tensor) -> Any:
    """The layer's output of those of all slices, in the memory of its input, which nobody will look at again.

    Fresh memory of that size would take longer than the copy.
    """
    if isinstance(outputs[0], tuple):
        assert not any(each is not None for output in outputs for each in output[1:]), "only tokens can be joined"
        return (join([output[0] for output in outputs], hidden), *outputs[0][1:])
    return torch.cat(list(outputs), out=hidden)
