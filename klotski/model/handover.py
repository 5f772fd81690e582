"""The places where unmodified transformers code hands control back.

A forward pre-hook on every decoder layer, the experts interface, the head, and attention, where keys and values
stay in CPU memory below a GPU. All find the batch (or the slice of one) that is running by the greenlet that it
is, tell it where it stopped, and switch to the pipeline. When the pipeline resumes the batch, the model's own code
goes on.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from greenlet import getcurrent
from torch import nn
from transformers.integrations.moe import ExpertsInterface

from klotski.model.experts import ExpertsCall

__all__ = ["EXPERTS_IMPLEMENTATION", "AttentionCall", "Handover", "install", "register"]

EXPERTS_IMPLEMENTATION = "klotski"


class AttentionCall(NamedTuple):
    """The question of a batch: `query` [B, heads, T, D] over what a layer keeps, and `key`, `value` that are new.

    `mask` [B, 1, T, tokens] as attention is given it, and `options` that are no tensors.
    """

    module: nn.Module
    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float | None
    options: dict[str, Any]


class Handover:
    """What a coroutine must offer to be stopped by a model."""

    def enter_layer(self, layer: int, hidden: torch.Tensor) -> None:
        """Called where the coroutine is about to enter a layer with its tokens [..., H]; returns when it may."""
        raise NotImplementedError

    def ask(self, calls: Sequence[ExpertsCall]) -> Sequence[torch.Tensor]:
        """Called at a layer's experts; returns the combined output [T, H] of each call."""
        raise NotImplementedError

    def stays_below(self, layer: int) -> bool:
        """Called at a layer's attention; whether that is to be asked for, because keys and values stay elsewhere."""
        return False

    def ask_attention(self, call: AttentionCall) -> torch.Tensor:
        """Called at a layer's attention over what stays elsewhere; returns its output [B, T, heads, D]."""
        raise NotImplementedError

    def ask_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Called at the head with the last tokens [..., H]; returns their scores [..., V]."""
        raise NotImplementedError


def register() -> None:
    """Make `EXPERTS_IMPLEMENTATION` known to transformers; has to come before a model is built."""
    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, _experts_forward)


def install(layers: Sequence[nn.Module], head: nn.Module | None) -> None:
    """Make a model's layers and its head hand over to the greenlet that runs them."""
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(_before_layer, index), with_kwargs=True)
    if head is not None:
        head.forward = _head_forward


def _before_layer(index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    batch = getcurrent()
    assert isinstance(batch, Handover), "a streamed model runs inside a batch's coroutine only"
    hidden = args[0] if args else kwargs["hidden_states"]
    batch.enter_layer(index, hidden)


def _head_forward(hidden: torch.Tensor) -> torch.Tensor:
    batch = getcurrent()
    assert isinstance(batch, Handover), "a streamed model runs inside a batch's coroutine only"
    return batch.ask_scores(hidden)


def _experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    batch = getcurrent()
    assert isinstance(batch, Handover), "a streamed model runs inside a batch's coroutine only"
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    (answer,) = batch.ask([ExpertsCall(module, tokens, top_k_index, top_k_weights)])
    return answer.view_as(hidden_states)
