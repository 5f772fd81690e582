"""A KV cache that takes its memory once.

transformers' own grows by making a longer copy of itself with every token: at a few hundred
sequences, more bytes than the weights of a sweep, in memory that is fresh each time.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from klotski.weights import allocate

__all__ = ["CacheRows", "KeysKeptError", "ReservedLayer", "keeps_all_tokens", "keeps_tokens", "make_cache"]


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


def keeps_all_tokens(config: PreTrainedConfig) -> bool:
    """Whether every layer keeps all tokens, so that each can be cut into slices of sequences."""
    return all(type(layer) is ReservedLayer for layer in make_cache(config, 0).layers)


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, [B, heads, tokens, D], as views of memory for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory, when the shapes are known."""
        self._reserve(key_states, value_states, len(key_states))

    def _reserve(self, key_states: torch.Tensor, value_states: torch.Tensor, count: int) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._memory = [reserve(states, count, self._capacity) for states in (key_states, value_states)]
        self.keys, self.values = (memory[:, :, :0] for memory in self._memory)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens, and return all."""
        count = len(key_states)
        return self.update_rows(key_states, value_states, slice(0, count), count)

    def update_rows(
        self, key_states: torch.Tensor, value_states: torch.Tensor, rows: slice, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens of these of `count` sequences, and return all of theirs. The last come last."""
        if not self.is_initialized:
            self._reserve(key_states, value_states, count)
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        assert end <= self._capacity, f"{end} tokens came to a cache for {self._capacity}"
        keys, values = self._memory
        keys[rows, :, begin:end], values[rows, :, begin:end] = key_states, value_states
        if rows.stop == count:
            self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return keys[rows, :, :end], values[rows, :, :end]


class KeysKeptError(Exception):
    """What ends a layer's code that was run for its keys and values alone."""


class CacheRows:
    """A cache as a layer sees it that is given these of `count` sequences.

    With `keys_only`, `update` raises `KeysKeptError` once it has kept what it was given.
    """

    def __init__(self, cache: DynamicCache, rows: slice, count: int, *, keys_only: bool = False) -> None:
        self._cache = cache
        self._rows = rows
        self._count = count
        self._keys_only = keys_only

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens, and return all of these sequences."""
        layer: Any = self._cache.layers[layer_idx]
        kept: tuple[torch.Tensor, torch.Tensor] = layer.update_rows(key_states, value_states, self._rows, self._count)
        if self._keys_only:
            raise KeysKeptError
        return kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def reserve(states: torch.Tensor, count: int, capacity: int) -> torch.Tensor:
    """Memory for `capacity` tokens of `count` sequences, of what `states` [B, heads, tokens, D] has one or more of."""
    _, heads, _, width = states.shape
    numbers = count * heads * capacity * width
    return allocate(numbers * states.itemsize).view(states.dtype).view(count, heads, capacity, width)
