"""Attention in blocks of queries is transformers' own."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from klotski.model import attention
from klotski.model.attention import for_transformers
from tests.unit.fakes import examples

attention_forward = for_transformers(attention.attention)


class Layer(nn.Module):
    """What a kernel asks of the layer that it is for."""

    def __init__(self, groups: int, *, is_causal: bool = True) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = is_causal


def states(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As a model makes them: [B, T, heads, D], seen as [B, heads, T, D]."""
    batch, heads, tokens, width = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, tokens, heads, width), generator=generator).to(dtype).transpose(1, 2)


def causal_mask(tokens: int, before: int, window: int, padding: list[int]) -> torch.Tensor:
    """[B, 1, T, S]: each token looks at the `window` before it that are no padding, and padding at itself."""
    queries, keys = torch.arange(before, before + tokens)[:, None], torch.arange(before + tokens)[None]
    seen = (keys <= queries) & (keys > queries - window)
    return torch.stack([(seen & (keys >= left)) | (keys == queries) for left in padding])[:, None]


@given(
    tokens=st.integers(1, 20),
    before=st.integers(0, 20),
    batch=st.integers(1, 3),
    shared=st.integers(1, 3),
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.sampled_from([3, 1000]),
    block=st.sampled_from([1, 4, 64]),
    data=st.data(),
)
@examples(100)
def test_it_is_that_of_transformers_for_any_piece_of_any_padded_prompt(
    tokens: int,
    before: int,
    batch: int,
    shared: int,
    groups: int,
    widths: tuple[int, int],
    window: int,
    block: int,
    data: st.DataObject,
) -> None:
    query = states(1, batch, shared * groups, tokens, widths[0])
    key, value = (states(2 + each, batch, shared, before + tokens, width) for each, width in enumerate(widths))
    mask = None
    if (before and tokens > 1) or data.draw(st.booleans()):
        padding = data.draw(st.lists(st.integers(0, before + tokens), min_size=batch, max_size=batch))
        mask = causal_mask(tokens, before, window, padding)
    settings: dict[str, Any] = {"scaling": data.draw(st.sampled_from([None, 0.3])), "dropout": 0.0}
    with patch.object(attention, "BLOCK", block):
        output, _ = attention_forward(Layer(groups), query, key, value, mask, **settings)
    expected, _ = sdpa_attention_forward(Layer(groups), query, key, value, mask, **settings)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_a_token_that_looks_at_nothing_comes_out_as_a_number() -> None:
    """Where a whole piece of a prompt is padding; what is not a number would spread through the cache."""
    query, key, value = (states(seed, 2, 4, 6, 8) for seed in range(3))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    mask[0, :, :, :4] = False
    with patch.object(attention, "BLOCK", 2):
        output, _ = attention_forward(Layer(1), query, key, value, mask)
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("layer", "mask"),
    [
        (Layer(2, is_causal=False), None),
        (Layer(2), torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))),
        (Layer(2), torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.3),
    ],
    ids=["every token looks at all", "a mask of numbers", "a mask for each head"],
)
def test_what_is_not_plain_is_left_to_transformers(layer: Layer, mask: torch.Tensor | None) -> None:
    query, key, value = (states(seed, 1, heads, 6, 8) for seed, heads in enumerate((4, 2, 2)))
    if mask is not None and mask.dtype == torch.bool:
        mask = mask | torch.eye(6, dtype=torch.bool)
    output, _ = attention_forward(layer, query, key, value, mask)
    assert torch.equal(output, sdpa_attention_forward(layer, query, key, value, mask)[0])
