"""Batches are cut as they were planned."""

from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Request
from klotski.planner import Demand
from klotski.workload import cut_batches, in_batch_order

LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=40)


def to_requests(lengths: list[tuple[int, int]]) -> list[Request]:
    return [
        Request(str(number), (7,) * prompt, max_tokens, number)
        for number, (prompt, max_tokens) in enumerate(lengths, start=1)
    ]


@given(LENGTHS, st.integers(1, 8))
def test_every_request_is_in_one_batch(lengths: list[tuple[int, int]], batch_size: int) -> None:
    requests = to_requests(lengths)
    batches = cut_batches(requests, batch_size)
    assert sorted(request.number for batch in batches for request in batch) == list(range(1, len(requests) + 1))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(LENGTHS, st.integers(1, 5), st.integers(1, 8))
def test_no_group_needs_more_cache_than_was_planned(
    lengths: list[tuple[int, int]], n_batches: int, batch_size: int
) -> None:
    requests = to_requests(lengths)
    ordered = [(len(request.prompt), request.max_tokens) for request in in_batch_order(requests)]
    planned = Demand(ordered).group(n_batches, batch_size).context_tokens
    needs = [
        len(batch) * (max(len(request.prompt) for request in batch) + max(request.max_tokens for request in batch))
        for batch in cut_batches(requests, batch_size)
    ]
    for first in range(len(needs)):
        assert sum(needs[first : first + n_batches]) <= planned
