"""Requests cut into batches."""

from collections.abc import Sequence

from klotski.core import Request

__all__ = ["cut_batches", "in_batch_order"]


def cut_batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Batches of requests that are neighbours in `in_batch_order`."""
    ordered = in_batch_order(requests)
    return [list(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]


def in_batch_order(requests: Sequence[Request]) -> list[Request]:
    """Longest prompts first, and of equals those that may go on longest.

    Prompts of one batch are padded to the longest of them, so neighbours in length waste least;
    and the longest first, so that what needs most memory is known to fit from the start.
    """
    return sorted(requests, key=lambda request: (-len(request.prompt), -request.max_tokens, request.number))
