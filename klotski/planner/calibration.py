"""What a run's own spans say of the machine: how long turns take beside their arithmetic.

An operation on tokens takes a fixed time and some for each of them. Which part is whose follows from all its
spans by least squares of the relative error, so that a prompt of thousands of tokens does not outweigh a thousand
steps of one. How long all turns of batches take is what it was.
"""

from collections import defaultdict

from klotski.core import Compute, LaneName, Operation, Span, product_rows
from klotski.lanes import ASLEEP, SpanSink
from klotski.planner.costs import SHARED
from klotski.planner.facts import ModelFacts
from klotski.planner.rates import Rates

__all__ = ["MEASURED", "Calibration"]

MEASURED = "measured by this run"
FEWEST = 20  # spans, for their times to mean something
LEAST = 1e-6  # seconds: what takes less has not been measured
RESTED = "rested"  # experts that the cores had waited for
TOGETHER = "together"  # several experts at once
AROUND = (Compute.START, Compute.GATHER, Compute.COMBINE, Compute.FINISH, Compute.SAMPLE)  # what a turn has beside it


class Line:
    """Seconds as a fixed time and some for each token, by what was seen; it adds up, and keeps no span."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._tokens = 0
        self._sums = [0.0] * 5  # of 1, t, t^2, s and t*s, each weighed by 1/s^2

    def add(self, tokens: int, seconds: float) -> None:
        """See one operation; one that took no time at all says nothing."""
        if seconds <= 0:
            return
        self.count += 1
        self.seconds += seconds
        self._tokens += tokens
        weight = seconds**-2
        for place, value in enumerate((1.0, tokens, tokens * tokens, seconds, tokens * seconds)):
            self._sums[place] += weight * value

    def beyond(self, each: float) -> float:
        """Seconds whatever the tokens, if those of each token are known."""
        ones, tokens, _, seconds, _ = self._sums
        return max(0.0, seconds - each * tokens) / ones if ones else 0.0

    def solve(self) -> tuple[float, float]:
        """Seconds whatever the tokens, and seconds of each."""
        ones, tokens, squares, seconds, products = self._sums
        spread = ones * squares - tokens * tokens
        if spread <= 1e-9 * ones * squares:  # all had equally many: nobody can tell which part is whose
            return self.seconds / max(1, self.count), 0.0
        fixed = max(0.0, (squares * seconds - tokens * products) / spread)
        each = max(0.0, (ones * products - tokens * seconds) / spread)
        scale = self.seconds / (fixed * self.count + each * self._tokens)
        return scale * fixed, scale * each


class Calibration:
    """Listens to the spans of a compute lane, and of the cores beside a GPU, on their way to `sink`."""

    def __init__(self, sink: SpanSink) -> None:
        self._sink = sink
        self._lines: dict[str, Line] = defaultdict(Line)
        self._below = Line()  # experts on the cores beside a GPU
        self._rested: Operation | None = None  # what the cores have waited for at last, and for long

    def span(self, span: Span) -> None:
        """Take a finished operation."""
        operation = span.operation
        kind: str = operation.kind
        if span.lane == LaneName.CORES:
            if kind == Compute.EXPERT:
                self._below.add(operation.tokens, span.end - span.begin)
            self._sink.span(span)
            return
        if operation.parts:
            kind = TOGETHER
        elif operation == self._rested and kind == Compute.EXPERT:
            kind = RESTED
        is_product = kind in (Compute.EXPERT, RESTED)
        self._lines[kind].add(product_rows(operation.tokens) if is_product else operation.tokens, span.end - span.begin)
        self._sink.span(span)

    def bubble(self, span: Span) -> None:
        """Take a wait of the compute lane."""
        self._rested = span.operation if span.end - span.begin > ASLEEP else None
        self._sink.bubble(span)

    def rates(self, facts: ModelFacts, measured: Rates, disk_share: float, between: float) -> Rates:
        """What was measured, with what the spans say beside it.

        `disk_share`: of the run's time, that in which the disk was read, at the experts' cost. `between`: seconds of
        the run in which no operation was under way and none waited: the pipeline's own. How long an expert takes for
        its rows is what was measured; what lies beyond it is its turn's.
        """
        attention, expert, rested = (self._lines[kind] for kind in (Compute.ATTENTION, Compute.EXPERT, RESTED))
        if expert.count < FEWEST:
            expert = rested
        if min(attention.count, expert.count) < FEWEST:
            return measured
        around = sum(self._lines[kind].seconds for kind in AROUND)
        turn, of_dense = attention.solve()
        of_row = (1 + SHARED * disk_share) * facts.expert_flops / facts.choices / measured.compute
        beyond = expert.beyond(of_row)
        wake = rested.beyond(of_row) - beyond if rested.count >= FEWEST else measured.wake
        beyond = max(2 * LEAST, beyond / (1 + SHARED * disk_share))
        passing = min(facts.largest_expert / measured.product, beyond - LEAST)  # of weights, through a product
        dense = facts.dense_flops / facts.num_layers / of_dense if of_dense else measured.dense_share * measured.compute
        step = beyond - passing
        return self._of_cores(facts, measured, step).because(
            MEASURED,
            turn=turn + around / attention.count,
            product=facts.largest_expert / passing,
            step=step,
            wake=max(0.0, wake),
            between=between / sum(line.count for line in self._lines.values()),
            dense_share=dense / measured.compute,
        )

    def _of_cores(self, facts: ModelFacts, measured: Rates, step: float) -> Rates:
        """What the cores beside a GPU reached with experts, whose turn takes `step` of what they take anyway."""
        if self._below.count < FEWEST:
            return measured
        of_token = facts.expert_flops / facts.choices
        fixed, each = self._below.solve()
        cores = of_token / each if each else measured.cores
        passing = max(LEAST, (fixed if each else self._below.beyond(of_token / cores)) - step)
        return measured.because(MEASURED, cores=cores, cores_product=facts.largest_expert / passing)
