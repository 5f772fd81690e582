"""A card of threads finds what it is there to find."""

import pytest
import torch

from klotski.executors.devices import CudaDevice
from tests.card import Card
from tests.card.streams import CurrentStream, Stream

PLACE = torch.device("cuda", 0)


def test_numbers_are_there_for_who_waits() -> None:
    with Card() as card:
        left, right = torch.ones(3, 4, device=PLACE), torch.full((4, 2), 2.0, device=PLACE)
        product = left @ right
        assert product.is_cuda and product.device == PLACE
        assert not card.waits
        assert product.tolist() == [[8.0, 8.0]] * 3
        assert len(card.waits) == 1


def test_the_limit_of_an_earlier_run_is_not_the_next_ones() -> None:
    with Card():
        device = CudaDevice()
        free = device.memory()
        device.limit(1000, 0)
        assert device.memory() == free


def test_two_streams_at_the_same_bytes_are_a_race_whoever_was_first() -> None:
    with pytest.raises(AssertionError, match=r"1 races: aten::add_ on stream 1 and aten::mul_ on 0"), Card():
        numbers = torch.ones(4, device=PLACE)
        numbers.mul_(2)
        with Stream():
            numbers.add_(1)
        torch.cuda.synchronize()


def test_two_that_read_or_are_at_other_bytes_are_none() -> None:
    with Card():
        numbers = torch.ones(4, device=PLACE)
        torch.cuda.synchronize()
        numbers[:2].mul_(2)
        sums = numbers.new_empty(2)
        with Stream() as stream:
            numbers[2:].mul_(3)
            stream.wait_event(CurrentStream.default.record_event())
            torch.sum(numbers, 0, out=sums[0])
        CurrentStream.default.wait_event(stream.record_event())
        torch.sum(numbers, 0, out=sums[1])
        assert sums.tolist() == [10, 10]


@pytest.mark.parametrize("how", ["event", "host"])
def test_who_has_waited_comes_behind(how: str) -> None:
    with Card():
        numbers = torch.ones(4, device=PLACE)
        event = CurrentStream.default.record_event()
        with Stream() as stream:
            if how == "event":
                stream.wait_event(event)
            else:
                event.synchronize()
            numbers.add_(1)
        stream.synchronize()
        assert numbers.tolist() == [2] * 4


def test_memory_that_is_given_up_while_another_stream_is_at_it_is_a_race() -> None:
    with pytest.raises(AssertionError, match="another use of its memory"), Card():
        numbers = torch.ones(4, device=PLACE)
        event = CurrentStream.default.record_event()
        with Stream() as stream:
            stream.wait_event(event)
            numbers.add_(1)
        del numbers
        torch.cuda.synchronize()


def test_fresh_memory_and_memory_taken_away_are_no_numbers() -> None:
    with Card():
        assert torch.empty(3, device=PLACE).isnan().all()
        numbers = torch.ones(4, device=PLACE)
        part = numbers[1:]
        numbers.untyped_storage().resize_(0)
        assert part.isnan().all()


def test_a_copy_out_of_pinned_memory_is_late_and_one_out_of_other_memory_is_not() -> None:
    with Card() as card:
        pinned, other = torch.ones(4, pin_memory=True), torch.ones(4)
        held = torch.empty(4, device=PLACE), torch.empty(4, device=PLACE)
        gate = CurrentStream.default
        gate.queue(lambda: pinned.fill_(7))  # as if the host had been quick
        held[0].copy_(pinned, non_blocking=True)
        held[1].copy_(other, non_blocking=True)
        other.fill_(7)
        assert [each.tolist() for each in held] == [[7] * 4, [1] * 4]
        assert len(card.waits) == 2


def test_what_lies_in_cpu_memory_is_refused_and_so_is_more_than_there_is() -> None:
    with Card(memory=1000):
        numbers = torch.ones(4, device=PLACE)
        with pytest.raises(RuntimeError, match="same device"):
            numbers.add_(torch.ones(4))
        with pytest.raises(torch.OutOfMemoryError, match="of 1000"):
            torch.empty(1000, device=PLACE)
        with pytest.raises(TypeError, match="cuda"):
            numbers.numpy()


def test_what_an_operation_raises_is_told_later() -> None:
    with pytest.raises(RuntimeError, match="on the card failed"), Card():
        torch.ones(4, device=PLACE).index_select(0, torch.tensor([9], device=PLACE))
        torch.cuda.synchronize()


def test_torch_is_as_it_was_afterwards() -> None:
    before = torch.Stream, torch.Event, torch.cuda.is_available()
    with Card():
        assert torch.cuda.is_available()
    assert before == (torch.Stream, torch.Event, torch.cuda.is_available())
