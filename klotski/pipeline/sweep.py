"""The sweep: a group of batches goes through all layers, and each block comes by once.

Layer by layer: every batch goes through attention and router on the dense part; then each expert
is computed once over the tokens of all batches; then every batch leaves the layer. Behind the last
one, the head scores the next tokens of several batches at once.

What is sent for first: experts that routers have asked for, then dense parts, then guesses at hot experts.
Each waits in a queue until a slot is free. Once all experts of a layer are on their way, the next
layer's dense part and guesses follow. Where memory lies between disk and device, what the next layers will
probably use is read there meanwhile, and cores beside that memory may compute experts that lie there and are missing
on the device: some of them, so that these have been computed when the others have been moved.

Written once, against lanes and residency: on thread lanes it runs a model, on virtual lanes it is
the simulator.
"""

from collections import deque
from collections.abc import Collection, Sequence
from functools import partial

from klotski.core import Block, Compute, OnDemand, Operation, Order, PrefetchCount, Routing
from klotski.lanes import Event, Lane
from klotski.pipeline.contracts import Ahead, Batch, Below, Caches, NothingAhead, Worker
from klotski.pipeline.cores_share import CoresShare
from klotski.pipeline.policy import Policy, hottest
from klotski.pipeline.predictors import Predictor
from klotski.weights.residency import Residency

__all__ = ["Sweeper"]


class Sweeper:
    """Drives groups through the layers, one sweep at a time.

    `experts`: how many each layer has, 0 for a layer without. `few`: tokens of a sweep that leaves the
    memory of lent slots alone, at most. `scored`: batches whose next tokens are scored at once. `together`:
    experts that stay are computed at once, when the first of them has its turn. `below`: None, if all that is
    missing is moved.
    """

    def __init__(
        self,
        experts: Sequence[int],
        policy: Policy,
        predictor: Predictor,
        residency: Residency,
        compute: Lane,
        worker: Worker,
        caches: Caches,
        few: int = 0,
        scored: int = 1,
        *,
        together: bool = False,
        ahead: Ahead | None = None,
        below: Below | None = None,
    ) -> None:
        self._experts = experts
        self._blocks = [[Block(layer, expert) for expert in range(count)] for layer, count in enumerate(experts)]
        self._few = few
        self._scored = scored
        self._together = together
        self._ahead = ahead or NothingAhead()
        self._reads_on = ahead is not None and policy.reads_on
        self._share = None if below is None else CoresShare(self._blocks, policy, below)
        self._entered = -1  # the layer that is being computed, counted through all sweeps
        self._expected = -1  # likewise, the last one whose blocks are expected
        self._tokens = 0  # of the sweep
        self._choices = 1.0  # of experts, that the group's tokens make in a layer
        self._policy = policy
        self._predictor = predictor
        self._residency = residency
        self._compute = compute
        self._worker = worker
        self._caches = caches
        self._caches_sent_for = 0  # in the order in which batches go through the layers of a sweep
        # Blocks that wait for a slot, in order; dicts, because each is looked up by many.
        self._demanded: dict[Block, None] = {}
        self._asked: set[int] = set()  # experts of the layer that some batch's router has asked for
        self._dense: dict[Block, None] = {}
        self._guesses: dict[Block, None] = {}
        self._guessed: set[Block] = set()  # sent for as guesses; whether they are of use is not known yet
        self._claimed: set[Block] = set()  # likewise, but they were here, and are kept from being replaced
        self._ended: tuple[Event, ...] = ()  # the last expert phase
        self.prefetch = [PrefetchCount() for _ in experts]

    def sweep(self, group: Sequence[Batch]) -> None:
        """Take every batch through all layers; each ends at the first layer again, or finished."""
        self._tokens = tokens = sum(batch.tokens for batch in group)
        self._choices = max(self._choices, tokens)  # each makes one or more; a prompt's last layer has seen few of them
        if tokens <= self._few:
            self._residency.lend(self._ended)
        else:
            lost = self._residency.withdraw()
            self._guessed -= lost
            self._claimed -= lost
        self._caches_sent_for = 0
        for layer in range(len(self._experts)):
            self._layer(layer, group)
        self._score([batch for batch in group if batch.is_scoring])

    @property
    def waiting(self) -> dict[str, int]:
        """Blocks that wait for a slot: asked for by routers, dense parts, guesses. May be asked by any thread."""
        return {"demanded": len(self._demanded), "dense": len(self._dense), "guesses": len(self._guesses)}

    def close(self) -> None:
        """Give back what was brought for a sweep that will not come, once it is here; another may begin afterwards."""
        for waiting in (self._demanded, self._dense, self._guesses, self._guessed, self._claimed):
            waiting.clear()
        for block in self._residency.held():
            self._residency.release(block)
        self._ahead.close()
        self._expected = self._entered
        self._residency.clear()
        self._residency.wait_for_free_slots()
        self._residency.check_integrity()

    def _layer(self, layer: int, group: Sequence[Batch]) -> None:
        dense = Block(layer)
        self._entered += 1
        self._predictor.foresee(layer, [batch.outlook for batch in group])
        named = self._bring_ahead(layer, is_entered=True)
        self._need(dense)
        if not self._experts[layer]:
            self._bring_ahead((layer + 1) % len(self._experts))
        uses, counts = self._attention(layer, group)
        if counts is not None:
            self._choices = float(sum(counts))
            self._settle_guesses(layer, counts)
            self._judge(layer, named, counts)
            self._compute_experts(layer, group, counts)
            uses = [self._finish(layer, batch) for batch in group]
        self._ahead.forget(layer)
        self._residency.release(dense, uses[-1])
        self._pump()

    def _attention(self, layer: int, group: Sequence[Batch]) -> tuple[list[Event], list[int] | None]:
        """The batches' passes, and the tokens of each expert over all of them (None: no experts)."""
        after = self._residency.arrival(Block(layer))
        self._asked.clear()
        if self._share is not None:
            self._share.enter(len(group), sum(block.layer == layer for block in self._guessed))
        uses: list[Event] = []
        routings: dict[int, Routing] = {}
        silent: deque[Batch] = deque()  # whose routers have not been heard yet
        attending: list[tuple[Batch, Event]] = []  # those whose attention is computed elsewhere, meanwhile

        def hear_later(batch: Batch, use: Event) -> None:
            uses.append(use)
            silent.append(batch)
            while silent and silent[0].is_heard:
                self._hear(layer, silent.popleft(), routings)

        for position, batch in enumerate(group):
            operation = Operation(Compute.ATTENTION, layer, batch=batch.index, tokens=batch.tokens)
            run = batch.resume if position else partial(self._enter, layer, batch)
            self._bring_caches(layer * len(group) + position, group)
            use = self._compute.submit(operation, run, (*after, *self._caches.arrival(batch)))
            if batch.is_attending:
                attending.append((batch, self._caches.attend(batch, layer, use)))
            else:
                self._caches.release(batch, use)
                hear_later(batch, use)
        for batch, attended in attending:
            operation = Operation(Compute.PROJECT, layer, batch=batch.index, tokens=batch.tokens)
            hear_later(batch, self._compute.submit(operation, batch.resume, (attended,)))
        for batch in silent:
            self._hear(layer, batch, routings)
        assert len(routings) in (0, len(group)), "batches disagree on whether the layer has experts"
        if not routings:
            return uses, None
        self._predictor.observe(layer, routings)
        return uses, [sum(counts) for counts in zip(*(each.counts for each in routings.values()), strict=True)]

    def _hear(self, layer: int, batch: Batch, routings: dict[int, Routing]) -> None:
        """Send for what a batch's router said."""
        routing = batch.routing
        if routing is not None:
            routings[batch.index] = routing
            self._demand(layer, routing, self._tokens / batch.tokens)

    def _bring_caches(self, turn: int, group: Sequence[Batch]) -> None:
        """Send for the caches of the batches whose turns come next, layer after layer; there is room for so many."""
        last = min(turn + self._caches.ahead, len(self._experts) * len(group) - 1)
        while self._caches_sent_for <= last:
            layer, position = divmod(self._caches_sent_for, len(group))
            self._caches.bring(group[position], layer)
            self._caches_sent_for += 1

    def _enter(self, layer: int, batch: Batch) -> None:
        self._worker.enter(layer)
        batch.resume()

    def _demand(self, layer: int, routing: Routing, parts: float) -> None:
        """Send for the experts that a batch, one of so many equal parts of the group, has just asked for.

        Not for those that wait for their turn, or that the cores will probably compute.
        """
        if self._policy.on_demand is OnDemand.lazy:
            return
        residency, blocks, asked = self._residency, self._blocks[layer], self._asked
        new = self._policy.demand(routing.counts, asked)
        if not new:
            return
        asked.update(new)
        missing = []
        for expert in new:
            block = blocks[expert]
            if residency.is_known(block):
                residency.claim(block)
            else:
                missing.append(block)
                self._guesses.pop(block, None)
        if self._share is not None:
            expected = {block.expert: parts * routing.counts[block.expert] for block in missing}
            moving = len(self._demanded) + sum(1 for _ in residency.coming(layer))
            held_back = self._share.hold_back(layer, expected, moving)
            missing = [block for block in missing if block not in held_back]
        self._demanded |= dict.fromkeys(missing)
        self._ahead.expect(missing, is_urgent=True)
        self._pump()

    def _settle_share(self, layer: int, counts: Sequence[int]) -> dict[int, int]:
        """All routing is known: the experts that the cores will compute, and the tokens of each.

        What they were to compute, and is better moved, is sent for.
        """
        if self._share is None:
            return {}
        blocks, residency = self._blocks[layer], self._residency
        used = {expert: count for expert, count in enumerate(counts) if count}
        missing = {expert: count for expert, count in used.items() if not residency.is_known(blocks[expert])}
        left, wanted = self._share.settle(layer, missing, sum(1 for _ in residency.coming(layer)))
        for expert in left:
            self._demanded.pop(blocks[expert], None)
        self._demanded |= dict.fromkeys(wanted)
        self._pump()
        return {expert: counts[expert] for expert in left}

    def _settle_guesses(self, layer: int, counts: Sequence[int]) -> None:
        """All routing is known: forget the layer's open guesses and give back the wrong ones."""
        for block in [block for block in self._guesses if block.layer == layer]:
            del self._guesses[block]
        for block in [block for block in self._guessed if block.layer == layer]:
            self._guessed.remove(block)
            self.prefetch[layer].used += counts[block.expert] > 0
            if not counts[block.expert]:
                self._residency.release(block)
        for block in [block for block in self._claimed if block.layer == layer]:
            self._claimed.remove(block)
            if not counts[block.expert]:
                self._residency.release(block)
        self._pump()

    def _judge(self, layer: int, named: Collection[int], counts: Sequence[int]) -> None:
        """Compare what was held to be hot with what was."""
        truly = hottest(range(len(counts)), counts)[: len(named)]
        self.prefetch[layer].named += len(named)
        self.prefetch[layer].among_hottest += len(set(named) & set(truly))

    def _compute_experts(self, layer: int, group: Sequence[Batch], counts: Sequence[int]) -> None:
        left = self._settle_share(layer, counts)
        remaining = {expert: count for expert, count in enumerate(counts) if count and expert not in left}
        residents = self._residency.resident_experts(layer)
        # All of these are here, so that only the first in the policy's order can be next.
        resting = deque(expert for expert in self._policy.demand(counts) if expert in residents)
        tokens = sum(counts)
        gather = Operation(Compute.GATHER, layer, tokens=tokens)
        gathered = self._compute.submit(
            gather, partial(self._worker.gather, layer, group, list(left)), self._awaited(layer)
        )
        answers = self._share.compute(layer, left, self._worker, gathered) if self._share else []
        looked_ahead = False
        while remaining:
            if not self._demanded and not looked_ahead:
                self._bring_ahead((layer + 1) % len(self._experts))
                looked_ahead = True
            block = self._blocks[layer][self._choose(layer, remaining, resting)]
            if resting and block.expert == resting[0]:
                if self._together and len(resting) > 1:
                    self._compute_together(layer, [(expert, remaining.pop(expert)) for expert in sorted(resting)])
                    resting.clear()
                    continue
                resting.popleft()
            self._need(block)
            done = self._compute.submit(
                Operation(Compute.EXPERT, layer, block.expert, tokens=remaining.pop(block.expert)),
                partial(self._worker.compute, layer, block.expert),
                self._residency.arrival(block),
            )
            self._residency.release(block, done)
            self._pump()
        if answers:
            if not looked_ahead:
                self._bring_ahead((layer + 1) % len(self._experts))
            answer = Operation(Compute.ANSWER, layer, tokens=sum(left.values()))
            self._compute.submit(answer, partial(self._worker.answer, layer), answers)
        combine = Operation(Compute.COMBINE, layer, tokens=tokens)
        self._ended = (self._compute.submit(combine, partial(self._worker.combine, layer)),)

    def _compute_together(self, layer: int, parts: Sequence[tuple[int, int]]) -> None:
        """Experts that stay, and the tokens of each."""
        operation = Operation(Compute.EXPERT, layer, tokens=sum(tokens for _, tokens in parts), parts=tuple(parts))
        run = partial(self._worker.compute_together, layer, [expert for expert, _ in parts])
        self._compute.submit(operation, run)

    def _awaited(self, layer: int) -> list[Event]:
        """What a layer's expert phase waits for: batch after batch, all experts that are on their way."""
        if self._policy.order is not Order.batch:
            return []
        return [
            event
            for expert in self._residency.coming(layer)
            for event in self._residency.arrival(self._blocks[layer][expert])
        ]

    def _choose(self, layer: int, remaining: dict[int, int], resting: Sequence[int]) -> int:
        here = [expert for expert in self._residency.arrived(layer) if expert in remaining]
        if resting:
            here.append(resting[0])
        coming = (expert for expert in self._residency.coming(layer) if expert in remaining)
        return self._policy.choose(remaining, here, coming)

    def _finish(self, layer: int, batch: Batch) -> Event:
        operation = Operation(Compute.FINISH, layer, batch=batch.index, tokens=batch.tokens)
        return self._compute.submit(operation, batch.resume)

    def _score(self, group: Sequence[Batch]) -> None:
        """Let batches choose their next tokens; they come to the first layer again, or to their end."""
        last = len(self._experts) - 1
        for begin in range(0, len(group), self._scored):
            batches = group[begin : begin + self._scored]
            scored = Operation(Compute.SCORE, last, tokens=sum(batch.sequences for batch in batches))
            self._compute.submit(scored, partial(self._worker.score, batches))
            for batch in batches:
                self._compute.submit(Operation(Compute.SAMPLE, last, batch=batch.index), batch.resume)

    def _bring_ahead(self, layer: int, *, is_entered: bool = False) -> list[int]:
        """Send for a layer's dense part, and for the experts that it is expected to need; returns the hot ones."""
        if self._policy.on_demand is OnDemand.lazy:
            return []
        if not self._residency.is_known(Block(layer)):
            self._dense[Block(layer)] = None
        scores, staying = self._predictor.scores(layer), self._residency.resident_experts(layer)
        named = self._policy.ahead(scores, is_entered=is_entered)
        ahead = [*named, *self._policy.instead(named, scores, self._choices, staying)]
        if self._share is not None:
            ahead = self._share.ahead(layer, ahead, scores, self._choices, staying)
        for expert in ahead:
            block = self._blocks[layer][expert]
            if not self._residency.is_known(block):
                self._guesses[block] = None
            elif self._residency.claim(block):
                self._claimed.add(block)
        self._pump()
        return named

    def _need(self, block: Block) -> None:
        """Send for a block whose turn has come, if that has not been done ahead of it."""
        if self._residency.is_known(block):
            self._residency.claim(block)
        else:
            self._residency.request(block)

    def _pump(self) -> None:
        """Send for the first in the queues while there are slots for them."""
        residency = self._residency
        for queue in (self._demanded, self._dense, self._guesses):
            while queue:
                block = next(iter(queue))
                if not residency.has_free_slot(block):
                    break
                del queue[block]
                residency.request(block)
                if queue is self._guesses:
                    self._guessed.add(block)
                    self.prefetch[block.layer].requested += 1
        if self._reads_on:
            self._expect()
        self._ahead.read_on()

    def _expect(self) -> None:
        """Say what layers after this one will probably use, as far as there is room for it before the device."""
        layers = len(self._experts)
        self._expected = max(self._expected, self._entered)
        while self._expected < self._entered + layers - 1 and self._ahead.has_room:
            self._expected += 1
            layer = self._expected % layers
            likely = self._policy.likely(self._predictor.scores(layer), self._choices)
            blocks = (Block(layer), *(self._blocks[layer][expert] for expert in likely))
            self._ahead.expect(block for block in blocks if not self._residency.is_known(block))
