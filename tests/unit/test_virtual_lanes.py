"""Virtual time: it never runs backwards, no lane does two things at once, and the same input gives the same times."""

from collections.abc import Generator
from itertools import pairwise
from math import inf

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Operation
from klotski.lanes import ASLEEP, Event, VirtualClock, VirtualComputeLane, VirtualLane, VirtualWire
from tests.unit.fakes import Sink, examples


class Machine:
    """A disk that takes a second for each byte, and a processor that takes one for each token."""

    def __init__(self) -> None:
        self.sink, self.clock = Sink(), VirtualClock()
        self.disk = VirtualLane("disk", self.sink, self.clock, lambda operation: float(operation.nbytes))
        self.compute = VirtualComputeLane("compute", self.sink, self.clock, lambda operation: float(operation.tokens))

    def read(self, nbytes: int, *after: Event) -> Event:
        return self.disk.submit(Operation("read", 0, nbytes=nbytes), lambda: None, after)

    def work(self, tokens: int, *after: Event) -> Event:
        return self.compute.submit(Operation("work", 0, tokens=tokens), lambda: None, after)

    def spans(self, lane: str) -> list[tuple[float, float]]:
        self.disk.close()
        return [(span.begin, span.end) for span in self.sink.spans if span.lane == lane]


def test_reading_goes_on_while_something_else_is_computed() -> None:
    machine = Machine()
    arrival = machine.read(3)
    machine.work(2)
    assert not arrival.is_done()
    assert machine.disk.is_busy
    machine.work(2, arrival)
    assert machine.clock() == 5
    assert [(span.begin, span.end) for span in machine.sink.bubbles] == [(2, 3)]
    assert arrival.is_done()
    assert not machine.disk.is_busy


def test_an_operation_waits_for_the_one_before_and_for_its_events() -> None:
    machine = Machine()
    first = machine.read(2)
    machine.read(1)
    used = machine.work(4, first)
    machine.read(1, used)
    assert machine.spans("disk") == [(0, 2), (2, 3), (6, 7)]
    assert machine.spans("compute") == [(2, 6)]


def test_waiting_for_what_has_been_takes_no_time() -> None:
    machine = Machine()
    arrival = machine.read(1)
    machine.work(5)
    arrival.wait()
    assert machine.clock() == 5


def test_after_a_long_wait_an_operation_takes_longer() -> None:
    sink, clock = Sink(), VirtualClock()
    disk = VirtualLane("disk", sink, clock, lambda operation: operation.nbytes * ASLEEP)
    compute = VirtualComputeLane("compute", sink, clock, lambda operation: 1.0, wake=0.25)
    for nbytes, seconds in ((1, 1.0), (2, 1.25)):
        arrival = disk.submit(Operation("read", 0, nbytes=nbytes), lambda: None)
        compute.submit(Operation("work", 0), lambda: None, [arrival])
        assert sink.spans[-1].end - sink.spans[-1].begin == pytest.approx(seconds)


def test_the_clock_never_runs_backwards() -> None:
    clock = VirtualClock()
    clock.advance(3)
    clock.advance(1)
    assert clock() == 3


JOBS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def run(jobs: list[tuple[int, int, bool]]) -> Machine:
    """Each is a block that is read, and the work on it, or on what was here."""
    machine = Machine()
    for nbytes, tokens, waits in jobs:
        arrival = machine.read(nbytes)
        machine.work(tokens, *([arrival] if waits else []))
    machine.disk.close()
    return machine


@given(JOBS)
@examples(100)
def test_no_lane_does_two_things_at_once_and_the_same_input_gives_the_same_times(
    jobs: list[tuple[int, int, bool]],
) -> None:
    machine = run(jobs)
    for lane in ("disk", "compute"):
        spans = machine.spans(lane)
        assert all(begin <= end for begin, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert machine.sink.spans == run(jobs).sink.spans


@given(JOBS)
@examples(50)
def test_times_are_those_of_simpy(jobs: list[tuple[int, int, bool]]) -> None:
    world = simpy.Environment()
    disk = simpy.Resource(world)
    ends: list[float] = []

    def read(nbytes: int, done: simpy.Event) -> Generator[simpy.Event]:
        with disk.request() as turn:
            yield turn
            yield world.timeout(nbytes)
        done.succeed()

    def host() -> Generator[simpy.Event]:
        for nbytes, tokens, waits in jobs:
            done = world.event()
            world.process(read(nbytes, done))
            if waits:
                yield done
            yield world.timeout(tokens)
            ends.append(world.now)

    world.process(host())
    world.run()
    assert [end for _, end in run(jobs).spans("compute")] == pytest.approx(ends)


ODD = 0.0377  # seconds


class TestAWire:
    """Two lanes that share one: caches go before blocks."""

    def lanes(self, piece: float = inf) -> tuple[Sink, VirtualClock, VirtualLane, VirtualLane]:
        sink, clock = Sink(), VirtualClock()
        wire = VirtualWire(sink, clock, piece)
        blocks, caches = (
            VirtualLane(name, sink, clock, lambda operation: float(operation.nbytes), 0.0, wire, rank)
            for name, rank in (("blocks", 0), ("caches", -1))
        )
        return sink, clock, blocks, caches

    def send(self, lane: VirtualLane, nbytes: int) -> Event:
        return lane.submit(Operation("send", 0, nbytes=nbytes), lambda: None)

    def test_what_goes_first_waits_for_what_has_begun_and_puts_off_the_rest(self) -> None:
        sink, clock, blocks, caches = self.lanes()
        self.send(blocks, 2)
        late = self.send(blocks, 3)
        self.send(caches, 4).wait()
        assert clock() == 6
        assert not late.is_done()
        late.wait()
        assert clock() == 9
        blocks.close()
        assert [(span.lane, span.begin, span.end) for span in sink.spans] == [
            ("blocks", 0, 2),
            ("caches", 2, 6),
            ("blocks", 6, 9),
        ]

    def test_what_is_sent_in_pieces_lets_others_go_between_them_and_goes_on(self) -> None:
        sink, clock, blocks, caches = self.lanes(piece=2)
        large = self.send(blocks, 5)
        clock.advance(1)
        self.send(caches, 3).wait()
        assert clock() == 2 + 3
        clock.advance(6)
        self.send(caches, 1).wait()
        assert clock() == 5 + 2 + 1, "the block went on at 5, for a piece"
        large.wait()
        assert clock() == 5 + 3 + 1
        blocks.close()
        assert [(span.lane, span.begin, span.end) for span in sink.spans] == [
            ("caches", 2, 5),
            ("caches", 7, 8),
            ("blocks", 0, 9),
        ]

    @given(
        st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=25),
        st.booleans(),
    )
    @examples(100)
    def test_times_are_those_of_simpy(self, jobs: list[tuple[bool, int, int]], in_pieces: bool) -> None:
        """Each is sent, on one lane or the other, and then so much time passes."""
        world = simpy.Environment()
        wire, lane = simpy.PriorityResource(world), simpy.Resource(world)
        expected: list[tuple[str, float, float]] = []

        def carry_cache(nbytes: int) -> Generator[simpy.Event]:
            with wire.request(priority=-1) as turn:
                yield turn
                begin = world.now
                yield world.timeout(nbytes)
                expected.append(("caches", begin, world.now))

        def carry_block(nbytes: int) -> Generator[simpy.Event]:
            begin = inf
            with lane.request() as first:
                yield first
                for piece in [1] * nbytes if in_pieces else [nbytes]:
                    with wire.request(priority=0) as turn:
                        yield turn
                        begin = min(begin, world.now)
                        yield world.timeout(piece)
                expected.append(("blocks", begin, world.now))

        def host() -> Generator[simpy.Event]:
            for first, nbytes, pause in jobs:
                world.process((carry_cache if first else carry_block)(nbytes))
                yield world.timeout(pause + ODD)  # so that nothing is sent at the very moment at which something ends

        world.process(host())
        world.run()
        sink, clock, blocks, caches = self.lanes(1 if in_pieces else inf)
        for first, nbytes, pause in jobs:
            self.send(caches if first else blocks, nbytes)
            clock.advance(clock() + pause + ODD)
        blocks.close()
        assert [span.lane for span in sink.spans] == [name for name, _, _ in expected]
        assert [span.begin for span in sink.spans] == pytest.approx([begin for _, begin, _ in expected])
        assert [span.end for span in sink.spans] == pytest.approx([end for _, _, end in expected])
