"""What a run's spans say of the machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import STEP, Compute, Operation, Span
from klotski.executors.rates import weights_rate
from klotski.lanes import ASLEEP
from klotski.planner import NOMINAL, Calibration
from klotski.planner.calibration import FEWEST, Line
from tests.unit.fakes import Sink, examples
from tests.unit.questions import model


@given(
    st.floats(1e-5, 1e-2),
    st.floats(1e-7, 1e-4),
    st.lists(st.integers(1, 5000), min_size=2, max_size=20).filter(lambda each: max(each) > 2 * min(each)),
)
@examples(60)
def test_what_lies_on_a_line_is_found(fixed: float, each: float, tokens: list[int]) -> None:
    line = Line()
    for count in tokens:
        line.add(count, fixed + each * count)
    found = line.solve()
    assert found[0] == pytest.approx(fixed, rel=0.02, abs=1e-7)
    assert found[1] == pytest.approx(each, rel=0.02)


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(1e-6, 10)), min_size=1, max_size=30))
@examples(60)
def test_in_all_it_takes_what_it_took(seen: list[tuple[int, float]]) -> None:
    line = Line()
    for tokens, seconds in seen:
        line.add(tokens, seconds)
    fixed, each = line.solve()
    assert fixed >= 0
    assert each >= 0
    assert sum(fixed + each * tokens for tokens, _ in seen) == pytest.approx(sum(seconds for _, seconds in seen))


def calibrated(count: int) -> Calibration:
    """Turns of 2 ms and 1 us a token, experts of 0.3 ms, and 0.1 ms around each turn."""
    calibration = Calibration(Sink())
    for number in range(count):
        for kind, tokens, seconds in (
            (Compute.ATTENTION, number, 2e-3 + 1e-6 * number),
            (Compute.EXPERT, number, 3e-4 + 1e-8 * number),
            (Compute.FINISH, number, 1e-4),
        ):
            calibration.span(Span("compute", Operation(kind, 0, tokens=tokens), 1.0, 1.0 + seconds))
    return calibration


def test_rates_are_those_of_the_spans() -> None:
    facts = model(dense_flops=4_000_000)
    rates = calibrated(100).rates(facts, NOMINAL, disk_share=0.0, between=0.03)
    assert rates.turn == pytest.approx(2.1e-3, rel=0.01)
    assert rates.step == pytest.approx(3e-4 - facts.largest_expert / NOMINAL.product, rel=0.01)
    assert rates.dense_share * rates.compute == pytest.approx(4_000_000 / facts.num_layers / 1e-6, rel=0.02)
    assert rates.between == pytest.approx(0.03 / 300)
    assert (rates.disk, rates.compute, rates.memory) == (NOMINAL.disk, NOMINAL.compute, NOMINAL.memory)


def test_a_product_of_few_tokens_takes_as_long_as_one_of_a_whole_step() -> None:
    """Experts are multiplied in steps of rows: what is told of one token is no different from what is of sixteen."""
    facts = model(expert_flops=4_000_000)
    row = facts.expert_flops / facts.choices / NOMINAL.compute
    alone, full = (Calibration(Sink()), Calibration(Sink()))
    for calibration, tokens in ((alone, 1), (full, STEP)):
        for kind, seconds in ((Compute.ATTENTION, 2e-3), (Compute.EXPERT, 3e-4 + STEP * row)):
            for _ in range(FEWEST):
                calibration.span(Span("compute", Operation(kind, 0, tokens=tokens), 1.0, 1.0 + seconds))
    assert alone.rates(facts, NOMINAL, 0.0, 0.0).step == pytest.approx(full.rates(facts, NOMINAL, 0.0, 0.0).step)
    assert full.rates(facts, NOMINAL, 0.0, 0.0).step == pytest.approx(3e-4 - facts.largest_expert / NOMINAL.product)


def test_what_a_turn_takes_is_not_lost_in_prompts_whose_rows_take_longer_than_they_should() -> None:
    """As beside a disk that is read all the time: a few products of thousands of rows, and many of sixteen."""
    facts = model(expert=500, expert_flops=4_000_000)
    row = facts.expert_flops / facts.choices / NOMINAL.compute
    calibration = Calibration(Sink())
    for tokens, each, times in ((4096, 0.9 * row, FEWEST), (STEP, row, 20 * FEWEST)):
        for kind, seconds in ((Compute.ATTENTION, 2e-3), (Compute.EXPERT, 3e-4 + each * tokens)):
            for _ in range(times):
                calibration.span(Span("compute", Operation(kind, 0, tokens=tokens), 1.0, 1.0 + seconds))
    assert calibration.rates(facts, NOMINAL, 0.0, 0.0).step == pytest.approx(3e-4, rel=0.1)


@pytest.mark.parametrize("rows", [1, STEP])
@pytest.mark.parametrize(("fixed", "each"), [(3e-3, 2e-4), (4e-4, 2e-5)])
def test_weights_come_into_a_product_at_what_its_rows_do_not_explain(fixed: float, each: float, rows: int) -> None:
    """A product of so many numbers takes a fixed time, and some for each of its rows."""
    numbers = 10**7
    few, many = (2 * count * numbers / (fixed + each * count) for count in (rows, 10**9))
    assert weights_rate(few, many, 2, rows) == pytest.approx(2 * numbers / fixed)
    assert weights_rate(many, many, 2) > 0, "a machine that was disturbed while products were large"


def test_what_the_cores_have_waited_for_takes_longer() -> None:
    """Experts of 0.3 ms; 0.2 ms more after a long wait, and nothing after a short one."""
    calibration = calibrated(100)
    for number in range(FEWEST):
        for wait, more in ((2 * ASLEEP, 2e-4), (ASLEEP / 2, 0.0)):
            operation = Operation(Compute.EXPERT, 0, number, tokens=number)
            calibration.bubble(Span("compute", operation, 1.0, 1.0 + wait))
            calibration.span(Span("compute", operation, 1.0 + wait, 1.0 + wait + 3e-4 + more + 1e-8 * number))
    rates = calibration.rates(model(), NOMINAL, 0.0, 0.0)
    assert rates.wake == pytest.approx(2e-4, rel=0.05)
    alone = calibrated(100).rates(model(), NOMINAL, 0.0, 0.0)
    assert alone.wake == 0
    assert rates.step == pytest.approx(alone.step, rel=0.05)


@pytest.mark.parametrize("spread", [True, False], ids=["some with more tokens", "all with as many"])
def test_what_the_cores_take_for_experts_is_found(spread: bool) -> None:
    """2 ms for each, and 0.1 ms for each token; what else they do is none of this."""
    facts, calibration = model(expert_flops=10**6), calibrated(100)
    for number in range(FEWEST):
        tokens = number if spread else 10
        for kind, seconds in ((Compute.EXPERT, 2e-3 + 1e-4 * tokens), (Compute.ATTENTION, 5.0)):
            calibration.span(Span("cores", Operation(kind, 0, tokens=tokens), 1.0, 1.0 + seconds))
    of_token = facts.expert_flops / facts.choices / 1e-4
    rates = calibration.rates(facts, NOMINAL._replace(cores=of_token), 0.0, 0.0)
    assert rates.cores == pytest.approx(of_token)
    assert facts.largest_expert / rates.cores_product + rates.step == pytest.approx(2e-3)
    alone = calibrated(100).rates(facts, NOMINAL, 0.0, 0.0)
    assert (rates.turn, rates.step, rates.between) == (alone.turn, alone.step, alone.between)
    assert (alone.cores, alone.cores_product) == (NOMINAL.cores, NOMINAL.cores_product)


def test_what_reading_costs_experts_is_not_charged_twice() -> None:
    alone, beside = (calibrated(100).rates(model(), NOMINAL, share, 0.0).step for share in (0.0, 1.0))
    assert beside < alone


def test_a_few_spans_say_nothing() -> None:
    assert calibrated(FEWEST - 1).rates(model(), NOMINAL, 0.0, 0.0) == NOMINAL


def test_what_it_hears_goes_on_to_the_sink() -> None:
    sink = Sink()
    calibration = Calibration(sink)
    span = Span("compute", Operation(Compute.SAMPLE, 0), 0.0, 1.0)
    calibration.span(span)
    calibration.bubble(span)
    assert (sink.spans, sink.bubbles) == ([span], [span])
