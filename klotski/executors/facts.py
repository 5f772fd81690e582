"""The sizes of an opened model, for the planner."""

from typing import Any

import torch

from klotski.model import OpenModel
from klotski.planner import ModelFacts
from klotski.weights import staging_bytes

__all__ = ["gather_facts"]


def gather_facts(model: OpenModel) -> ModelFacts:
    """What the planner has to know of a model."""
    text: Any = model.config.get_text_config()
    item = model.shell.dtype.itemsize
    hidden = text.hidden_size
    # The widest matrix inside an expert: gate and up side by side.
    inner = max(
        (spec.shape[0] if len(spec.shape) > 1 else 0)
        for block, layout in model.layouts.items()
        if not block.is_dense
        for _, spec in layout.views.values()
    )
    top_k = model.shell.top_k
    return ModelFacts(
        fixed_bytes=model.fixed.slot_bytes,
        block_bytes={block: layout.slot_bytes for block, layout in model.layouts.items()},
        expert_counts=model.shell.expert_counts,
        top_k=top_k,
        kv_bytes=len(model.shell.layers) * kv_numbers(text) * item,
        activation_bytes=item * (4 * hidden + 2 * inner) + torch.float32.itemsize * top_k * hidden,
        staging_bytes=staging_bytes(model.longest_segment),
        logits_bytes=2 * torch.float32.itemsize * text.vocab_size,
    )


def kv_numbers(text: Any) -> int:
    """Numbers that one layer keeps of one token, at most.

    Sliding windows and linear attention keep less; latent attention is kept expanded by
    transformers, a key and a value for each head.
    """
    heads = text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):
        return int(heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * (getattr(text, "num_key_value_heads", None) or heads) * head_dim)
