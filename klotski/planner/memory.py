"""What a candidate needs of memory, by use, and the refusal where nothing fits."""

from typing import NamedTuple

from klotski.errors import BudgetError
from klotski.planner.demand import Demand, Group
from klotski.planner.facts import ModelFacts
from klotski.planner.terms import Terms
from klotski.units import format_size

__all__ = [
    "DENSE_SLOTS",
    "KV_SLOTS",
    "SCORED",
    "WINDOW",
    "Candidate",
    "fits_below",
    "host_cache",
    "in_flight",
    "kv_places",
    "lent_slots",
    "needed",
    "scored_batches",
    "too_small",
    "too_small_below",
    "window_bytes",
    "window_places",
]

DENSE_SLOTS = 2
KV_SLOTS = 3  # where keys and values move: one is used, one comes, and one goes back
WINDOW = 16  # blocks of CPU memory that what comes from disk goes through on its way into a GPU, at least
WINDOW_SHARE = 8  # parts of CPU memory, one of which it may take to hold as much as a whole layer
PAGE = 4096  # bytes
SCORED = 128  # sequences whose next tokens are scored at once: more give the head's product no speed
HEAP = 1.4  # bytes of the heap for each byte in use


class Candidate(NamedTuple):
    """One way to spend the budget. `kv_slots`: for what a batch keeps of one layer; 0: all of it is on the device.

    `attends_below`: once prompts have been read, keys and values stay in CPU memory, and the cores look at them.
    """

    n_batches: int
    batch_size: int
    prefill_tokens: int
    expert_slots: int
    kv_slots: int = 0
    attends_below: bool = False


def needed(terms: Terms, choice: Candidate) -> dict[str, int]:
    """Bytes by use, residents and cache apart."""
    facts = terms.facts
    group = terms.demand.group(choice.n_batches, choice.batch_size)
    tokens = in_flight(terms.demand, choice)
    turn = min(choice.prefill_tokens, group.batch_size * group.longest)  # tokens of one batch's turn, at most
    return {
        "runtime": terms.budget.runtime,
        "fixed": facts.fixed_bytes,
        "staging": facts.staging_bytes,
        "dense_slots": DENSE_SLOTS * facts.largest_dense,
        "expert_slots": choice.expert_slots * facts.largest_expert,
        "kv_cache": kv_cache(terms, choice),
        "layer_states": layer_states(facts, group, choice.prefill_tokens),
        "workspace": tokens * facts.workspace_bytes + facts.rows_bytes + min(tokens, facts.rows) * facts.row_bytes,
        "activations": activation_bytes(facts, group, tokens, turn),
    }


def kv_cache(terms: Terms, choice: Candidate) -> int:
    """Bytes of full attention's keys and values on the device: all, or slots that one layer's of any batch fit in."""
    if not choice.kv_slots:
        return terms.demand.group(choice.n_batches, choice.batch_size).context_tokens * terms.facts.kv_bytes
    heaviest = terms.demand.group(1, choice.batch_size).context_tokens
    return choice.kv_slots * heaviest * terms.facts.kv_layer_bytes


def layer_states(facts: ModelFacts, group: Group, prefill_tokens: int) -> int:
    """Bytes of the heap for windows of tokens and for states, which are on the device wherever keys and values are.

    A window is a view of what a batch's last step left: until a batch decodes, that is all of the chunk that it has
    read. The batches of one sweep's chunks have not all decoded when those of the next sweep's come.
    """
    chunks = min(group.context_tokens, 2 * prefill_tokens)
    tokens = min(group.context_tokens, group.sequences * facts.window_tokens + chunks)
    return int(HEAP * (tokens * facts.window_bytes + group.sequences * facts.state_bytes))


def kv_places(terms: Terms, choice: Candidate) -> int:
    """Places in CPU memory below a GPU, in each of which keys and values of one batch are; 0: none are there."""
    if not choice.kv_slots:
        return 0
    group = terms.demand.group(choice.n_batches, choice.batch_size)
    return -(-group.sequences // group.batch_size)


def host_cache(terms: Terms, choice: Candidate) -> int:
    """Bytes of keys and values in CPU memory below a GPU: places that those of the heaviest batch fit in."""
    heaviest = terms.demand.group(1, choice.batch_size).context_tokens
    return kv_places(terms, choice) * heaviest * terms.facts.kv_bytes


def window_places(facts: ModelFacts, host: int) -> int:
    """Blocks of CPU memory, of so many bytes, that blocks from disk go through: a layer's, if that is not too much."""
    afforded = host // WINDOW_SHARE // max(facts.largest_expert, facts.largest_dense)
    return max(WINDOW, min(max(facts.expert_counts) + 1, afforded))


def window_bytes(facts: ModelFacts, host: int) -> int:
    """Bytes that these take."""
    return window_places(facts, host) * max(facts.largest_expert, facts.largest_dense)


def fits_below(terms: Terms, choice: Candidate, need: int) -> bool:
    """Whether CPU memory below a GPU has room for keys and values, and for the blocks that do not stay, or a window.

    `need`: bytes of the device without which the choice does not work.
    """
    facts, budget = terms.facts, terms.budget
    if terms.rates.link is None:
        return True
    room = budget.host - host_cache(terms, choice)
    # Whole blocks stay: less than the largest of them finds no room any more.
    whole = budget.nbytes - need - max(facts.largest_expert, facts.largest_dense)
    staying = max(0, whole) if terms.wishes.keeps_experts else 0
    return room >= min(window_bytes(facts, budget.host), max(0, facts.weight_bytes - staying))


def activation_bytes(facts: ModelFacts, group: Group, tokens: int, turn: int) -> int:
    """Bytes of the heap for `tokens` that wait in the middle of a layer, of which one batch's turn has `turn`.

    A batch is at work in a layer, or behind the last one, where its next tokens are chosen.
    """
    turn = max(turn, group.batch_size)
    slice_tokens = min(turn, max(facts.slice_tokens, -(-turn // group.batch_size))) if facts.slice_tokens else turn
    at_work = slice_tokens * facts.attention_bytes + turn * group.longest * facts.score_bytes
    at_work += min(group.batch_size, slice_tokens) * group.longest * facts.expanded_bytes
    scored = min(group.sequences, scored_batches(group.batch_size) * group.batch_size)
    logits = scored * facts.scores_bytes + group.batch_size * facts.logits_bytes
    return int(HEAP * (max(at_work, logits) + tokens * facts.waiting_bytes))


def scored_batches(batch_size: int) -> int:
    """Batches of this size whose next tokens are scored at once."""
    return max(1, SCORED // batch_size)


def lent_slots(facts: ModelFacts, prefill_tokens: int) -> int:
    """Slots that find room, from a page boundary on, in what prompts need of the workspace; no more than are of use."""
    spare = max(0, prefill_tokens * facts.spare_bytes - PAGE)
    return min(spare // max(1, facts.largest_expert), max(facts.expert_counts))


def in_flight(demand: Demand, choice: Candidate) -> int:
    """Tokens that go through the layers in one sweep, at most: prompts, and one of each sequence that decodes."""
    return choice.prefill_tokens + demand.group(choice.n_batches, choice.batch_size).sequences


def too_small_below(choice: Candidate, terms: Terms) -> BudgetError:
    """The refusal where CPU memory below a GPU is what is missing, with as much as would do."""
    facts, budget = terms.facts, terms.budget
    places = WINDOW * max(facts.largest_expert, facts.largest_dense)
    cache = host_cache(terms, choice)
    need = places + cache
    kept = f" and keys and values {format_size(cache)}" if cache else ""
    reason = f" ({budget.host_reason})" if budget.host_reason else ""
    return BudgetError(
        f"hw.host_memory={format_size(budget.host)}{reason} is too small: blocks on their way from disk into the GPU "
        f"take {format_size(places)} of it{kept}; set hw.host_memory={(need // 100_000 + 1) / 10}MB or more"
    )


def too_small(need: int, choice: Candidate, terms: Terms) -> BudgetError:
    """The refusal, with a budget that would do. `need`: of the least candidate, weights that have to stay apart."""
    budget, facts = terms.budget, terms.facts
    weights = facts.weight_bytes if terms.wishes.all_stay else 0
    need += weights
    n, size = choice.n_batches, choice.batch_size
    runtime = f"the interpreter and torch ({format_size(budget.runtime)}), " if budget.runtime else ""
    stay = f"weights that have no file to be streamed from ({format_size(weights)}), " if weights else ""
    # Rounded up, and never to the need itself: read back through a float, that may be a byte short.
    return BudgetError(
        f"hw.device_memory={format_size(budget.nbytes)} ({budget.reason}) is too small: {runtime}{stay}slots for the "
        f"largest blocks ({format_size(facts.largest_dense)} and {format_size(facts.largest_expert)}), "
        f"what belongs to no layer, and {n} batch{'es' if n > 1 else ''} of {size} need {format_size(need)}; "
        f"set hw.device_memory={(need // 100_000 + 1) / 10}MB or more"
    )
