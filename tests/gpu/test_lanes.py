"""CUDA lanes keep the contract of lanes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from random import Random

import pytest
import torch

from klotski.core import LaneName, Operation
from klotski.executors.devices import CudaDevice
from klotski.lanes import Event, Lane, ThreadLane
from tests.card import Card
from tests.unit.fakes import Sink


@pytest.fixture
def size(card: AbstractContextManager[object]) -> int:
    """Bytes: long enough for a race to be lost, where it is not found in any other way."""
    return 1 << 16 if isinstance(card, Card) else 64 << 20


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def lanes(card: AbstractContextManager[object], sink: Sink) -> Iterator[tuple[CudaDevice, Lane, Lane]]:
    with card:
        device = CudaDevice()
        make = device.lanes(time.monotonic)
        link, compute = make(LaneName.LINK, sink), make(LaneName.COMPUTE, sink)
        yield device, link, compute
        link.close()
        compute.close()


def test_a_kernel_sees_what_was_copied_before_it_and_a_slot_is_refilled_after_its_use(
    lanes: tuple[CudaDevice, Lane, Lane], size: int
) -> None:
    device, link, compute = lanes
    slot, numbers = device.allocate(size), 40
    pages = [device.allocate_host(size).fill_(number) for number in range(numbers)]
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    use: list[Event] = []
    for number, page in enumerate(pages):
        arrival = link.submit(Operation("copy", number), partial(device.copy, slot, page), use)
        use = [compute.submit(Operation("look", number), lambda: found.append((slot.min(), slot.max())), [arrival])]
    device.wait()
    assert [(int(least), int(most)) for least, most in found] == [(number, number) for number in range(numbers)]


def test_a_copy_waits_for_the_host_without_holding_up_who_submits(
    lanes: tuple[CudaDevice, Lane, Lane], size: int
) -> None:
    device, link, _ = lanes
    slot, page = device.allocate(size), device.allocate_host(size)
    disk = ThreadLane("disk", Sink(), time.monotonic)

    def read() -> None:
        time.sleep(0.2)
        page.fill_(7)

    begin = time.perf_counter()
    arrival = link.submit(Operation("copy", 0), lambda: device.copy(slot, page), [disk.submit(Operation("r", 0), read)])
    assert time.perf_counter() - begin < 0.1
    assert not arrival.is_done()
    arrival.wait()
    assert int(slot.min()) == int(slot.max()) == 7
    disk.close()


def test_spans_of_a_lane_never_overlap_and_waits_are_bubbles(
    lanes: tuple[CudaDevice, Lane, Lane], sink: Sink, size: int
) -> None:
    device, link, compute = lanes
    slot, page = device.allocate(size), device.allocate_host(size)
    use: list[Event] = []
    for number in range(20):
        arrival = link.submit(Operation("copy", number), lambda: device.copy(slot, page), use)
        use = [compute.submit(Operation("sum", number), lambda: slot.sum(), [arrival])]
    link.close()
    compute.close()
    for lane in (LaneName.LINK, LaneName.COMPUTE):
        spans = [span for span in sink.spans if span.lane == lane]
        assert [span.operation.layer for span in spans] == list(range(20))
        assert all(former.end <= latter.begin for former, latter in pairwise(spans))
    assert sink.bubbles


def test_what_an_operation_raises_comes_out_of_its_event(lanes: tuple[CudaDevice, Lane, Lane]) -> None:
    _, link, _ = lanes

    def fail() -> None:
        raise ValueError("as told")

    event = link.submit(Operation("copy", 0), fail)
    with pytest.raises(ValueError, match="as told"):
        event.wait()


def test_random_traffic_over_few_slots_loses_no_race(card: AbstractContextManager[object]) -> None:
    with card:
        loses_no_race()


def loses_no_race() -> None:
    device, sink, random = CudaDevice(), Sink(), Random(0)
    make = device.lanes(time.monotonic)
    link, back, compute = (make(name, sink) for name in (LaneName.LINK, LaneName.KV_OUT, LaneName.COMPUTE))
    pages = [device.allocate_host(1 << 20).fill_(number) for number in range(8)]
    slots = [device.allocate(1 << 20) for _ in range(3)]
    homes = [device.allocate_host(1 << 20) for _ in range(200)]
    last: list[list[Event]] = [[] for _ in slots]
    wanted = []
    for turn, home in enumerate(homes):
        place, page = random.randrange(len(slots)), random.randrange(len(pages))
        slot = slots[place]
        arrival = link.submit(Operation("in", turn), partial(device.copy, slot, pages[page]), last[place])
        use = compute.submit(Operation("add", turn), partial(slot.add_, 1), [arrival])
        last[place] = [back.submit(Operation("out", turn), partial(device.copy, home, slot), [use])]
        wanted.append(page + 1)
    device.wait()
    for lane in (link, back, compute):
        lane.close()
    torch.cuda.synchronize()
    assert [int(home[random.randrange(1 << 20)]) for home in homes] == wanted
