"""Rotary embeddings whose frequencies depend on how long a sequence is.

`dynamic` (NTK) frequencies follow the longest position of a forward, `longrope` has two sets and changes from one to
the other. Up to a length both are those of any other model; beyond it a sequence shares no forward with others.
Source: `transformers.modeling_rope_utils`.
"""

from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

from transformers import GenerationMixin, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

__all__ = ["context_length", "fixed_rope_length", "install_stateless_rope", "recomputed_length"]


def rope_parameters(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The parameters of each kind of rotary embedding; some models have one for each kind of layer."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [each for each in given.values() if isinstance(each, Mapping) and "rope_type" in each]
    yield from nested or ([given] if "rope_type" in given else [])


def context_length(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model takes; None: its config does not say.

    YaRN, linear and dynamic scaling stretch the positions that a model was trained with by their factor.
    """
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if length is None:
        return None
    stretched = length
    for rope in rope_parameters(config):
        factor = float(rope.get("factor") or 1.0)
        if rope["rope_type"] == "yarn":
            stretched = max(stretched, int(factor * (rope.get("original_max_position_embeddings") or length)))
        elif rope["rope_type"] in ("linear", "dynamic"):
            stretched = max(stretched, int(factor * length))
    return stretched


def fixed_rope_length(config: PreTrainedConfig) -> int | None:
    """Up to which length of a sequence rotary embeddings do not depend on it; None: they never do."""
    text = config.get_text_config()
    lengths = [
        text.max_position_embeddings
        if "dynamic" in rope["rope_type"]
        else rope.get("original_max_position_embeddings") or text.max_position_embeddings
        for rope in rope_parameters(config)
        if "dynamic" in rope["rope_type"] or rope["rope_type"] == "longrope"
    ]
    return min(lengths, default=None)


def recomputed_length(model: PreTrainedModel) -> int | None:
    """The length at which `generate` computes a sequence anew, as Phi-MoE's code asks for; None: it never does."""
    is_asked = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    length = getattr(model.config, "original_max_position_embeddings", None)
    return fixed_rope_length(model.config) if is_asked and length is not None else None


def install_stateless_rope(model: PreTrainedModel) -> None:
    """Let frequencies follow from each forward alone, not from the longest before it, of another batch.

    A model whose code would discard the cache where they change keeps it.
    """
    if hasattr(model.config, "original_max_position_embeddings"):
        model.prepare_inputs_for_generation = MethodType(GenerationMixin.prepare_inputs_for_generation, model)
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        kinds = types.items() if isinstance(types, Mapping) else [("", types)]
        prefixes = [f"{kind}_" if kind else "" for kind, name in kinds if isinstance(name, str) and "dynamic" in name]
        if prefixes:
            module.register_forward_pre_hook(lambda rope, _, prefixes=prefixes: reset(rope, prefixes))


def reset(rope: Any, prefixes: list[str]) -> None:
    """Put a rotary embedding back to where it was before its first forward."""
    for prefix in prefixes:
        rope._buffers[f"{prefix}inv_freq"] = getattr(rope, f"{prefix}original_inv_freq")
        setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
