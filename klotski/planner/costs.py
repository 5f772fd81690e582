"""How long a workload is expected to take: what a planner compares its candidates by.

What the machine does in a second is said by `Rates`; the constants here are what was measured beside
them, and do not follow from them.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from klotski.core import STEP, Misses, OnDemand, Prefetch, Products
from klotski.planner.demand import Demand, Group
from klotski.planner.facts import ModelFacts
from klotski.planner.memory import SCORED
from klotski.planner.rates import NOMINAL, Rates
from klotski.planner.streaming import Use, Using
from klotski.planner.terms import OPEN, Wishes

__all__ = ["BUSY_SLOTS", "CROWDED", "SHARED", "Costs", "Forecast", "Pace", "Seconds", "Work"]

BUSY_SLOTS = 2  # for experts
TURN_OPERATIONS = 2  # of a batch in a layer: up to its experts, and behind them
SHARED = 0.15  # of the time in which both go on, lost to each other: memory's bandwidth, and the cores themselves
BEGUN = 0.02  # of arithmetic on a GPU that transfers hide, lost all the same: one thread begins both; assumed
CROWDED = 0.15  # of a read's time at the sampled rate, that it takes longer while arithmetic goes on
UNEVEN = 0.25  # of the same, waited for with a single slot to spare


class Work(NamedTuple):
    """What one sweep has to do, in the mean: `sampled` sequences are given a token and look at `context` others.

    `pairs`: of a prompt's tokens, that look at each other in one layer.
    """

    tokens: float
    sampled: float
    batches: float
    context: float
    pairs: float = 0.0


class Pace(NamedTuple):
    """How a workload is spread over sweeps: `reading` of them read prompts as well."""

    sweeps: float
    reading: float
    reads: Work
    decodes: Work


class Seconds(NamedTuple):
    """Of one sweep, in the mean. The lanes work side by side, so `total` is not their sum."""

    total: float
    disk: float
    attention: float
    cache: float  # on its way into attention: keys and values of earlier tokens
    experts: float
    head: float
    below: float = 0.0  # of the cores beside a GPU, for experts that they compute where these lie

    @property
    def arithmetic(self) -> float:
        """What the compute lane is busy for."""
        return self.attention + self.cache + self.experts + self.head


class Forecast(NamedTuple):
    """What a plan is expected to come to: all seconds, and the mean sweep."""

    seconds: float
    sweeps: float
    nbytes: float  # that a sweep reads from disk
    sweep: Seconds


@dataclass(frozen=True)
class Costs:
    """Of a workload at some rates, as it is wished for.

    `below`: bytes of weights that lie below the device tier in CPU memory, where that is a tier of its own. `kv_moves`:
    keys and values lie there, too, and come to the device and go back in each layer; `attends_below`: of sequences that
    have read their prompts they stay, and the cores look at them. `window`: blocks that the disk may be ahead of the
    device by.
    """

    facts: ModelFacts
    demand: Demand
    rates: Rates = NOMINAL
    wishes: Wishes = OPEN
    below: int = 0
    kv_moves: bool = False
    attends_below: bool = False
    window: int = 0

    @property
    def overlaps(self) -> bool:
        """Whether blocks arrive while others are computed."""
        return self.wishes.on_demand is OnDemand.eager

    @property
    def shared(self) -> float:
        """Of the time in which blocks arrive while experts are computed, the share that is lost."""
        return SHARED if self.rates.link is None else 0.0  # a GPU computes from its own memory

    def arrival(self, using: Using) -> float:
        """Bytes a second at which blocks that do not stay arrive: from disk, or from CPU memory and what it lacks."""
        return self._arrival(self._from_disk(using))

    def _arrival(self, from_disk: float) -> float:
        rates = self.rates
        if rates.link is None:
            return rates.disk
        return min(rates.link, rates.disk / from_disk) if from_disk else rates.link

    def _from_disk(self, using: Using) -> float:
        """Of the bytes that come, the share that CPU memory below a GPU has no room for.

        If it has not, it gives up room for the window as well. Whole blocks move: one more may be left over.
        """
        if self.rates.link is None:
            return 1.0
        streamed = using(math.inf).nbytes
        largest = max(self.facts.largest_expert, self.facts.largest_dense)
        room = self.below if streamed + largest <= self.below else max(0, self.below - self.window * largest)
        return max(0.0, 1 - room / streamed) if streamed else 0.0

    def _arriving(self, nbytes: float, work: Work, read: float) -> float:
        """Seconds in which so many bytes of blocks arrive, with the keys and values that come the same way.

        `read`: bytes of these blocks that come from disk.
        """
        rates = self.rates
        if rates.link is None:
            return nbytes / rates.disk
        kv = work.context * self.facts.kv_bytes if self.kv_moves and not self.attends_below else 0.0
        return max((nbytes + kv) / rates.link, read / rates.disk)

    def leaving(self, work: Work) -> float:
        """Seconds in which new keys and values go back."""
        if not self.kv_moves or self.rates.back is None:
            return 0.0
        return work.tokens * self.facts.kv_bytes / self.rates.back

    @cached_property
    def start(self) -> float:
        """Seconds that a block takes longer to arrive if it is the only one under way."""
        return self.rates.start if self.rates.link is None else 0.0

    def workload(self, pace: Pace, slots: tuple[int, int], using: Using) -> float:
        """Seconds for all requests. `slots`: for experts, and lent ones beside them in sweeps without prompts."""
        reads = self.sweep(pace.reads, slots[0], using).total
        decodes = self.sweep(pace.decodes, sum(slots), using).total
        return pace.reading * reads + (pace.sweeps - pace.reading) * decodes

    def forecast(self, pace: Pace, slots: tuple[int, int], using: Using) -> Forecast:
        """The same, with what it is made of."""
        share = pace.reading / pace.sweeps
        both = (share, pace.reads, slots[0]), (1 - share, pace.decodes, sum(slots))
        nbytes = sum(weight * self._coming(work, using)[0].nbytes for weight, work, _ in both)
        sweeps = [[weight * part for part in self.sweep(work, count, using)] for weight, work, count in both]
        mean = Seconds(*(sum(parts) for parts in zip(*sweeps, strict=True)))
        return Forecast(mean.total * pace.sweeps, pace.sweeps, nbytes, mean)

    def pace(self, group: Group, prefill_tokens: int) -> Pace:
        """All requests, in groups as heavy as the heaviest.

        Batches read their prompts one after the other, so many pieces each, or several at a time; then each
        decodes, beside what others do. A batch may begin when those before it have read their prompts, and one of
        the group has ended. The smaller the pieces, the more evenly are the sweeps that read prompts (bound by
        arithmetic) spread over those that only decode (bound by the disk), and the longer it takes until all batches
        are at work, and until the last has ended.
        """
        facts, demand = self.facts, self.demand
        batch_size, in_group = group.batch_size, -(-group.sequences // group.batch_size)
        batches = -(-len(demand.lengths) // batch_size)
        prompts = group.prompt_tokens / in_group
        spared = facts.spared_flops / max(1, facts.dense_flops + facts.expert_flops)
        pieces = max(1, math.ceil(prompts / batch_size / max(1, prefill_tokens // batch_size)))
        at_once = max(1, min(in_group, int(prefill_tokens / prompts)))
        life = pieces + group.output_tokens - 1
        waves, last = divmod(batches - 1, in_group)
        starts = -(-in_group // at_once) * pieces  # sweeps in which a group begins
        if life < starts:  # places in the group are free again before prompts have their turn: no batch waits for one
            waves, last = 0, batches - 1
        begun = last // at_once * pieces  # before the last batch
        sweeps = waves * life + begun + life
        reading = waves * starts + begun + pieces
        decoding = len(demand.lengths) * (group.output_tokens - 1) / sweeps  # tokens of a sweep, on average
        prompt = batches * prompts / reading * (1 - spared)
        context = decoding * max(0.0, group.context_tokens / group.sequences - group.output_tokens / 2)
        work = Work(decoding, decoding, batches * life / sweeps, context)
        pairs = batches * prompts * prompts / batch_size / 2 / reading  # of prompts as long as the heaviest batch's
        return Pace(sweeps, reading, work._replace(tokens=decoding + prompt, pairs=pairs), work)

    def sweep(self, work: Work, expert_slots: int, using: Using) -> Seconds:
        """One sweep: the disk's time or the arithmetic's, whichever is longer; their sum, if nothing overlaps.

        The disk idles while a layer's attention runs, once all slots are full; before the first layer's,
        the head runs as well. Of a sublayer at a time, experts arrive while attention is computed, and dense parts
        while experts are. Two slots are no help: one is being computed from, and one is being filled.
        Neither takes equally long each time, so that one waits for the other now and then: the more slots
        between them, the less. With a single slot they take turns.
        """
        use, read, below = self._coming(work, using)
        attention, cache, head = self.attention(work), self.cache(work), self.head(work)
        experts = self.experts(work.tokens, self.products(work, use, using))
        looking = self.looking(attention, cache, work)
        arithmetic, arrivals = looking + experts + head, self._arriving(use.nbytes, work, read)
        if not self.overlaps or expert_slots < BUSY_SLOTS:
            waits = use.nbytes / self.facts.mean_expert
            arrivals, experts = arrivals + waits * self.start, experts + waits * self.rates.wake
            arithmetic += waits * self.rates.wake
            return Seconds(max(arrivals, below) + arithmetic, arrivals, attention, cache, experts, head, below)
        lost = (self.shared + UNEVEN / (expert_slots - 1)) * min(arrivals, experts)
        if self.rates.link is not None:
            lost += BEGUN * min(arrivals, arithmetic)
        if self.wishes.prefetch is Prefetch.sublayer:
            dense = use.dense / max(1.0, use.nbytes) * arrivals
            total = max(looking, arrivals - dense) + max(experts, dense) + head
        else:
            arrival = self._arrival(read / max(1.0, use.nbytes))
            ahead = (expert_slots - BUSY_SLOTS) * self.facts.mean_expert / arrival
            link = self.rates.link
            if self.wishes.prefetch is not Prefetch.none and link is not None and arrival < link:
                # The disk, which sets the pace, reads on into CPU memory.
                ahead += self.window * self.facts.mean_expert / self.rates.disk
            layers = self.facts.num_layers
            layer = looking / layers
            idle = (layers - 1) * max(0.0, layer - ahead) + max(0.0, layer + head - ahead)
            total = max(arrivals + idle, arithmetic, looking + below)
        return Seconds(max(total + lost, self.leaving(work)), arrivals, attention, cache, experts, head, below)

    @property
    def moving(self) -> float:
        """Seconds in which an expert comes into a GPU from CPU memory; endless where there is none."""
        return self.facts.largest_expert / self.rates.link if self.rates.link else math.inf

    @property
    def below_turn(self) -> float:
        """Seconds of an expert that the cores beside a GPU compute where it lies, whatever its tokens."""
        return self.rates.step + self.facts.largest_expert / self.rates.cores_product

    @property
    def below_token(self) -> float:
        """And for each token."""
        return self.facts.expert_flops / self.facts.choices / self.rates.cores

    def _coming(self, work: Work, using: Using) -> tuple[Use, float, float]:
        """What a sweep uses, but for what cores compute below a GPU; bytes that come from disk; the cores' seconds.

        They begin when a layer's routers have spoken, and as many experts are left to them as let them end with what
        moves meanwhile, in the mean.
        """
        use, from_disk = using(work.tokens), self._from_disk(using)
        read = from_disk * use.nbytes
        if self.wishes.misses is Misses.move or self.rates.link is None or not use.experts:
            return use, read, 0.0
        tokens = work.tokens * self.facts.choices / use.computed
        one = self.below_turn + tokens * self.below_token
        looking = self.looking(self.attention(work), self.cache(work), work)
        sooner = self._arriving(use.nbytes, work, 0.0) - looking
        lying = (1 - from_disk) * use.experts / self.facts.mean_expert
        left = max(0.0, min(sooner / (self.moving + one), lying))
        less = use._replace(experts=use.experts - left * self.facts.mean_expert, computed=use.computed - left)
        return less, read, left * one

    def looking(self, attention: float, cache: float, work: Work) -> float:
        """Seconds of all layers' attention: cores that look at keys and values do so while other batches are computed.

        The first batch's turn, or the last one's, is what they wait for, or what waits for them.
        """
        if not self.attends_below:
            return attention + cache
        return max(attention, cache + attention / max(1.0, work.batches))

    def products(self, work: Work, use: Use, using: Using) -> float:
        """Products of experts: one for each that the group uses, or that a batch does."""
        if self.wishes.products is Products.group or work.batches < 1:
            return use.computed
        return work.batches * using(work.tokens / work.batches).computed

    def attention(self, work: Work) -> float:
        """Seconds of all layers' dense parts: attention, router, shared experts."""
        flops = work.tokens * self.facts.dense_flops + self.facts.num_layers * work.pairs * self.facts.pair_flops
        products = flops / (self.rates.dense_share * self.rates.compute)
        turn = self.rates.turn + TURN_OPERATIONS * self.rates.between
        return products + self.facts.num_layers * work.batches * turn

    def cache(self, work: Work) -> float:
        """Seconds in which attention reads keys, values and states of earlier tokens in all layers and expands them."""
        memory = self.rates.below if self.attends_below else self.rates.memory
        expanding = self.facts.context_flops / (self.rates.dense_share * self.rates.compute)
        staying = self.facts.staying_bytes(work.sampled, work.context) / self.rates.memory
        return work.context * (self.facts.kv_bytes / memory + expanding) + staying

    def experts(self, tokens: float, count: float) -> float:
        """Seconds of so many experts, of all layers, over so many tokens, spread in whatever way."""
        rounding = (STEP - 1) / 2 * count  # where an expert has many; where it has few, products are as small as can be
        return self.multiplying(max(STEP * count, tokens * self.facts.choices + rounding), count, count)

    def multiplying(self, rows: float, products: float, turns: float) -> float:
        """Seconds of products of experts with so many rows in all; `turns`: fewer, if several have one turn."""
        arithmetic = rows * self.facts.expert_flops / self.facts.choices / self.rates.compute
        weights = products * self.facts.largest_expert / self.rates.product
        return arithmetic + weights + turns * (self.rates.step + self.rates.between)

    def head(self, work: Work) -> float:
        """Seconds in which next tokens are scored; its weights, two bytes each, are read once for some batches."""
        readings = min(work.batches, max(1.0, work.sampled / SCORED))
        flops, rates = self.facts.head_flops, self.rates
        return work.sampled * flops / rates.compute + readings * flops / rates.memory
