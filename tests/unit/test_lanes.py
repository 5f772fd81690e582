"""The contract of a lane, on a thread of its own and on the caller's."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Operation
from klotski.lanes import Event, InlineLane, ThreadLane
from klotski.lanes.threads import LaneClosedError
from tests.unit.fakes import FakeEvent, LateLane, Sink, examples, ticks

SOON = 5.0  # seconds; what has not happened by then never will
A_MOMENT = 0.02  # seconds; long enough for a thread to do what it must not


class BrokenError(Exception):
    pass


def nothing() -> None:
    pass


def fail() -> None:
    raise BrokenError("the disk is on fire")


def operation(number: int = 0) -> Operation:
    return Operation("read", number)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def lane(sink: Sink) -> Iterator[ThreadLane]:
    lane = ThreadLane("disk", sink, time.monotonic)
    yield lane
    lane.close()


class TestThreadLane:
    def test_runs_operations_in_the_order_of_submission(self, lane: ThreadLane, sink: Sink) -> None:
        ran: list[int] = []
        events = [lane.submit(operation(number), partial(ran.append, number)) for number in range(50)]
        for event in events:
            event.wait()
        assert ran == list(range(50))
        assert [span.operation.layer for span in sink.spans] == ran

    def test_submit_returns_before_the_operation_has_ended(self, lane: ThreadLane) -> None:
        gate = threading.Event()
        event = lane.submit(operation(), lambda: gate.wait(SOON))
        assert not event.is_done()
        gate.set()
        event.wait()
        assert event.is_done()

    def test_runs_on_a_thread_of_its_own(self, lane: ThreadLane) -> None:
        threads: list[int] = []
        lane.submit(operation(), lambda: threads.append(threading.get_ident())).wait()
        assert threads != [threading.get_ident()]

    def test_operations_never_overlap(self, lane: ThreadLane, sink: Sink) -> None:
        running = 0

        def run() -> None:
            nonlocal running
            running += 1
            time.sleep(0.001)
            assert running == 1
            running -= 1

        for event in [lane.submit(operation(number), run) for number in range(10)]:
            event.wait()
        assert all(before.end <= after.begin for before, after in pairwise(sink.spans))

    def test_a_span_lasts_as_long_as_its_operation(self, lane: ThreadLane, sink: Sink) -> None:
        lane.submit(operation(3), lambda: time.sleep(A_MOMENT)).wait()
        (span,) = sink.spans
        assert (span.lane, span.operation) == ("disk", operation(3))
        assert span.end - span.begin >= A_MOMENT * 0.9

    def test_the_span_is_there_when_the_event_is_done(self, lane: ThreadLane, sink: Sink) -> None:
        for number in range(20):
            lane.submit(operation(number), nothing).wait()
            assert len(sink.spans) == number + 1

    def test_an_operation_begins_after_those_it_depends_on(self, lane: ThreadLane, sink: Sink) -> None:
        other = ThreadLane("copy", sink, time.monotonic)
        gate = threading.Event()
        order: list[str] = []

        def wait() -> None:
            gate.wait(SOON)
            order.append("read")

        read = lane.submit(operation(), wait)
        copy = other.submit(operation(), lambda: order.append("copy"), [read])
        time.sleep(A_MOMENT)
        assert not copy.is_done()
        gate.set()
        copy.wait()
        other.close()
        assert order == ["read", "copy"]

    def test_waiting_for_a_dependency_belongs_to_no_span(self, lane: ThreadLane, sink: Sink) -> None:
        other = ThreadLane("copy", sink, time.monotonic)
        read = lane.submit(operation(), lambda: time.sleep(A_MOMENT))
        other.submit(operation(), nothing, [read]).wait()
        other.close()
        spans = {span.lane: span for span in sink.spans}
        assert spans["disk"].end <= spans["copy"].begin

    def test_wait_raises_what_the_operation_raised(self, lane: ThreadLane, sink: Sink) -> None:
        event = lane.submit(operation(), fail)
        for _ in range(2):
            with pytest.raises(BrokenError, match="on fire"):
                event.wait()
        assert event.is_done()
        assert not sink.spans

    def test_nothing_runs_after_an_operation_that_raised(self, lane: ThreadLane) -> None:
        ran: list[str] = []
        lane.submit(operation(), lambda: ran.append("before"))
        lane.submit(operation(), fail)
        after = lane.submit(operation(), lambda: ran.append("after"))
        with pytest.raises(BrokenError):
            after.wait()
        late = lane.submit(operation(), lambda: ran.append("late"))
        with pytest.raises(BrokenError):
            late.wait()
        assert ran == ["before"]

    def test_an_operation_whose_dependency_failed_raises_the_same(self, lane: ThreadLane, sink: Sink) -> None:
        other = ThreadLane("copy", sink, time.monotonic)
        ran: list[str] = []
        copy = other.submit(operation(), lambda: ran.append("copy"), [lane.submit(operation(), fail)])
        with pytest.raises(BrokenError):
            copy.wait()
        other.close()
        assert not ran

    def test_close_waits_for_the_operation_in_progress_and_drops_the_others(self, sink: Sink) -> None:
        lane = ThreadLane("disk", sink, time.monotonic)
        begun, ran = threading.Event(), []

        def slow() -> None:
            begun.set()
            time.sleep(A_MOMENT)
            ran.append("slow")

        lane.submit(operation(), slow)
        lane.submit(operation(), lambda: ran.append("dropped"))
        assert begun.wait(SOON)
        lane.close()
        time.sleep(A_MOMENT)
        assert ran == ["slow"]

    def test_close_ends_the_thread_and_may_be_called_twice(self, sink: Sink) -> None:
        lane = ThreadLane("disk", sink, time.monotonic)
        lane.submit(operation(), nothing).wait()
        lane.close()
        lane.close()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("klotski-disk")]

    def test_close_after_a_failure_does_not_hang_or_raise(self, sink: Sink) -> None:
        lane = ThreadLane("disk", sink, time.monotonic)
        lane.submit(operation(), fail)
        lane.close()


class Transfer:
    """Goes on elsewhere until the test says so; raises `error` then."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.error = error

    def begin(self) -> "Transfer":
        self.begun.set()
        return self

    def wait(self) -> None:
        assert self.gate.wait(SOON)
        if self.error is not None:
            raise self.error

    def end(self, event: Event) -> None:
        """Let it end, and return when the lane knows."""
        self.gate.set()
        with suppress(BrokenError):
            event.wait()


class Elsewhere(NamedTuple):
    """What another thread has been given to do."""

    future: Future[None]

    def wait(self) -> None:
        self.future.result()


class TestTransfersUnderWay:
    """Operations that are begun by the lane and go on elsewhere."""

    @pytest.fixture
    def deep(self, sink: Sink) -> Iterator[ThreadLane]:
        lane = ThreadLane("disk", sink, time.monotonic, depth=2)
        yield lane
        lane.close()

    def test_an_operation_has_ended_when_what_it_began_has(self, lane: ThreadLane, sink: Sink) -> None:
        transfer = Transfer()
        event = lane.submit(operation(), transfer.begin)
        assert transfer.begun.wait(SOON)
        time.sleep(A_MOMENT)
        assert not event.is_done()
        assert not sink.spans
        transfer.end(event)
        assert event.is_done()
        (span,) = sink.spans
        assert span.end - span.begin >= A_MOMENT * 0.9

    def test_without_depth_the_next_is_begun_when_the_last_has_ended(self, lane: ThreadLane) -> None:
        first, second = Transfer(), Transfer()
        events = [lane.submit(operation(number), each.begin) for number, each in enumerate((first, second))]
        assert first.begun.wait(SOON)
        assert not second.begun.wait(A_MOMENT)
        first.end(events[0])
        assert second.begun.wait(SOON)
        second.end(events[1])

    def test_as_many_are_under_way_as_the_lane_is_deep(self, deep: ThreadLane, sink: Sink) -> None:
        transfers = [Transfer() for _ in range(3)]
        events = [deep.submit(operation(number), each.begin) for number, each in enumerate(transfers)]
        assert transfers[1].begun.wait(SOON)
        assert not transfers[2].begun.wait(A_MOMENT)
        assert not any(event.is_done() for event in events)
        transfers[0].end(events[0])
        assert transfers[2].begun.wait(SOON)
        for transfer, event in zip(transfers[1:], events[1:], strict=True):
            transfer.end(event)
        assert [span.operation.layer for span in sink.spans] == [0, 1, 2]

    def test_they_end_in_the_order_in_which_they_were_begun(self, deep: ThreadLane, sink: Sink) -> None:
        first, second = Transfer(), Transfer()
        events = [deep.submit(operation(number), each.begin) for number, each in enumerate((first, second))]
        second.gate.set()
        time.sleep(A_MOMENT)
        assert not events[1].is_done()
        first.gate.set()
        events[1].wait()
        assert events[0].is_done()
        assert [span.operation.layer for span in sink.spans] == [0, 1]

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12),
        st.integers(1, 4),
    )
    @examples(30)
    def test_spans_never_overlap_and_lie_between_begin_and_end(self, drawn: list[tuple[int, bool]], depth: int) -> None:
        """Transfers of some milliseconds each, at once on a device that knows no order."""
        sink = Sink()
        lane = ThreadLane("disk", sink, time.monotonic, depth)
        begun: dict[int, float] = {}
        ended: dict[int, float] = {}
        under_way: set[int] = set()

        def transfer(number: int, duration: int) -> None:
            time.sleep(duration / 1000)
            ended[number] = time.monotonic()

        def begin(number: int, duration: int, is_pending: bool) -> object:
            begun[number] = time.monotonic()
            under_way.difference_update(ended)
            under_way.add(number)
            assert len(under_way) <= depth
            if is_pending:
                return Elsewhere(threads.submit(transfer, number, duration))
            transfer(number, duration)
            return None

        with ThreadPoolExecutor(4) as threads:
            numbers = range(len(drawn))
            events = [lane.submit(operation(n), partial(begin, n, *each)) for n, each in enumerate(drawn)]
            for event in events:
                event.wait()
            lane.close()
        assert [span.operation.layer for span in sink.spans] == list(numbers)
        assert all(before.end <= after.begin for before, after in pairwise(sink.spans))
        assert list(begun) == list(numbers)
        for span in sink.spans:
            number = span.operation.layer
            assert begun[number] - 0.001 <= span.begin <= span.end
            assert ended[number] <= span.end

    def test_what_had_begun_before_another_failed_ends_by_itself_and_none_is_begun_after(
        self, deep: ThreadLane, sink: Sink
    ) -> None:
        lost, found, never = Transfer(BrokenError("on fire")), Transfer(), Transfer()
        events = [deep.submit(operation(number), each.begin) for number, each in enumerate((lost, found, never))]
        assert found.begun.wait(SOON)
        lost.end(events[0])
        assert not events[1].is_done()
        found.end(events[1])
        events[1].wait()
        for event in (events[0], events[2], deep.submit(operation(3), never.begin)):
            with pytest.raises(BrokenError):
                event.wait()
        assert not never.begun.is_set()
        assert [span.operation.layer for span in sink.spans] == [1]

    def test_an_operation_that_is_just_being_begun_when_another_fails_ends_by_itself(
        self, deep: ThreadLane, sink: Sink
    ) -> None:
        lost, gate = Transfer(BrokenError("on fire")), threading.Event()
        first = deep.submit(operation(0), lost.begin)
        begun = threading.Event()

        def begin() -> None:
            begun.set()
            assert gate.wait(SOON)

        second = deep.submit(operation(1), begin)
        assert begun.wait(SOON)
        lost.end(first)
        gate.set()
        second.wait()
        assert [span.operation.layer for span in sink.spans] == [1]

    def test_an_operation_that_waits_for_its_dependencies_when_another_fails_is_not_begun(
        self, deep: ThreadLane, sink: Sink
    ) -> None:
        lost, ready = Transfer(BrokenError("on fire")), Transfer()
        other = ThreadLane("copy", sink, time.monotonic)
        dependency = other.submit(operation(), ready.begin)
        first = deep.submit(operation(0), lost.begin)
        ran: list[str] = []
        second = deep.submit(operation(1), lambda: ran.append("begun"), [dependency])
        assert lost.begun.wait(SOON)
        time.sleep(A_MOMENT)  # until the lane waits for the dependency
        lost.end(first)
        ready.end(dependency)
        with pytest.raises(BrokenError):
            second.wait()
        other.close()
        assert not ran

    def test_an_operation_that_could_not_be_begun_leaves_those_under_way_alone(
        self, deep: ThreadLane, sink: Sink
    ) -> None:
        found = Transfer()
        first, second = deep.submit(operation(0), found.begin), deep.submit(operation(1), fail)
        assert found.begun.wait(SOON)
        time.sleep(A_MOMENT)
        assert not second.is_done()
        found.end(first)
        first.wait()
        with pytest.raises(BrokenError):
            second.wait()
        assert [span.operation.layer for span in sink.spans] == [0]

    def test_close_waits_for_all_that_are_under_way_and_ends_the_others(self, sink: Sink) -> None:
        lane = ThreadLane("disk", sink, time.monotonic, depth=2)
        transfers = [Transfer() for _ in range(4)]
        events = [lane.submit(operation(number), each.begin) for number, each in enumerate(transfers)]
        assert transfers[1].begun.wait(SOON)
        closing = threading.Thread(target=lane.close)
        closing.start()
        time.sleep(A_MOMENT)
        assert closing.is_alive()
        for transfer in transfers[:2]:
            transfer.gate.set()
        closing.join()
        for event in events[:2]:
            event.wait()
        for event in events[2:]:
            with pytest.raises(LaneClosedError, match="disk lane was closed"):
                event.wait()
        assert not any(transfer.begun.is_set() for transfer in transfers[2:])
        assert [span.operation.layer for span in sink.spans] == [0, 1]


class TestInlineLane:
    def test_has_run_the_operation_on_the_callers_thread_when_submit_returns(self, sink: Sink) -> None:
        threads: list[int] = []
        lane = InlineLane("compute", sink, ticks())
        event = lane.submit(operation(), lambda: threads.append(threading.get_ident()))
        assert threads == [threading.get_ident()]
        assert event.is_done()
        event.wait()

    def test_a_wait_for_what_has_come_is_no_bubble(self, sink: Sink) -> None:
        lane = InlineLane("compute", sink, ticks())
        lane.submit(operation(), nothing, [FakeEvent(done=True)])
        assert not sink.bubbles
        assert len(sink.spans) == 1

    def test_reports_a_wait_as_a_bubble_of_the_operation_that_waited(self, sink: Sink) -> None:
        clock = ticks()
        disk, lane = LateLane("disk", sink, clock), InlineLane("compute", sink, clock)
        order: list[str] = []
        read = disk.submit(operation(1), lambda: order.append("read"))
        lane.submit(operation(2), lambda: order.append("compute"), [read])
        assert order == ["read", "compute"]
        (bubble,) = sink.bubbles
        reading, computing = sink.spans
        assert bubble.lane == "compute"
        assert bubble.operation == operation(2)
        assert bubble.begin < reading.begin < reading.end < bubble.end <= computing.begin

    def test_several_waits_of_one_operation_are_one_bubble(self, sink: Sink) -> None:
        disk, lane = LateLane("disk", sink, ticks()), InlineLane("compute", sink, ticks())
        events = [disk.submit(operation(), nothing) for _ in range(3)]
        lane.submit(operation(), nothing, [FakeEvent(done=True), *events])
        assert len(sink.bubbles) == 1

    def test_the_bubble_lasts_until_another_thread_is_ready(self, sink: Sink, lane: ThreadLane) -> None:
        compute = InlineLane("compute", sink, time.monotonic)
        compute.submit(operation(), nothing, [lane.submit(operation(), lambda: time.sleep(A_MOMENT))])
        (bubble,) = sink.bubbles
        assert bubble.end - bubble.begin >= A_MOMENT * 0.5

    def test_what_the_operation_raises_comes_out_of_submit(self, sink: Sink) -> None:
        lane = InlineLane("compute", sink, ticks())
        with pytest.raises(BrokenError):
            lane.submit(operation(), fail)
        assert not sink.spans

    @pytest.mark.parametrize("known", [True, False], ids=["failed before", "fails while awaited"])
    def test_what_a_dependency_raised_comes_out_of_submit(self, sink: Sink, lane: ThreadLane, known: bool) -> None:
        gate = threading.Event()

        def fail_late() -> None:
            gate.wait(SOON)
            fail()

        read = lane.submit(operation(), fail_late)
        ran: list[str] = []
        threading.Timer(0 if known else A_MOMENT, gate.set).start()
        while known and not read.is_done():
            time.sleep(0.001)
        with pytest.raises(BrokenError):
            InlineLane("compute", sink, time.monotonic).submit(operation(), lambda: ran.append("x"), [read])
        assert not ran

    def test_close_may_be_called_twice(self, sink: Sink) -> None:
        lane = InlineLane("compute", sink, ticks())
        lane.close()
        lane.close()
