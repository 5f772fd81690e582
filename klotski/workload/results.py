"""A finished request as a line of `results.jsonl`."""

from typing import Any

from klotski.core import Result
from klotski.workload.prompts import Encoder

__all__ = ["result_line"]


def result_line(result: Result, encoder: Encoder) -> dict[str, Any]:
    """The line's fields, as other programs rely on them."""
    return {
        "id": result.request.id,
        "text": encoder.decode(result.token_ids),
        "token_ids": list(result.token_ids),
        "finish_reason": result.reason,
        "prompt_tokens": len(result.request.prompt),
        "output_tokens": len(result.token_ids),
    }
