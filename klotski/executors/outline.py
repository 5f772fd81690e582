"""What a plan and a prediction have to know of a model, and where that is known without opening it.

Opening a model takes torch and transformers, which take longer to load than most predictions to make. Beside the
config of each shape in the package lies its outline, written by `make outlines`; any other model is opened.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from klotski.core import Block
from klotski.planner import ModelFacts

__all__ = ["Outline", "read_outline", "write_outline"]

NAME = "outline.json"
BY_BLOCK = ("block_bytes", "stored_bytes", "expert_counts", "shares")  # of the facts; `layers` says what these are
YES_OR_NO = ("reads_whole_prompts", "attends_anywhere")  # of the facts


@dataclass(frozen=True)
class Outline:
    """A model's sizes and arithmetic, and what else its config says.

    `dtype`: torch's name of the numbers that it is computed in. `context`: the longest sequence that it takes.
    `spares`: whether its last layer only keeps keys and values of tokens that nobody is asked about.
    `router_bytes`: of copies of its routers, which are asked early. `alone_above`: tokens of a sequence beyond which it
    shares no forward with others, 0 for all; `recomputed_at`: tokens that no sequence may grow across; see
    `model/rope.py`.
    """

    facts: ModelFacts
    dtype: str
    vocab_size: int
    context: int | None
    spares: bool
    router_bytes: int
    alone_above: int | None = None
    recomputed_at: int | None = None


class _Layer(msgspec.Struct):
    """`dense`, `expert`: bytes; `count`: of experts, which are all of one size."""

    dense: int
    count: int
    expert: int


class _File(msgspec.Struct, omit_defaults=True):
    """`config`: the digest of the `config.json` that it was made of."""

    config: str
    dtype: str
    vocab_size: int
    context: int | None
    spares: bool
    router_bytes: int
    facts: dict[str, int]
    layers: list[_Layer]
    alone_above: int | None = None
    recomputed_at: int | None = None


def read_outline(folder: Path) -> Outline | None:
    """The outline that lies beside a config; None: there is none, or the config is no longer what it was made of."""
    if not (folder / NAME).is_file():
        return None
    file = msgspec.json.decode((folder / NAME).read_bytes(), type=_File)
    if file.config != digest(folder):
        return None
    nbytes: dict[Block, int] = {}
    for number, layer in enumerate(file.layers):
        nbytes[Block(number)] = layer.dense
        nbytes |= {Block(number, expert): layer.expert for expert in range(layer.count)}
    known: Mapping[str, Any] = file.facts | {name: bool(file.facts[name]) for name in YES_OR_NO}
    facts = ModelFacts(
        block_bytes=nbytes, stored_bytes=nbytes, expert_counts=[layer.count for layer in file.layers], **known
    )
    return Outline(
        facts,
        file.dtype,
        file.vocab_size,
        file.context,
        file.spares,
        file.router_bytes,
        file.alone_above,
        file.recomputed_at,
    )


def write_outline(outline: Outline, folder: Path) -> None:
    """Write a model's outline beside its config."""
    facts = outline.facts
    layers = []
    for layer, count in enumerate(facts.expert_counts):
        sizes = {facts.block_bytes[Block(layer, expert)] for expert in range(count)} or {0}
        assert len(sizes) == 1, f"experts of layer {layer} differ in size"
        layers.append(_Layer(facts.block_bytes[Block(layer)], count, sizes.pop()))
    names = [field.name for field in fields(ModelFacts) if field.name not in BY_BLOCK]
    scalars = {name: int(getattr(facts, name)) for name in names}
    file = _File(
        digest(folder),
        outline.dtype,
        outline.vocab_size,
        outline.context,
        outline.spares,
        outline.router_bytes,
        scalars,
        layers,
        outline.alone_above,
        outline.recomputed_at,
    )
    text = msgspec.json.format(msgspec.json.encode(file), indent=1).decode()
    (folder / NAME).write_text(text + "\n")


def digest(folder: Path) -> str:
    """Of the config in a folder."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
