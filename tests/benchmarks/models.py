"""Random checkpoints to measure on, in the Hub's own layout: `make bench-models`.

Two shapes of a mixture of experts, each about twice as large as the memory it is measured in:
a few large experts (88 MB each), and many small ones (9.4 MB each). Weights are random, which
changes no shape, no byte and no arithmetic; routers of random weights choose their experts about
evenly, which is the hardest case for a disk: every sweep needs every expert.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["MODELS", "folder_of", "make"]

FOLDER = Path(__file__).parents[2] / "outputs" / "bench-models"
SHARD = "2GB"  # sharded, as checkpoints of this size are on the Hub
COMMON: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "few-large": (
        "mixtral",
        {"num_hidden_layers": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 7168},
    ),
    "many-small": (
        "qwen3_moe",
        {"num_hidden_layers": 5, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"head_dim": 128, "norm_topk_prob": True},
    ),
}
"""By name: the architecture, and what its config has beside `COMMON`."""


def folder_of(name: str) -> Path:
    """Where a checkpoint lies."""
    return FOLDER / name


def make(name: str, folder: Path) -> None:
    """Write one checkpoint, unless it is there already."""
    if (folder / "config.json").is_file():
        return
    architecture, settings = MODELS[name]
    config = AutoConfig.for_model(architecture, **COMMON, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    draft = folder.with_name(f"{name}.draft")
    model.save_pretrained(draft, max_shard_size=SHARD)
    draft.rename(folder)  # whole, or not there


if __name__ == "__main__":
    for each in sys.argv[1:] or MODELS:
        make(each, folder_of(each))
        size = sum(file.stat().st_size for file in folder_of(each).glob("*.safetensors"))
        print(f"{folder_of(each)}: {size / 2**30:.2f} GiB")
