"""Random checkpoints in the Hub's own layout, one for each `model=shape/NAME`: `make shapes`.

    python -m scripts.random_checkpoint            # all of them, 0.8 GB in all
    python -m scripts.random_checkpoint small_64   # one of them

They differ in what a mixture of experts can differ in, and have the same weights otherwise: four
layers of hidden size 512 whose experts take 138 MB. Random weights change no shape, no byte and no
arithmetic; routers of random weights choose their experts about evenly, which is the hardest case
for a disk.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["SHAPES", "Shape", "folder_of", "size_of", "write_checkpoint"]

Shape = tuple[str, dict[str, Any]]
"""The architecture, and what its config has beside its defaults."""

FOLDER = Path("outputs") / "shapes"  # where conf/model/shape/ looks for them
SHARD = "2GB"  # larger checkpoints are sharded, as they are on the Hub
COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LARGE = {"num_local_experts": 8, "intermediate_size": 1408}
SHAPES: dict[str, Shape] = {
    "eight_large": ("mixtral", COMMON | LARGE | {"num_experts_per_tok": 2}),
    "eight_large_top1": ("mixtral", COMMON | LARGE | {"num_experts_per_tok": 1}),
    "small_64": ("olmoe", COMMON | {"num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 176}),
    "small_128": (
        "qwen3_moe",
        COMMON | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 88, "head_dim": 64},
    ),
    "small_64_shared": (
        "qwen2_moe",
        COMMON
        | {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 176}
        | {"shared_expert_intermediate_size": 704},
    ),
}


def folder_of(name: str) -> Path:
    """Where a shape's checkpoint lies, seen from the checkout."""
    return FOLDER / name


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Write a random checkpoint in bfloat16, the same for the same shape, unless it is there already."""
    if (folder / "config.json").is_file():
        return
    architecture, settings = shape
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings), dtype=torch.bfloat16)
    draft = folder.with_name(f"{folder.name}.draft")
    model.save_pretrained(draft, max_shard_size=SHARD)
    draft.rename(folder)  # whole, or not there


def size_of(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    for each in sys.argv[1:] or SHAPES:
        if each not in SHAPES:
            sys.exit(f"{each} is not a shape; there are {', '.join(SHAPES)}")
        write_checkpoint(SHAPES[each], folder_of(each))
        print(f"{folder_of(each)}: {size_of(folder_of(each)) / 1e6:.0f} MB")
