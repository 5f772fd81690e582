"""How fast the cores beside a GPU compute experts: as was planned at first, and then as they do it.

Others use the cores and their memory, too: whoever drives the GPU, and copies into it. What is left to the cores is to
end with what moves, so that it has to be known how long it takes them now.
"""

from klotski.core import Compute, Span
from klotski.lanes import SpanSink
from klotski.pipeline.policy import MissCosts

__all__ = ["CoresPace"]

LATELY = 20  # experts, over which their time is the mean, roughly
FORGOTTEN = 0.01  # of what was seen, with each layer of which nothing is left to the cores: else nobody would ever know


class CoresPace:
    """Listens to the spans of the cores on their way to `sink`. `planned`: what an expert is expected to take."""

    def __init__(self, planned: MissCosts, sink: SpanSink) -> None:
        self._planned = planned
        self._sink = sink
        self._expected = self._took = LATELY * planned.turn  # seconds, of late
        self.costs = planned
        """What it takes now."""

    def span(self, span: Span) -> None:
        """Take a finished operation."""
        if span.operation.kind == Compute.EXPERT:
            expected = self._planned.computing(span.operation.tokens)
            self._expected += (expected - self._expected) / LATELY
            self._took += (span.end - span.begin - self._took) / LATELY
            self._settle()
        self._sink.span(span)

    def bubble(self, span: Span) -> None:
        """Take a wait."""
        self._sink.bubble(span)

    def forget(self) -> None:
        """Nothing is left to the cores: what they took for experts before counts for a little less."""
        self._took += (self._expected - self._took) * FORGOTTEN
        self._settle()

    def _settle(self) -> None:
        slower = self._took / self._expected
        self.costs = self._planned._replace(turn=slower * self._planned.turn, token=slower * self._planned.token)
