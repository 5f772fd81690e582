"""What transformers itself gives for a batch: the tokens to be identical to."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

__all__ = ["plain_generate"]


def plain_generate(folder: Path, requests: list[dict[str, Any]], batch_size: int = 1) -> dict[str, list[int]]:
    """Greedy output tokens by request id, from `generate` on the whole model in float32.

    Batches are cut as the engine cuts them, longest prompts first, and padded on the left.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stop, pad = model.generation_config.eos_token_id, model.config.get_text_config().pad_token_id
    ordered = sorted(requests, key=lambda request: (-len(request["prompt_token_ids"]), -request["max_tokens"]))
    outputs: dict[str, list[int]] = {}
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        length = max(len(request["prompt_token_ids"]) for request in batch)
        paddings = [length - len(request["prompt_token_ids"]) for request in batch]
        ids = [[pad] * padding + request["prompt_token_ids"] for padding, request in zip(paddings, batch, strict=True)]
        mask = [[0] * padding + [1] * (length - padding) for padding in paddings]
        longest = max(request["max_tokens"] for request in batch)
        settings = GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=pad, eos_token_id=stop)
        model.generation_config = GenerationConfig()
        rows = model.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), generation_config=settings
        )
        for row, request in zip(rows[:, length:].tolist(), batch, strict=True):
            outputs[request["id"]] = cut(row[: request["max_tokens"]], stop)
    return outputs


def cut(tokens: list[int], stop: int | list[int] | None) -> list[int]:
    """Tokens up to and with the first that ends a sequence."""
    stops = stop if isinstance(stop, list) else [stop]
    ends = [position for position, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens
