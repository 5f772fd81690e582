"""A KV cache that takes its memory once.

transformers' own grows by making a longer copy of itself with every token: at a few hundred
sequences, more bytes than the weights of a sweep, in memory that is fresh each time.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from klotski.weights import allocate

__all__ = ["keeps_tokens", "make_cache"]


def make_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """A cache for sequences of up to `capacity` tokens; layers that keep less than all of them stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_tokens(config: PreTrainedConfig) -> bool:
    """Whether every layer remembers tokens, rather than a state that they have left behind.

    A state is computed over a prompt as a whole, padding masked: a prompt in pieces comes out different.
    """
    return all(isinstance(layer, DynamicLayer) for layer in make_cache(config, 0).layers)


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, [B, heads, tokens, D], as views of memory for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory, when the shapes are known."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._memory = [reserve(states, self._capacity) for states in (key_states, value_states)]
        self.keys, self.values = (memory[:, :, :0] for memory in self._memory)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        assert end <= self._capacity, f"{end} tokens came to a cache for {self._capacity}"
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, begin:end] = states
        self.keys, self.values = (memory[:, :, :end] for memory in self._memory)
        return self.keys, self.values


def reserve(states: torch.Tensor, capacity: int) -> torch.Tensor:
    """Memory for `capacity` tokens of what `states` [B, heads, tokens, D] has one or more of."""
    batch, heads, _, width = states.shape
    numbers = batch * heads * capacity * width
    return allocate(numbers * states.itemsize).view(states.dtype).view(batch, heads, capacity, width)
