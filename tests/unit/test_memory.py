"""What the C library keeps of memory that nobody uses any more."""

import sys

import psutil
import pytest
import torch

from klotski.weights.memory import allocate, keep_small_memory, return_free_memory

MB = 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep nothing, or give nothing back")
def test_holes_between_pieces_in_use_are_given_back() -> None:
    keep_small_memory()
    pieces = [torch.ones(MB, dtype=torch.uint8) for _ in range(300)]
    full = psutil.Process().memory_info().rss
    kept = pieces[::30]
    del pieces
    return_free_memory()
    assert psutil.Process().memory_info().rss < full - 200 * MB
    assert all(bool((piece == 1).all()) for piece in kept)


def test_somebody_hears_of_memory_before_it_is_given_back() -> None:
    heard: list[int] = []
    memory = allocate(10, before_return=heard.append)
    address, part = memory.data_ptr(), memory[2:4]
    del memory
    assert not heard, "a part of it is in use"
    part.fill_(1)
    del part
    assert heard == [address]
