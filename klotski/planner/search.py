"""The search: every candidate that fits is given its expected time, and the fastest wins.

Slots come last: for each n, batch size and size of a prefill, one look at what it could reach with the most
slots, and the room of the fewest, says whether it may still win. That leaves out nothing: more slots, and
more room, are never slower.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

from klotski.planner.costs import BUSY_SLOTS, Costs, Forecast, Pace
from klotski.planner.memory import (
    KV_SLOTS,
    Candidate,
    fits_below,
    host_cache,
    lent_slots,
    needed,
    too_small,
    too_small_below,
    window_places,
)
from klotski.planner.streaming import Streaming, Using
from klotski.planner.terms import Terms

__all__ = ["ROUGH_SIZES", "Appraiser", "candidates", "slot_counts"]

SIZES = (*range(1, 128), *range(128, 512, 16), 512)  # of a batch, in sequences
ROUGH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST_BATCHES = 16  # the paper's largest group has 15
PREFILL_TOKENS = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 256, 128, 64)  # of one sweep
MOST_PROMPTS = 65536  # tokens of prompts in one sweep, of one batch or several
TOGETHER = (1, 2, 4, MOST_BATCHES)  # batches that read their prompts in one sweep
SLOT_SHARES = (0, 1, 2, 4, 8, 12, 16, 24)  # of a layer's experts, in 32nds, for the disk to run ahead
ROUNDING = 1 + 1e-9  # what is equal but for this may come first among equals


class Outlook(NamedTuple):
    """What a choice of n, batch size and prefill could reach; `choice` has the fewest slots."""

    least: float  # seconds
    choice: Candidate
    need: int
    pace: Pace


class Appraiser:
    """Says what a candidate needs and what it takes, on given terms. `room`: bytes for what it needs."""

    def __init__(self, terms: Terms, sizes: Sequence[int] = SIZES) -> None:
        """`sizes`: of batches to choose from."""
        self.terms = terms
        self._sizes = sizes
        window = window_places(terms.facts, terms.budget.host)
        self._costs = Costs(terms.facts, terms.demand, terms.rates, terms.wishes, terms.budget.host, window=window)
        # By the bytes of keys and values below, and whether attention goes there.
        self._moving: dict[tuple[int, bool], Costs] = {}
        self._paces: dict[tuple[int, int, int], Pace] = {}  # wherever keys and values are
        self.room = terms.budget.nbytes - (terms.facts.weight_bytes if terms.wishes.all_stay else 0)
        self._streaming = Streaming(terms.facts, terms.wishes)

    def need(self, choice: Candidate) -> int:
        """Bytes without which it does not work, weights that have to stay apart."""
        return sum(needed(self.terms, choice).values())

    def costs(self, choice: Candidate) -> Costs:
        """What its workload costs."""
        if not choice.kv_slots:
            return self._costs
        key = cache, attends_below = host_cache(self.terms, choice), choice.attends_below
        if key not in self._moving:
            below = self.terms.budget.host - cache
            self._moving[key] = replace(self._costs, below=below, kv_moves=True, attends_below=attends_below)
        return self._moving[key]

    def using(self, choice: Candidate) -> Using:
        """What its sweeps use, with what it leaves over of the budget."""
        return self._streaming.using(self.terms.budget.nbytes - self.need(choice), choice.expert_slots)

    def pace(self, choice: Candidate) -> Pace:
        """How it spreads the workload over sweeps."""
        n_batches, batch_size, tokens, *_ = choice
        key = n_batches, batch_size, tokens
        if key not in self._paces:
            self._paces[key] = self._costs.pace(self.terms.demand.group(n_batches, batch_size), tokens)
        return self._paces[key]

    def slots(self, choice: Candidate) -> tuple[int, int]:
        """Its slots for experts, and those that it lends."""
        return choice.expert_slots, lent_slots(self.terms.facts, choice.prefill_tokens)

    def forecast(self, choice: Candidate) -> Forecast:
        """What it is expected to come to."""
        return self.costs(choice).forecast(self.pace(choice), self.slots(choice), self.using(choice))

    def best(self) -> Candidate:
        """The fastest that fits; among equals the one with the smallest numbers.

        Raises:
            BudgetError: none fits; the message says which budget would do.
        """
        counts = slot_counts(self.terms)
        firsts = [(self.need(choice), choice) for choice in candidates(self.terms, counts[:1], self._sizes)]
        small = [each for each in firsts if each[0] <= self.room]
        if not small:
            raise too_small(*min(firsts), self.terms)
        fitting = [(need, choice) for need, choice in small if fits_below(self.terms, choice, need)]
        if not fitting:
            raise too_small_below(min(small)[1], self.terms)
        best, fastest = min(firsts)[1], math.inf
        for outlook in sorted(self._outlook(need, choice, counts[-1]) for need, choice in fitting):
            if outlook.least > fastest * ROUNDING:
                break
            fastest, best = min((fastest, best), *self._with_slots(outlook, counts))
        return best

    def _with_slots(self, outlook: Outlook, counts: Sequence[int]) -> Iterator[tuple[float, Candidate]]:
        """The candidates with as many slots as fit, and the seconds of each."""
        for count in counts:
            need = outlook.need + (count - counts[0]) * self.terms.facts.largest_expert
            choice = outlook.choice._replace(expert_slots=count)
            if need <= self.room and fits_below(self.terms, choice, need):
                yield self._seconds(choice, need, outlook.pace), choice

    def _outlook(self, need: int, choice: Candidate, most: int) -> Outlook:
        pace = self.pace(choice)
        return Outlook(self._seconds(choice._replace(expert_slots=most), need, pace), choice, need, pace)

    def _seconds(self, choice: Candidate, need: int, pace: Pace) -> float:
        using = self._streaming.using(self.terms.budget.nbytes - need, choice.expert_slots)
        return self.costs(choice).workload(pace, self.slots(choice), using)


def candidates(terms: Terms, slots: Sequence[int], sizes: Sequence[int] = SIZES) -> Iterator[Candidate]:
    """All combinations that are worth a thought, with each of these counts of slots and sizes of a batch.

    One batch reads its prompts at a time. What several leave in the heap while they wait lies between what they
    have given back, in holes that the C library does not fill.
    """
    demand, wishes = terms.demand, terms.wishes
    requests = len(demand.lengths)
    most = -(-requests // (wishes.n_batches or 1))
    sizes = [wishes.batch_size] if wishes.batch_size else sorted({min(most, size) for size in sizes})
    counts = [wishes.n_batches] if wishes.n_batches else range(1, MOST_BATCHES + 1)
    for size, n in product(sizes, counts):
        if not wishes.n_batches and n > 1 and (n - 1) * size >= requests:
            continue  # the last batch would be empty
        for tokens, count, places in product(prefills(terms, n, size), slots, ways_of_caches(terms)):
            yield Candidate(n, size, tokens, count, *places)


def ways_of_caches(terms: Terms) -> list[tuple[int, bool]]:
    """Slots for keys and values that move (0: they are on the device), and whether attention goes to them instead.

    What was wished for, if there is a choice: without a GPU, or without layers of full attention, there is none.
    """
    if terms.rates.link is None or not terms.facts.kv_bytes:
        return [(0, False)]
    places = [(0, False), (KV_SLOTS, False), (KV_SLOTS, True)]
    if (moves := terms.wishes.kv_moves) is not None:
        places = [place for place in places if bool(place[0]) == moves]
    attends = terms.wishes.attends_below if terms.facts.attends_anywhere else False
    return [place for place in places if not place[0] or attends in (None, place[1])]


def prefills(terms: Terms, n: int, batch_size: int) -> list[int]:
    """Tokens of prompts in one sweep: all of one batch's, pieces of some sizes, or what was wished for.

    On a GPU, whose memory has no holes, those of several batches as well: each sweep brings all weights, and reads
    prompts for as long as that takes without costing anything.
    """
    group, on_gpu = partial(terms.demand.group, batch_size=batch_size), terms.rates.link is not None
    prompts = group(1).prompt_tokens
    least = prompts if terms.facts.reads_whole_prompts else batch_size
    most = n if on_gpu else 1
    if wish := terms.wishes.prefill_tokens:
        return [max(least, min(wish, group(most).prompt_tokens))]
    whole = [group(count).prompt_tokens for count in sorted({min(most, count) for count in TOGETHER})]
    largest = MOST_PROMPTS if on_gpu else PREFILL_TOKENS[0]
    return [
        *(tokens for tokens in whole if tokens <= largest),
        *(tokens for tokens in PREFILL_TOKENS if least <= tokens < prompts),
    ] or [least]


def slot_counts(terms: Terms) -> list[int]:
    """Slots for experts to choose from, fewest first: as many as wished for, and no more than there are experts.

    A whole layer that is brought ahead has to find room.
    """
    experts = max(terms.facts.expert_counts)
    if wish := terms.wishes.expert_slots:
        counts = {wish}
    elif terms.wishes.prefetch.is_whole:
        counts = {max(BUSY_SLOTS, experts)}
    else:
        counts = {BUSY_SLOTS + -(-experts * part // 32) for part in SLOT_SHARES}
    return sorted({min(count, max(BUSY_SLOTS, terms.facts.num_experts)) for count in counts})
