"""Weights in a form that is not read here yet, recognised before they are downloaded, read or computed with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klotski.errors import ModelError

__all__ = ["is_part_of_quantization", "refuse_quantized"]

PART = re.compile(r"(scale|zero|qweight|blocks)[^.]*$")  # of a tensor's last name: weight_scale_inv, qzeros, *_blocks


def refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose `config.json` says that it is quantized.

    Raises:
        ModelError: it does; the message says how.
    """
    texts = [text for text in (config, config.get("text_config")) if isinstance(text, Mapping)]
    found = next((text["quantization_config"] for text in texts if text.get("quantization_config")), None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        how = f" ({method})" if method else ""
        raise ModelError(
            f"{folder} holds quantized weights{how}, which cannot be streamed yet; use the unquantized checkpoint"
        )


def is_part_of_quantization(tensor: str) -> bool:
    """Whether a tensor that a model does not use has the name of a scale, a zero point or packed weights."""
    return PART.search(tensor) is not None
