"""How long a workload is expected to take: what a planner compares its candidates by.

Nominal rates, of a small machine with an NVMe drive: a plan shall not depend on how busy the
machine was in the second in which it was made. What they decide is a ratio, bytes moved for
arithmetic done, and a plan that is best at this one is near the best at others.
"""

import math

from klotski.planner.facts import Demand, Group, ModelFacts

__all__ = ["BUSY_SLOTS", "workload_seconds"]

BUSY_SLOTS = 2  # for experts
DISK = 1.6e9  # bytes a second
ARITHMETIC = 4e11  # floating-point operations a second, of experts and head
DENSE = 3e11  # of a layer's dense part, with all that goes on between its products
TURN = 6e-3  # seconds of a batch's turn in a layer, whatever its size
STEP = 5e-4  # seconds of an expert's turn, likewise
MEMORY = 2e10  # bytes of weights a second on their way into a product, however few its rows
SHARED = 0.15  # of the time in which both go on, lost to each other: memory's bandwidth, and the cores themselves
UNEVEN = 0.25  # of the same, waited for with a single slot to spare


def workload_seconds(
    facts: ModelFacts, demand: Demand, group: Group, prefill_tokens: int, slots: tuple[int, int], streamed: float
) -> float:
    """Seconds for all requests, in groups as heavy as the heaviest. `slots`: for experts, and lent ones beside them.

    Batches read their prompts one after the other, so many pieces each; then each decodes, beside what
    others do. A batch may begin when the one before it has read its prompts, and one of the group has
    ended. The smaller the pieces, the more evenly are the sweeps that read prompts (bound by arithmetic)
    spread over those that only decode (bound by the disk), and the longer it takes until all batches
    are at work, and until the last has ended.
    """
    batch_size, in_group = group.batch_size, -(-group.sequences // group.batch_size)
    batches = -(-len(demand.lengths) // batch_size)
    prompts = group.prompt_tokens / in_group
    spared = facts.spared_flops / max(1, facts.dense_flops + facts.expert_flops)
    pieces = max(1, math.ceil(prompts / prefill_tokens))
    life = pieces + demand.output_tokens - 1
    waves, last = divmod(batches - 1, in_group)
    sweeps = waves * max(life, in_group * pieces) + last * pieces + life
    reading = min(batches * pieces, sweeps)
    decoding = len(demand.lengths) * (demand.output_tokens - 1) / sweeps  # tokens of a sweep, on average
    turns = batches * life / sweeps

    def sweep(tokens: float, expert_slots: int) -> float:
        return sweep_seconds(facts, tokens, decoding, turns, expert_slots, streamed)

    prompt = batches * prompts / reading * (1 - spared)
    return reading * sweep(decoding + prompt, slots[0]) + (sweeps - reading) * sweep(decoding, sum(slots))


def sweep_seconds(
    facts: ModelFacts, tokens: float, sampled: float, batches: float, expert_slots: int, streamed: float
) -> float:
    """Seconds of one sweep of so many batches: the disk's or the arithmetic's, whichever takes longer.

    The disk idles while a layer's attention runs, once all slots are full; before the first layer's,
    the head runs as well, whose weights of two bytes each are read for every batch. Two slots are no
    help: one is being computed from, and one is being filled. Neither takes equally long each time, so
    that one waits for the other now and then: the more slots between them, the less.
    """
    attention = tokens * facts.dense_flops / DENSE / facts.num_layers + batches * TURN
    turn = STEP + facts.largest_expert / MEMORY
    experts = tokens * facts.expert_flops / ARITHMETIC + facts.num_experts * turn
    head = sampled * facts.head_flops / ARITHMETIC + batches * facts.head_flops / MEMORY
    arithmetic = facts.num_layers * attention + experts + head
    ahead = (expert_slots - BUSY_SLOTS) * facts.largest_expert / DISK
    idle = (facts.num_layers - 1) * max(0.0, attention - ahead) + max(0.0, attention + head - ahead)
    reading = streamed / DISK
    lost = (SHARED + UNEVEN / (expert_slots - 1)) * min(reading, experts)
    return max(reading + idle, arithmetic) + lost
