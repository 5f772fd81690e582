"""What a layer is given of a batch, slice by slice, makes up the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache

from klotski.model import slices
from klotski.model.cache import CacheRows, ReservedLayer
from klotski.model.slices import cut_norm, cut_rows, join, take
from tests.unit.fakes import examples


@given(st.integers(1, 40), st.integers(1, 2000))
@examples(60)
def test_every_sequence_is_in_one_slice_of_bounded_size(count: int, tokens: int) -> None:
    rows = list(cut_rows(count, tokens))
    assert [row for each in rows for row in range(each.start, each.stop)] == list(range(count))
    assert all((each.stop - each.start) * tokens <= max(slices.SLICE, tokens) for each in rows)


@given(st.integers(2, 9), st.integers(1, 300))
@examples(40)
def test_what_was_taken_apart_by_sequences_comes_together_again(count: int, tokens: int) -> None:
    hidden = torch.arange(count * tokens * 2).view(count, tokens, 2)
    memory = torch.zeros_like(hidden)
    assert join([take(hidden, rows, count) for rows in cut_rows(count, tokens)], memory) is memory
    assert torch.equal(memory, hidden)
    joined, nothing = join([take((hidden, None), rows, count) for rows in cut_rows(count, tokens)], memory.zero_())
    assert torch.equal(joined, hidden)
    assert nothing is None


def test_only_what_has_a_row_for_each_sequence_is_cut() -> None:
    rows, count = slice(1, 3), 3
    shared = torch.zeros(1, 5, 4)
    positions = torch.arange(3)  # of three tokens, not of three sequences
    given_ = {"mask": torch.arange(6).view(3, 2), "turns": (shared, shared), "positions": positions, "layer": 4}
    taken = take(given_, rows, count)
    assert taken["mask"].tolist() == [[2, 3], [4, 5]]
    assert taken["turns"] == (shared, shared)
    assert taken["positions"] is positions
    assert taken["layer"] == 4


def test_a_cache_filled_by_slices_is_one_filled_at_once() -> None:
    whole, cut = DynamicCache(), DynamicCache()
    whole.layers, cut.layers = [ReservedLayer(9)], [ReservedLayer(9)]
    for tokens in (4, 1):
        keys, values = torch.randn(2, 3, 2, tokens, 5).unbind()
        expected = whole.update(keys, values, 0)
        seen = cut.get_seq_length()
        for rows in (slice(0, 2), slice(2, 3)):
            part = CacheRows(cut, rows, 3)
            assert part.get_seq_length() == seen
            for mine, own in zip(part.update(keys[rows], values[rows], 0), expected, strict=True):
                assert torch.equal(mine, own[rows])
    assert cut.get_seq_length() == 5
    assert torch.equal(cut.layers[0].keys, whole.layers[0].keys)


def test_a_norm_of_slices_is_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(3, 5, 8)
    norm = nn.RMSNorm(8)
    expected = norm(hidden)
    cut_norm(norm)
    monkeypatch.setattr(slices, "NORMED", 4 * 8)
    assert torch.equal(norm(hidden), expected)
