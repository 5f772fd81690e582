"""Requests cut into batches."""

from collections.abc import Sequence

from klotski.core import Request

__all__ = ["cut_batches"]


def cut_batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Batches of requests of similar length, longest prompts first.

    Prompts of one batch are padded to the longest of them, so neighbours in length waste least;
    and the longest first, so that what needs most memory is known to fit from the start.
    """
    ordered = sorted(requests, key=lambda request: (-len(request.prompt), request.number))
    return [list(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
