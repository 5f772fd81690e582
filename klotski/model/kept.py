"""What a model's layers keep of each sequence, as their own code says: keys and values, windows of them, states.

The model's code is run on the meta device, over one token and over two. Sizes come out and no numbers: that takes a
few milliseconds a layer, and no config's names have to be known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from greenlet import greenlet
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import PreTrainedModel

from klotski.errors import ModelError, first_line
from klotski.model.experts import ExpertsCall
from klotski.model.handover import Handover

__all__ = ["Kept", "find_kept"]

OF_VALUES = (torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.item)


class Kept(NamedTuple):
    """Bytes that one layer keeps of a sequence: for each token, of the last `window` or of all (None), and besides.

    `moves`: whether it may lie in host memory below a GPU, as full attention's keys and values may.
    """

    token_bytes: int
    state_bytes: int
    window: int | None
    moves: bool


def find_kept(model: PreTrainedModel, config: PreTrainedConfig) -> list[Kept]:
    """What each layer of a model on the meta device keeps.

    Raises:
        ModelError: the model's code fails on two tokens.
    """
    try:
        one, two = (run_on_meta(model, DynamicCache(config=config), tokens) for tokens in (1, 2))
    except Exception as error:
        raise ModelError(
            f"{config.model_type}: its code fails on two tokens ({first_line(error)}); check config.json"
        ) from error
    return [compare(*layers) for layers in zip(one.layers, two.layers, strict=True)]


def run_on_meta(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> DynamicCache:
    """Run a model's code over one sequence of `tokens` tokens, which fills the cache."""
    ids = torch.ones((1, tokens), dtype=torch.long, device="meta")
    with torch.device("meta"), torch.no_grad(), _NoValues(), unchanged(model):
        _Probe(model, input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).switch()
    return cache


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Leave no trace of a forward in a model's modules: rotary embeddings keep frequencies, here without values."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def compare(one: Any, two: Any) -> Kept:
    """What a layer keeps, by what it keeps of one token and of two."""
    token_bytes = nbytes(two) - nbytes(one)
    window = one.sliding_window if isinstance(one, DynamicSlidingWindowLayer) else None
    return Kept(token_bytes, nbytes(one) - token_bytes, window, moves=type(one) is DynamicLayer)


def nbytes(layer: Any) -> int:
    """Bytes of all tensors of a cache's layer."""
    values = [
        each for value in vars(layer).values() for each in (value.values() if isinstance(value, dict) else [value])
    ]
    return sum(each.nbytes for each in values if isinstance(each, torch.Tensor) and each.dim())


class _Probe(greenlet, Handover):
    """A batch whose experts give sizes only."""

    def __init__(self, model: PreTrainedModel, **inputs: Any) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs

    def run(self) -> None:
        """The coroutine's body."""
        self._model(**self._inputs)

    def ask(self, calls: Sequence[ExpertsCall]) -> Sequence[torch.Tensor]:
        """An output [T, H] for each call."""
        return [torch.empty_like(call.hidden) for call in calls]


class _NoValues(TorchFunctionMode):
    """Answers zero where code asks for a value, as for the longest position: on the meta device there is none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OF_VALUES and args[0].is_meta:
            return func(torch.zeros((), dtype=args[0].dtype, device="cpu"))
        return func(*args, **(kwargs or {}))
