"""How long a group's life is expected to take: what a planner compares its candidates by.

Nominal rates, of a small machine with an NVMe drive: a plan shall not depend on how busy the
machine was in the second in which it was made. What they decide is a ratio, bytes moved for
arithmetic done, and a plan that is best at this one is near the best at others.
"""

from klotski.planner.facts import Demand, Group, ModelFacts

__all__ = ["BUSY_SLOTS", "group_seconds"]

BUSY_SLOTS = 2  # for experts
DISK = 2e9  # bytes a second
ARITHMETIC = 4e11  # floating-point operations a second
TURN = 4e-3  # seconds of a batch's turn in a layer, whatever its size
STEP = 5e-4  # seconds of an expert's turn, likewise
MEMORY = 2e10  # bytes of weights a second on their way into a product, however few its rows
SHARED = 0.15  # of the time in which both go on, lost to each other: memory's bandwidth, and the cores themselves
UNEVEN = 0.25  # of the same, waited for with a single slot to spare


def group_seconds(
    facts: ModelFacts, demand: Demand, group: Group, prefill_tokens: int, expert_slots: int, streamed: float
) -> float:
    """Seconds for a request of a group: its share of the group's prefill and decoding.

    One batch reads its prompts at a time; the others may decode in the same sweep, which counts as theirs.
    """
    prompts = group.prompt_tokens
    sweeps = max(1.0, prompts / prefill_tokens)
    prefill = sweeps * sweep_seconds(facts, group, prompts / sweeps, 1, expert_slots, streamed)
    batches = group.sequences / group.batch_size
    decode = sweep_seconds(facts, group, group.sequences, batches, expert_slots, streamed)
    return (prefill + (demand.output_tokens - 1) * decode) / group.sequences


def sweep_seconds(
    facts: ModelFacts, group: Group, tokens: float, batches: float, expert_slots: int, streamed: float
) -> float:
    """Seconds of one sweep of so many batches: the disk's or the arithmetic's, whichever takes longer.

    The disk idles while a layer's attention runs, once all slots are full. Two of them are no help:
    one is being computed from, and one is being filled. Neither takes equally long each time, so
    that one waits for the other now and then: the more slots between them, the less.
    """
    attention = tokens * facts.dense_flops / ARITHMETIC + batches * facts.num_layers * TURN
    turn = STEP + facts.largest_expert / MEMORY
    experts = tokens * facts.expert_flops / ARITHMETIC + facts.num_experts * turn
    arithmetic = attention + experts + group.sequences * facts.head_flops / ARITHMETIC
    ahead = facts.num_layers * (expert_slots - BUSY_SLOTS) * facts.largest_expert / DISK
    reading = streamed / DISK
    lost = (SHARED + UNEVEN / (expert_slots - 1)) * min(reading, experts)
    return max(reading + max(0.0, attention - ahead), arithmetic) + lost
