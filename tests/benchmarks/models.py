"""Random checkpoints to measure on, in the Hub's own layout: `make bench-models`.

Two shapes of a mixture of experts, each about twice as large as the memory it is measured in:
a few large experts (88 MB each), and many small ones (9.4 MB each). Weights are random, which
changes no shape, no byte and no arithmetic; routers of random weights choose their experts about
evenly, which is the hardest case for a disk: every sweep needs every expert.
"""

import sys
from pathlib import Path
from typing import Any

from scripts.random_checkpoint import Shape, size_of, write_checkpoint

__all__ = ["MODELS", "folder_of", "make"]

FOLDER = Path(__file__).parents[2] / "outputs" / "bench-models"
COMMON: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
MODELS: dict[str, Shape] = {
    "few-large": (
        "mixtral",
        COMMON | {"num_hidden_layers": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 7168},
    ),
    "many-small": (
        "qwen3_moe",
        COMMON
        | {"num_hidden_layers": 5, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"head_dim": 128, "norm_topk_prob": True},
    ),
}


def folder_of(name: str) -> Path:
    """Where a checkpoint lies."""
    return FOLDER / name


def make(name: str, folder: Path) -> None:
    """Write one checkpoint, unless it is there already."""
    write_checkpoint(MODELS[name], folder)


if __name__ == "__main__":
    for each in sys.argv[1:] or MODELS:
        make(each, folder_of(each))
        print(f"{folder_of(each)}: {size_of(folder_of(each)) / 2**30:.2f} GiB")
