"""What stays for the whole run, of what there is room for."""

from collections import Counter
from collections.abc import Iterator, Sequence

from klotski.core import Block, Residents
from klotski.planner.facts import ModelFacts
from klotski.planner.terms import Wishes

__all__ = ["choose_residents", "first_blocks", "placement_order", "placement_reason"]


def placement_order(facts: ModelFacts, wishes: Wishes, tokens: float = 1) -> list[Block]:
    """All blocks, those first that are worth most in memory to sweeps of so many tokens.

    Every sweep uses every dense part, so a byte spent there saves a byte in each. Experts follow evenly over
    the layers, because what a layer has to wait for can hide behind the one before alone; or, with
    `Residents.usage`, by the probability that a sweep uses them, for each byte, and evenly among equals.
    """
    if wishes.residents is not Residents.usage or facts.shares is None:
        return sorted(facts.block_bytes, key=lambda block: (block.expert, spread(block.layer)))

    def value(block: Block) -> float:
        use = 1 - (1 - facts.share(block)) ** tokens
        return float(f"{use / max(1, facts.stored_bytes[block]):.3g}")  # what differs by less is equal

    ranks: Counter[tuple[int, float]] = Counter()
    keys: dict[Block, tuple[bool, float, int, int]] = {}
    for block in sorted(facts.block_bytes, key=lambda block: block.expert):
        worth = value(block)
        keys[block] = (not block.is_dense, -worth, ranks[block.layer, worth], spread(block.layer))
        ranks[block.layer, worth] += 1
    return sorted(facts.block_bytes, key=keys.__getitem__)


def spread(layer: int) -> int:
    """Where a layer comes among all, so that however few come first, they are spread evenly (van der Corput)."""
    return int(f"{layer:016b}"[::-1], 2)


def choose_residents(facts: ModelFacts, order: Sequence[Block], room: int, *, with_experts: bool) -> Iterator[Block]:
    """Blocks that fit into `room`, in this order; `with_experts`: not dense parts alone."""
    for block in order:
        if facts.block_bytes[block] <= room and (with_experts or block.is_dense):
            room -= facts.block_bytes[block]
            yield block


def first_blocks(facts: ModelFacts, order: Sequence[Block], room: int) -> list[Block]:
    """As many blocks as there is room for, in this order."""
    taken = []
    for block in order:
        room -= facts.block_bytes[block]
        if room < 0:
            break
        taken.append(block)
    return taken


def placement_reason(facts: ModelFacts, wishes: Wishes) -> str:
    """Why these blocks stay, in half a sentence."""
    if wishes.all_stay:
        return "there is no file to stream from"
    match wishes.residents:
        case Residents.none:
            return "nothing stays, as set"
        case Residents.lru | Residents.lfu:
            return "dense parts; what is left over is slots, a cache of experts"
        case Residents.usage if facts.shares is None:
            return "dense parts, then experts evenly: no earlier run has said which of them are used"
        case Residents.usage:
            return "dense parts, then the experts that earlier runs used most"
    return "dense parts, then experts evenly over the layers"
