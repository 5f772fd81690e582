"""The contract of a lane, on a thread of its own and on the caller's."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest

from klotski.core import Operation
from klotski.lanes import InlineLane, ThreadLane
from tests.unit.fakes import FakeEvent, LateLane, Sink, ticks

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
        assert "klotski-disk" not in [thread.name for thread in threading.enumerate()]

    def test_close_after_a_failure_does_not_hang_or_raise(self, sink: Sink) -> None:
        lane = ThreadLane("disk", sink, time.monotonic)
        lane.submit(operation(), fail)
        lane.close()


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
