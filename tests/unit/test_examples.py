"""Which examples property tests are tried on."""

import os

import pytest
from hypothesis import given, strategies

from tests.unit.fakes import examples


@pytest.mark.parametrize(("wanted", "count"), [(None, 100), ("1", 100), ("20", 2000)])
def test_there_are_as_many_as_a_test_says_or_as_many_times_more_as_are_wanted(
    wanted: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXAMPLES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("EXAMPLES", wanted)
    assert examples(100).max_examples == count


@pytest.mark.skipif("EXAMPLES" in os.environ, reason="new examples are looked for")
def test_they_are_the_same_each_time() -> None:
    def tried() -> list[int]:
        numbers: list[int] = []

        @examples(20)
        @given(strategies.integers())
        def keep(number: int) -> None:
            numbers.append(number)

        keep()
        return numbers

    assert tried() == tried()
