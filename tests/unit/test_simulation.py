"""Batches that compute nothing, routers that are drawn, and where blocks come from in virtual time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Block, LaneName, Request
from klotski.errors import WorkloadError
from klotski.lanes import VirtualClock
from klotski.planner import Rates
from klotski.simulation import DrawnRouters, RecordedRouters, Supply, SyntheticBatch
from klotski.simulation.supply import WINDOW
from tests.unit.fakes import Sink, examples
from tests.unit.questions import model

EXPERTS = (0, 4, 4)


def requests(*lengths: tuple[int, int]) -> list[Request]:
    return [
        Request(str(number), (0,) * prompt, output, number) for number, (prompt, output) in enumerate(lengths, start=1)
    ]


def batch(*lengths: tuple[int, int], prefill: int = 1000, ended: list[str] | None = None) -> SyntheticBatch:
    heard = [] if ended is None else ended
    routers = DrawnRouters(EXPERTS, 2)
    return SyntheticBatch(
        0, requests(*lengths), EXPERTS, routers, prefill, 10, lambda each: heard.append(each.id), spares=True
    )


def steps(one: SyntheticBatch) -> list[tuple[int, bool, list[int]]]:
    """Tokens of each step, whether it reads prompts, and the choices of each layer with experts."""
    seen: list[tuple[int, bool, list[int]]] = []
    one.resume()
    while not one.is_finished:
        tokens, prefilling, choices = one.tokens, one.is_prefilling, []
        for experts in EXPERTS:
            one.resume()
            if experts:
                assert one.routing is not None
                choices.append(sum(one.routing.counts))
                one.resume()
        if one.is_scoring:
            one.resume()
        seen.append((tokens, prefilling, choices))
    return seen


def test_a_batch_reads_its_prompts_and_then_a_token_of_each_sequence_at_a_time() -> None:
    ended: list[str] = []
    one = batch((5, 3), (4, 1), ended=ended)
    # Of the last layer, only the prompts' last tokens are computed.
    assert steps(one) == [(10, True, [20, 4]), (2, False, [4, 4]), (2, False, [4, 4])]
    assert ended == ["2", "1"]
    assert (one.output_tokens, one.cache_bytes) == (4, 0)


def test_prompts_go_in_piece_by_piece() -> None:
    assert [tokens for tokens, _, _ in steps(batch((5, 2), (5, 2), prefill=4))] == [4, 4, 2, 2]


def test_pairs_are_those_of_a_causal_mask() -> None:
    one = batch((3, 2))
    one.resume()
    assert one.pairs == 2 * 6 + 3
    while one.is_prefilling:
        one.resume()
    assert one.pairs == 2 * 4 + 4


@given(
    st.integers(1, 600),
    st.integers(1, 4),
    st.none() | st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(any),
)
@examples(60)
def test_every_token_chooses_as_many_experts_as_the_router_says(
    tokens: int, top_k: int, shares: Sequence[float] | None
) -> None:
    routers = DrawnRouters((6,), top_k, None if shares is None else [shares])
    routing = routers.ask(0, 0, tokens)
    assert all(0 <= count <= tokens for count in routing.counts)
    if routing.choices is not None:
        assert sum(routing.counts) == tokens * top_k
        assert all(len(set(row)) == top_k for row in routing.choices.tolist())


def test_routers_favour_what_was_favoured() -> None:
    counts = DrawnRouters((4,), 1, [[0.7, 0.1, 0.1, 0.1]]).ask(0, 0, 10_000).counts
    assert counts[0] / sum(counts) == pytest.approx(0.7, abs=0.02)


def test_the_same_seed_says_the_same() -> None:
    one, other = DrawnRouters((8,), 2, seed=3), DrawnRouters((8,), 2, seed=3)
    assert [one.ask(0, 0, 5).counts for _ in range(5)] == [other.ask(0, 0, 5).counts for _ in range(5)]


def test_recorded_routers_say_what_was_said_in_the_same_order(tmp_path: Path) -> None:
    file = tmp_path / "routing.jsonl"
    file.write_text(
        '{"batch": 0, "layer": 1, "choices": [[0], [0]]}\n'
        '{"batch": 1, "layer": 1, "choices": [[1], [0]]}\n'
        '{"batch": 0, "layer": 1, "choices": [[1]]}\n'
    )
    routers = RecordedRouters(file, (0, 2))
    assert [routers.ask(batch, 1, tokens).counts for batch, tokens in ((0, 2), (0, 1), (1, 2))] == [
        (2, 0),
        (0, 1),
        (1, 1),
    ]
    with pytest.raises(WorkloadError, match="is of another run: of batch 1 in layer 1"):
        routers.ask(1, 1, 2)


@pytest.mark.parametrize(("content", "says"), [(None, "record_routing=true writes it"), ("{", "line 1 is damaged")])
def test_a_recording_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "routing.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WorkloadError, match=says):
        RecordedRouters(file, (0, 2))


class TestSupply:
    RATES = Rates(100.0, 1e9, "test", link=1000.0, start=0.0)

    def test_without_a_link_blocks_come_from_disk(self) -> None:
        sink, clock = Sink(), VirtualClock()
        supply = Supply(model(), self.RATES._replace(link=None), [], 0, sink, clock)
        supply.bring(Block(0, 1), 0, ()).wait()
        assert clock() == 500 / 100
        assert [span.lane for span in sink.spans] == [LaneName.DISK]

    def test_what_cpu_memory_holds_comes_over_the_link_and_the_rest_over_both(self) -> None:
        sink, clock = Sink(), VirtualClock()
        order = [Block(0, 0), Block(0, 1)]
        supply = Supply(model(), self.RATES, order, 500 * (WINDOW + 1), sink, clock)
        supply.bring(Block(0, 0), 0, ()).wait()
        assert clock() == 0.5
        supply.bring(Block(0, 1), 0, ()).wait()
        assert clock() == 0.5 + 5 + 0.5
        assert [span.lane for span in sink.spans] == [LaneName.LINK, LaneName.DISK, LaneName.LINK]

    def test_no_more_is_read_ahead_than_there_is_room_for(self) -> None:
        sink, clock = Sink(), VirtualClock()
        supply = Supply(model(), self.RATES._replace(disk=1e6, link=1.0), [], 0, sink, clock)
        for _ in range(WINDOW + 1):
            supply.bring(Block(0, 1), 0, ())
        reads = [span for span in sink.spans if span.lane == LaneName.DISK]
        links = [span for span in sink.spans if span.lane == LaneName.LINK]
        assert reads[-1].begin == links[0].end
