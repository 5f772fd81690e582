"""Hugging Face Accelerate on the same checkpoints: disk offload, one batch, greedy.

    python -m tests.benchmarks.accelerate_baseline prepare --model FOLDER --prepared FOLDER
    python -m tests.benchmarks.accelerate_baseline run --prepared FOLDER --batch-size N
        --input-tokens N --output-tokens N [--steps N]

Given every advantage that was found:

- `prepare` converts the checkpoint once, outside of any limit and any timing: transformers 5 keeps a
  layer's experts in one tensor, and from the Hub's own layout it would convert at every start.
- The device map is made by module, so that a layer's attention and its experts come and go apart:
  the peak is one layer's experts. Weights come from the prepared safetensors, mapped into memory,
  which measured better than Accelerate's own `.dat` files and than reads.
- The benchmark lets torch's threads spin as long as ours do (`GOMP_SPINCOUNT`), and keeps few
  compiled products (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`: more memory for a larger batch).
- The last tokens are packed before they are multiplied with the head (150 times faster in bfloat16),
  and prompts are read in pieces where the whole batch of them would not fit.
- Routed experts run in transformers' `eager` implementation; `grouped_mm` was no faster, and took more.

Prints one line of JSON. With `--steps` only so many output tokens are made, and the others are
taken to be like the median of these; the line's `steps` says how many were made.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor

__all__ = ["PREPARED_FILE", "main"]

PREPARED_FILE = "model.safetensors.index.json"  # the last that `prepare` writes
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp.gate", "mlp.experts")  # of a layer
PREFILL_TOKENS = 16_384  # of all prompts at a time; more do not fit beside a layer's experts


class StepClock(LogitsProcessor):
    """Notes when each output token is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def prepare(model: Path, prepared: Path) -> None:
    """Save a checkpoint as transformers keeps it in memory."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(
        prepared, save_original_format=False, max_shard_size="2GB"
    )


def load(prepared: Path) -> Any:
    """The model, with all but its norms on disk."""
    config: Any = AutoConfig.from_pretrained(prepared)
    layers = [f"model.layers.{layer}.{part}" for layer in range(config.num_hidden_layers) for part in PARTS]
    device_map = dict.fromkeys(("model.embed_tokens", *layers, "lm_head"), "disk")
    device_map |= dict.fromkeys(("model.norm", "model.rotary_emb"), "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(
        prepared,
        dtype=torch.bfloat16,
        device_map=device_map,
        offload_folder=prepared / "unused",
        attn_implementation="sdpa",
        experts_implementation="eager",
    )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(),))
    return model


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One batch from beginning to end."""
    model = load(options.prepared)
    rng = random.Random(0)
    vocabulary = model.config.vocab_size
    ids = torch.tensor(
        [[rng.randrange(vocabulary) for _ in range(options.input_tokens)] for _ in range(options.batch_size)]
    )
    steps = min(options.steps or options.output_tokens, options.output_tokens)
    piece = max(1, PREFILL_TOKENS // options.batch_size)
    clock = StepClock()
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            do_sample=False,
            logits_processor=[clock],
            prefill_chunk_size=piece if piece < options.input_tokens else None,
        )
    prefill = clock.times[0] - begin
    taken = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    seconds = prefill + sum(taken) + (options.output_tokens - steps) * median(taken)
    return {
        "batch_size": options.batch_size,
        "prefill_seconds": prefill,
        "step_seconds": median(taken),
        "steps": steps,
        "output_tokens_per_second": options.batch_size * options.output_tokens / seconds,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prepared", type=Path, required=True)
    for name in ("--batch-size", "--input-tokens", "--output-tokens", "--steps"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.model, options.prepared)
    else:
        print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
