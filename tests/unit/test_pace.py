"""How a workload is spread over sweeps, as the planner says and as a group goes through them."""

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from klotski.core import Request, SweepReport
from klotski.lanes import VirtualClock, VirtualComputeLane
from klotski.pipeline import Batch, run_group
from klotski.planner import Costs, Demand
from klotski.simulation import DrawnRouters, SyntheticBatch
from tests.unit.fakes import Sink, examples
from tests.unit.questions import model


class OneLayer:
    """A sweeper of a model whose only layer has no experts."""

    def sweep(self, group: Sequence[Batch]) -> None:
        for batch in group:
            batch.resume()
            if batch.is_scoring:
                batch.resume()

    def close(self) -> None:
        pass


def sweeps_of(prompt: int, output: int, batches: int, size: int, n: int, prefill_tokens: int) -> list[SweepReport]:
    """What a group of n really does."""
    clock, reports = VirtualClock(), list[SweepReport]()
    routers = DrawnRouters([0], 0, None, 0)

    def batch(index: int) -> SyntheticBatch:
        requests = [Request(str(number), (1,) * prompt, output, number) for number in range(size)]
        return SyntheticBatch(
            index, requests, [0], routers, prefill_tokens, lambda *_: 0, lambda request: None, spares=False
        )

    compute = VirtualComputeLane("compute", Sink(), clock, lambda operation: 1.0)
    each = (batch(index) for index in range(batches))
    run_group(each, n, prefill_tokens, OneLayer(), compute, clock, reports.append)  # type: ignore[arg-type]
    return reports


@given(
    prompt=st.integers(1, 40),
    output=st.integers(1, 12),
    size=st.integers(1, 3),
    n=st.integers(1, 6),
    waves=st.integers(0, 2),
    last=st.integers(1, 6),
    prefill=st.integers(3, 300),
)
@example(prompt=1, output=1, size=2, n=4, waves=2, last=1, prefill=6)  # prompts, not places, are what batches wait for
@examples(200)
def test_sweeps_are_as_many_as_the_planner_counts(
    prompt: int, output: int, size: int, n: int, waves: int, last: int, prefill: int
) -> None:
    batches = waves * n + min(last, n)
    reports = sweeps_of(prompt, output, batches, size, n, prefill)
    demand = Demand([(prompt, output)] * (batches * size))
    pace = Costs(model(), demand).pace(demand.group(n, size), prefill)
    assert pace.sweeps == len(reports)
    assert pace.reading == sum(report.prefill_tokens > 0 for report in reports)


def test_batches_that_read_their_prompts_together_need_fewer_sweeps() -> None:
    apart, together = (len(sweeps_of(64, 8, 15, 4, 15, tokens)) for tokens in (4 * 64, 15 * 4 * 64))
    assert (apart, together) == (15 + 7, 1 + 7)
