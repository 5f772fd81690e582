"""The sizes of an opened model, and its arithmetic, for the planner."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from klotski.core import Block
from klotski.executors.outline import Outline
from klotski.model import (
    ROWS,
    SLICE,
    OpenModel,
    WorkspaceShape,
    can_leave_device,
    fixed_rope_length,
    keeps_all_tokens,
    keeps_tokens,
    recomputed_length,
    router_bytes,
    takes_padding,
)
from klotski.planner import ModelFacts
from klotski.weights.layout import ParameterSpec
from klotski.weights.reader import IN_FLIGHT

__all__ = ["gather_facts", "outline_of", "workspace_shape"]

INT = torch.int64.itemsize
FLOAT = torch.float32.itemsize
ENDLESS = 1 << 40  # tokens: more than any sequence has
BEFORE_SCORES = re.compile(r"\.(q|k|v|kv|qkv|query|key|value|query_key_value|Wqkv)(_[ab])?(_proj.*)?\.weight$")


def outline_of(model: OpenModel) -> Outline:
    """What a plan has to know of an opened model."""
    return Outline(
        gather_facts(model),
        dtype=str(model.shell.dtype).removeprefix("torch."),
        vocab_size=model.config.get_text_config().vocab_size,
        context=model.context,
        spares=keeps_all_tokens(model.config),
        router_bytes=router_bytes(model.shell),
        alone_above=fixed_rope_length(model.config) if takes_padding(model.config) else 0,
        recomputed_at=recomputed_length(model.shell.model),
    )


def gather_facts(model: OpenModel) -> ModelFacts:
    """The sizes and the arithmetic of a model, as it was opened: with cache blocking or without."""
    facts = facts_with_cache_blocking(model)
    return facts if model.shell.cache_blocking else facts.without_cache_blocking()


def facts_with_cache_blocking(model: OpenModel) -> ModelFacts:
    """The same as on a CPU."""
    text: Any = model.config.get_text_config()
    item = model.shell.dtype.itemsize
    kept = model.shell.kept
    moving, staying = ([layer for layer in kept if layer.moves is moves] for moves in (True, False))
    shape = workspace_shape(model)
    experts, top_k, hidden, _ = shape
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or hidden // text.num_attention_heads)
    eager = getattr(text, "_attn_implementation", None) == "eager"
    in_slices = keeps_all_tokens(model.config)
    expanded, expanding = expansion(text)
    repeated = repetition(text)
    enough = 100 * ROWS  # tokens; inside an expert, no more of them find room
    per_token = shape.nbytes(enough + 1, item) - shape.nbytes(enough, item)
    per_row = (shape.nbytes(enough, item) - shape.nbytes(0, item) - enough * per_token) // ROWS
    return ModelFacts(
        fixed_bytes=model.fixed.slot_bytes,
        block_bytes={block: layout.slot_bytes for block, layout in model.layouts.items()},
        stored_bytes={block: layout.disk_bytes for block, layout in model.layouts.items()},
        expert_counts=model.shell.expert_counts,
        top_k=top_k,
        kv_bytes=sum(layer.token_bytes for layer in moving),
        kv_layer_bytes=max((layer.token_bytes for layer in moving), default=0),
        window_bytes=sum(layer.token_bytes for layer in staying),
        window_tokens=max((layer.window or ENDLESS for layer in staying if layer.token_bytes), default=0),
        state_bytes=sum(layer.state_bytes for layer in kept),
        # The model's input, which its code holds on to; residual, normed input, what an output is added to; the
        # router's logits and probabilities; choices, their weights, and how they are sorted.
        waiting_bytes=4 * item * hidden + experts * (item + 2 * FLOAT) + top_k * (4 * INT + 2 * FLOAT),
        workspace_bytes=per_token,
        spare_bytes=top_k * hidden * item,
        rows_bytes=shape.nbytes(1, item) - per_token - per_row,  # with rows up to a whole step
        row_bytes=per_row,
        rows=ROWS,
        # Queries, keys and values, before and after they are turned; the output, before and after its projection.
        attention_bytes=item * (4 * hidden + 8 * heads),
        expanded_bytes=(expanded + repeated * eager) * item,
        repeated_bytes=repeated * (not eager) * item,
        score_bytes=(text.num_attention_heads * (item + 2 * FLOAT) if eager else 0) + item + 1,
        scores_bytes=item * text.vocab_size,
        # What a model may put in the place of what the head gave, and a copy in float32 to choose by.
        logits_bytes=(item + FLOAT) * text.vocab_size,
        reads_whole_prompts=not keeps_tokens(model.config),
        # Latent keys are expanded between a cache and attention, by weights that are on the device.
        attends_anywhere=can_leave_device(model.shell.model.config) and not getattr(text, "kv_lora_rank", None),
        slice_tokens=SLICE if in_slices else 0,
        staging_bytes=IN_FLIGHT * model.staging,
        dense_flops=sum(flops(layout.views) for block, layout in model.layouts.items() if block.is_dense),
        expert_flops=top_k * sum(flops(model.layouts[Block(layer, 0)].views) for layer in layers_with_experts(model)),
        head_flops=2 * hidden * text.vocab_size,
        context_flops=len(model.shell.layers) * expanding,
        pair_flops=pair_flops(text) if in_slices else 0,
        spared_flops=spared_flops(model) if in_slices else 0,
    )


def workspace_shape(model: OpenModel) -> WorkspaceShape:
    """What the memory of a group's expert phase follows from."""
    text: Any = model.config.get_text_config()
    layouts = [model.layouts[Block(layer, 0)] for layer in layers_with_experts(model)]
    matrices = [spec.shape for layout in layouts for _, spec in layout.views.values() if len(spec.shape) == 2]
    hidden = int(text.hidden_size)
    inner = max(prod(shape) // hidden for shape in matrices)
    return WorkspaceShape(max(model.shell.expert_counts), model.shell.top_k, hidden, inner)


def layers_with_experts(model: OpenModel) -> list[int]:
    """Their numbers."""
    return [layer for layer, count in enumerate(model.shell.expert_counts) if count]


def flops(views: Mapping[str, tuple[int, ParameterSpec]]) -> int:
    """Operations that a token costs on its way through a block's matrices."""
    return 2 * sum(prod(spec.shape) for _, spec in views.values() if len(spec.shape) == 2)


def pair_flops(text: Any) -> int:
    """Operations of a score and of what it weighs, in all heads of a layer."""
    heads, hidden = text.num_attention_heads, text.hidden_size
    width = 2 * (getattr(text, "head_dim", None) or hidden // heads)
    if getattr(text, "kv_lora_rank", None):
        width = text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim
    return int(2 * heads * width)


def spared_flops(model: OpenModel) -> int:
    """Operations of a token in the last layer, behind its queries, keys and values."""
    last = len(model.shell.expert_counts) - 1
    dense = model.layouts[Block(last)]
    behind = {name: view for name, view in dense.views.items() if not BEFORE_SCORES.search(name)}
    experts = model.shell.top_k * flops(model.layouts[Block(last, 0)].views) if model.shell.expert_counts[last] else 0
    return flops(behind) + experts


def expansion(text: Any) -> tuple[int, int]:
    """What becomes of a token's latents in one layer whenever attention looks at them: numbers, and operations.

    Keys without positions and values of all heads side by side, and keys once more with positions.
    """
    if not (rank := getattr(text, "kv_lora_rank", None)):
        return 0, 0
    expanded = text.num_attention_heads * (text.qk_nope_head_dim + text.v_head_dim)
    keys = text.num_attention_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
    return int(expanded + keys), int(2 * rank * expanded)


def repetition(text: Any) -> int:
    """Elements of keys and values of a token in one layer, repeated for all heads that share them; 0: none do."""
    heads = text.num_attention_heads
    if (getattr(text, "num_key_value_heads", None) or heads) == heads:
        return 0
    return int(2 * heads * (getattr(text, "head_dim", None) or text.hidden_size // heads))
