"""A cache that takes its memory once holds what transformers' own would."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer

from klotski.model.cache import ReservedLayer, make_cache
from tests.architectures import ARCHITECTURES, COMMON
from tests.unit.fakes import examples

STEPS = st.lists(st.one_of(st.just(1), st.integers(1, 9)), min_size=1, max_size=12)
"""Tokens of each step: of a prompt, or of a piece of it, or one that was generated."""


def states(step: int, tokens: int, batch: int, heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    # As attention makes them: heads are the second dimension of a view, not of memory.
    return torch.randn((batch, tokens, heads, width), generator=generator).to(dtype).transpose(1, 2)


@given(
    STEPS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 4),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@examples(60)
def test_it_equals_a_growing_cache_token_by_token(
    steps: list[int], batch: int, heads: int, key_width: int, value_width: int, spare: int, dtype: torch.dtype
) -> None:
    reserved, growing = ReservedLayer(sum(steps) + spare), DynamicLayer()
    for step, tokens in enumerate(steps):
        keys = states(2 * step, tokens, batch, heads, key_width, dtype)
        values = states(2 * step + 1, tokens, batch, heads, value_width, dtype)
        assert reserved.get_mask_sizes(tokens) == growing.get_mask_sizes(tokens)
        for mine, own in zip(reserved.update(keys, values), growing.update(keys, values), strict=True):
            assert mine.dtype == own.dtype
            assert torch.equal(mine, own)
        assert torch.equal(reserved.keys, growing.keys)
        assert torch.equal(reserved.values, growing.values)
        assert reserved.get_seq_length() == growing.get_seq_length() == sum(steps[: step + 1])


def test_its_memory_is_taken_with_the_first_tokens_and_never_again() -> None:
    layer = ReservedLayer(10)
    assert layer.get_seq_length() == 0
    places = set()
    for step, tokens in enumerate((4, 1, 1, 4)):
        keys, values = (states(step, tokens, 2, 3, 8, torch.float32) for _ in range(2))
        for kept in layer.update(keys, values):
            assert kept.untyped_storage().nbytes() >= 2 * 3 * 10 * 8 * 4
        places.add((layer.keys.data_ptr(), layer.values.data_ptr()))
    assert len(places) == 1


def test_what_was_handed_out_before_is_not_written_again() -> None:
    layer = ReservedLayer(3)
    first, _ = layer.update(*(states(step, 2, 1, 1, 4, torch.float32) for step in (0, 1)))
    before = first.clone()
    layer.update(*(states(step, 1, 1, 1, 4, torch.float32) for step in (2, 3)))
    assert torch.equal(first, before)


def test_more_tokens_than_it_was_made_for_are_refused() -> None:
    layer = ReservedLayer(3)
    layer.update(*(states(step, 3, 1, 1, 4, torch.float32) for step in (0, 1)))
    with pytest.raises(AssertionError, match="4 tokens came to a cache for 3"):
        layer.update(*(states(step, 1, 1, 1, 4, torch.float32) for step in (2, 3)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_that_keep_less_than_all_tokens_stay_as_they_are(architecture: str) -> None:
    settings: dict[str, Any] = COMMON | ARCHITECTURES[architecture]
    config = AutoConfig.for_model(architecture, **settings)
    own, mine = DynamicCache(config=config).layers, make_cache(config, 20).layers
    assert len(mine) == len(own)
    for one, other in zip(mine, own, strict=True):
        assert type(one) is (ReservedLayer if type(other) is DynamicLayer else type(other))
