"""Places for keys and values in CPU memory: taken once, and used by one batch after another."""

from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch

from klotski.executors.caches import CachePlaces, Place


class Owner(SimpleNamespace):
    """A batch, as far as a place knows one."""

    is_finished = False


def place_for(places: CachePlaces, owner: Owner) -> Place:
    place, batch = Place(places), ref(owner)
    place.owner = batch  # type: ignore[assignment]
    return place


def test_memory_is_taken_once_and_handed_out_piece_by_piece() -> None:
    taken: list[int] = []

    def allocate(nbytes: int) -> torch.Tensor:
        taken.append(nbytes)
        return torch.zeros(nbytes, dtype=torch.uint8)

    places, owners = CachePlaces(2, 10, allocate), [Owner(), Owner()]
    pieces = [place.allocate(size) for place in (place_for(places, each) for each in owners) for size in (4, 6)]
    assert taken == [places.nbytes] == [20]
    addresses = [piece.data_ptr() - pieces[0].data_ptr() for piece in pieces]
    assert addresses == [0, 4, 10, 14]
    assert [len(piece) for piece in pieces] == [4, 6, 4, 6]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_batch_that_has_ended_gives_its_place_up(is_gone: bool) -> None:
    places = CachePlaces(2, 8, lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))
    owners: list[Any] = [Owner(), Owner()]
    first, _ = [place_for(places, owner).allocate(8) for owner in owners]
    if is_gone:
        owners[0] = None
    else:
        owners[0].is_finished = True
    later = Owner()
    assert place_for(places, later).allocate(8).data_ptr() == first.data_ptr()


def test_no_two_batches_share_a_place_and_none_has_more_than_one() -> None:
    places, owners = CachePlaces(1, 8, lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8)), [Owner(), Owner()]
    place = place_for(places, owners[0])
    place.allocate(5)
    with pytest.raises(AssertionError, match="more than was planned"):
        place.allocate(4)
    with pytest.raises(AssertionError, match="more batches are under way"):
        place_for(places, owners[1]).allocate(1)
