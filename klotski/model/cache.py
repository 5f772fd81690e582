"""A KV cache that takes its memory once.

transformers' own grows by making a longer copy of itself with every token: at a few hundred
sequences, more bytes than the weights of a sweep, in memory that is fresh each time.

Below a GPU the keys and values of a layer may lie in CPU memory, and in a slot of the device while
the layer is computed.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from klotski.weights.memory import allocate

__all__ = [
    "CacheRows",
    "KeysKeptError",
    "MovingLayer",
    "ReservedLayer",
    "keeps_all_tokens",
    "keeps_tokens",
    "make_cache",
    "takes_padding",
]


def make_cache(
    config: PreTrainedConfig, capacity: int, reserved: "Callable[[int], ReservedLayer] | None" = None
) -> DynamicCache:
    """A cache for sequences of up to `capacity` tokens; layers that keep less than all of them stay as they are.

    `reserved` makes the others, for so many tokens.
    """
    cache = DynamicCache(config=config)
    make = reserved or ReservedLayer
    cache.layers = [make(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_tokens(config: PreTrainedConfig) -> bool:
    """Whether every layer remembers tokens, rather than a state that they have left behind.

    A state is computed over a prompt as a whole, padding masked: a prompt in pieces comes out different.
    """
    return all(isinstance(layer, DynamicLayer) for layer in make_cache(config, 0).layers)


def keeps_all_tokens(config: PreTrainedConfig) -> bool:
    """Whether every layer keeps all tokens, so that each can be cut into slices of sequences."""
    return all(type(layer) is ReservedLayer for layer in make_cache(config, 0).layers)


def takes_padding(config: PreTrainedConfig) -> bool:
    """Whether sequences come out the same when they are padded.

    The index of sparse attention selects a fixed number of tokens to attend to, and padding would be among them.
    """
    return not any(hasattr(layer, "update_indexer") for layer in make_cache(config, 0).layers)


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, [B, heads, tokens, D], as views of memory for `capacity` tokens.

    `can_be_cut`: whether some of its sequences may be looked at without the others.
    """

    can_be_cut = True

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


class MovingLayer(ReservedLayer):
    """Keys and values of one layer in CPU memory, which are in a slot of the device while attention looks at them.

    `lend` gives it a slot, and `recall` takes it away. Between the two, `ahead` is to be copied into the
    slot, and before it is taken away, `behind` out of it. The tokens of all sequences lie side by side,
    [tokens, B, heads, D], so that what was there before, and what came, are each in one piece.
    `allocate`: CPU memory that a device can copy from.

    From `stay` on until `keep` it has no slot: attention is computed in CPU memory, on what `keep` returns.
    """

    def __init__(self, capacity: int, allocate: Callable[[int], torch.Tensor]) -> None:
        super().__init__(capacity)
        self._allocate = allocate
        self._slot: torch.Tensor | None = None
        self._host: list[torch.Tensor] = []
        self._home = 0  # tokens that are in CPU memory
        self.stays = False

    @property
    def can_be_cut(self) -> bool:  # type: ignore[override]
        """Only what is in a slot can."""
        return not self.stays

    @property
    def nbytes(self) -> int:
        """Bytes of CPU memory that it has."""
        return sum(memory.nbytes for memory in self._host)

    @property
    def ahead(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pieces of the slot, and what belongs there."""
        return [(there[: self._home], here[: self._home]) for there, here in zip(self._lent(), self._host, strict=True)]

    @property
    def behind(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pieces of CPU memory, and what belongs there of the tokens that came."""
        end = self.keys.shape[-2] if self.is_initialized else 0
        pairs = zip(self._lent(), self._host, strict=True)
        return [(here[self._home : end], there[self._home : end]) for there, here in pairs]

    def lend(self, slot: torch.Tensor) -> None:
        """A slot of the device (uint8) is for this layer from now on."""
        assert self._slot is None, "a layer was given a second slot"
        self._slot = slot
        if self.is_initialized:
            self._look(self._lent(), self._home)

    def stay(self) -> None:
        """Attention comes to where this layer is."""
        assert self._slot is None and self.is_initialized, "what stays has no slot, and was brought back before"
        self.stays = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens, and return all; of what stays, leave that to `keep`."""
        if self.stays:
            return key_states, value_states
        return super().update(key_states, value_states, *args, **kwargs)

    def keep(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new tokens that have come to CPU memory, and return all."""
        assert self.stays, "what is in a slot is kept there"
        kept = super().update(key_states, value_states)
        self._home = self.keys.shape[-2]
        self.stays = False
        return kept

    def recall(self) -> None:
        """The slot is for others; what is there will have been copied."""
        self._slot = None
        if self.is_initialized:
            self._home = self.keys.shape[-2]
            self._look(self._host, self._home)

    def _reserve(self, key_states: torch.Tensor, value_states: torch.Tensor, count: int) -> None:
        assert self._slot is not None, "keys came to a layer without a slot"
        self.dtype, self.device = key_states.dtype, key_states.device
        for states in (key_states, value_states):
            _, heads, _, width = states.shape
            shape = (self._capacity, count, heads, width)
            memory = self._allocate(prod(shape) * states.itemsize)
            self._host.append(memory.view(states.dtype).view(shape))
        self._look(self._lent(), 0)
        self.is_initialized = True

    def _lent(self) -> list[torch.Tensor]:
        """The slot as this layer divides it, [tokens, B, heads, D] of keys and of values."""
        assert self._slot is not None, "a layer was used without a slot"
        sizes = [memory.nbytes for memory in self._host]
        assert sum(sizes) <= len(self._slot), f"{sum(sizes)} bytes do not fit into a slot of {len(self._slot)}"
        parts = torch.split(self._slot[: sum(sizes)], sizes) if sizes else ()
        return [part.view(self.dtype).view(memory.shape) for part, memory in zip(parts, self._host, strict=True)]

    def _look(self, memory: list[torch.Tensor], tokens: int) -> None:
        self._memory = [each.permute(1, 2, 0, 3) for each in memory]
        self.keys, self.values = (each[:, :, :tokens] for each in self._memory)


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
    if states.device.type != "cpu":
        return states.new_empty((count, heads, capacity, width))
    return allocate(numbers * states.itemsize).view(states.dtype).view(count, heads, capacity, width)
