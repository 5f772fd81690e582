"""How much was done up to each moment: exactly, and in little memory."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.curve import GRAIN, MORE, Curve
from tests.unit.fakes import examples

TIMES = st.floats(0, 1000)
WORK = st.lists(st.tuples(TIMES, st.floats(1e-6, 50), st.integers(0, 10**9)), min_size=1, max_size=30)


@given(WORK, TIMES, TIMES)
@examples(200)
def test_between_two_moments_is_what_was_done_there_in_whatever_order_it_is_told(
    work: list[tuple[float, float, int]], one: float, other: float
) -> None:
    curve = Curve()
    for begin, seconds, nbytes in work:
        curve.add(begin, begin + seconds, seconds, nbytes)
    left, right = sorted((one, other))
    overlaps = [max(0.0, min(right, begin + seconds) - max(left, begin)) for begin, seconds, _ in work]
    moved = sum(
        nbytes * part / each[1] for part, each, nbytes in zip(overlaps, work, (w[2] for w in work), strict=True)
    )
    assert curve.between(left, right) == pytest.approx((sum(overlaps), moved), rel=1e-6, abs=1e-5)
    assert curve.between(0.0, 2000.0) == pytest.approx((sum(w[1] for w in work), sum(w[2] for w in work)))


def test_it_stays_small_and_any_time_up_to_now_is_known_to_a_part_of_its_length() -> None:
    """Ten hours of operations of 10 ms, most of the time one behind the other."""
    rng, curve, now, exact = random.Random(1), Curve(), 0.0, [(0.0, 0.0)]
    for _ in range(300_000):
        now += 0.0 if rng.random() < 0.7 else rng.uniform(0, 0.4)
        seconds = rng.uniform(0.001, 0.02)
        curve.add(now, now + seconds, seconds, 5)
        now += seconds
        exact.append((now, exact[-1][1] + seconds))
        assert len(curve.times) <= 20 * GRAIN + MORE
    assert curve.at(now) == pytest.approx((exact[-1][1], 5 * 300_000))
    for count in (10, 100, 1000, 10_000, 100_000, 299_000):
        begin, before = exact[-count]
        assert curve.between(begin, now)[0] == pytest.approx(exact[-1][1] - before, rel=0.02)


def test_what_took_no_time_moved_its_bytes_all_the_same() -> None:
    curve = Curve()
    curve.add(1.0, 1.0, 0.0, 7)
    curve.add(3.0, 4.0, 1.0, 1)
    curve.add(2.0, 2.0, 0.0, 5)  # told late
    assert curve.between(0.5, 1.5) == (0.0, 7.0)
    assert curve.between(1.5, 2.5) == (0.0, 5.0)
    assert Curve().between(0.0, 9.0) == (0.0, 0.0)
