"""CPU memory between disk and device: what is read there early, and that nothing is read over anything."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Block, Operation
from klotski.weights.window import EARLY, FEWEST, Window
from tests.unit.fakes import LateLane, Sink, examples, ticks

BLOCKS = [Block(layer, expert) for layer in range(4) for expert in range(-1, 3)]
SMALL, LARGE = 1, EARLY  # bytes of a block


class Ground:
    """A window between two late lanes, and what is in its places."""

    def __init__(self, places: int, nbytes: int = LARGE, host: Sequence[Block] = ()) -> None:
        self.sink = Sink()
        self.disk, self.link = LateLane("disk", self.sink, ticks()), LateLane("link", self.sink, ticks())
        self.places: list[Block | None] = [None] * places
        self.lifted: list[Block] = []
        self.window = Window(
            places,
            self.disk,
            self.link,
            lambda block: block not in host,
            lambda block: Operation("block", block.layer, block.expert, nbytes=nbytes),
            self.read,
        )

    def read(self, block: Block, place: int) -> None:
        self.places[place] = block

    def carry(self, block: Block) -> None:
        def lift(place: int) -> None:
            assert self.places[place] == block
            self.lifted.append(block)

        self.window.carry(block, lift, ())

    def reads(self) -> list[Block]:
        return [Block(span.operation.layer, span.operation.expert) for span in self.sink.spans if span.lane == "disk"]


def test_what_is_expected_is_read_before_it_is_sent_for_and_once() -> None:
    ground = Ground(4)
    ground.window.expect(BLOCKS[:2])
    ground.window.read_on()
    ground.disk.advance(9)
    assert ground.reads() == BLOCKS[:2]
    ground.carry(BLOCKS[0])
    ground.link.advance(1)
    assert ground.lifted == BLOCKS[:1]
    assert ground.reads() == BLOCKS[:2]


def test_the_disk_is_given_little_at_a_time_so_that_what_is_asked_for_comes_soon() -> None:
    ground = Ground(8)
    ground.window.expect(BLOCKS[:6])
    ground.window.read_on()
    ground.carry(BLOCKS[9])
    ground.window.read_on()
    ground.disk.advance(99)
    assert ground.reads() == [*BLOCKS[:FEWEST], BLOCKS[9]]


def test_of_small_blocks_many_are_little() -> None:
    ground = Ground(8, SMALL)
    ground.window.expect(BLOCKS[:6])
    ground.window.read_on()
    ground.disk.advance(99)
    assert ground.reads() == BLOCKS[:6]


def test_what_is_urgent_comes_first() -> None:
    ground = Ground(1)
    ground.window.expect(BLOCKS[:2])
    ground.window.expect([BLOCKS[5]], is_urgent=True)
    ground.window.read_on()
    ground.disk.advance(9)
    assert ground.reads() == [BLOCKS[5]]


def test_there_is_room_for_as_many_as_there_are_places() -> None:
    ground = Ground(3, host=BLOCKS[:2])
    ground.window.expect(BLOCKS[:4])  # two of them are in CPU memory anyway
    room = [ground.window.has_room]
    ground.window.expect(BLOCKS[4:5])
    room.append(ground.window.has_room)
    ground.window.forget(0)
    room.append(ground.window.has_room)
    assert room == [True, False, True]


def test_what_nobody_wants_any_more_leaves_its_place_when_it_has_been_read() -> None:
    ground = Ground(1)
    ground.window.expect(BLOCKS[:1])
    ground.window.read_on()
    ground.window.forget(BLOCKS[0].layer)
    ground.carry(BLOCKS[5])
    ground.disk.advance(2)
    ground.link.advance(1)
    assert (ground.reads(), ground.lifted) == ([BLOCKS[0], BLOCKS[5]], [BLOCKS[5]])


DEEDS = st.one_of(
    st.tuples(st.just("expect"), st.lists(st.sampled_from(BLOCKS), unique=True), st.booleans()),
    st.tuples(st.just("carry"), st.sampled_from(BLOCKS)),
    st.tuples(st.just("read on")),
    st.tuples(st.just("forget"), st.integers(0, 3)),
    st.tuples(st.just("disk"), st.integers(1, 3)),
    st.tuples(st.just("link"), st.integers(1, 3)),
)


@given(st.integers(1, 5), st.sampled_from([SMALL, LARGE]), st.lists(DEEDS, max_size=40))
@examples(300)
def test_whatever_happens_what_is_lifted_is_what_was_sent_for(
    places: int, nbytes: int, deeds: list[tuple[object, ...]]
) -> None:
    ground = Ground(places, nbytes)
    carried: list[Block] = []
    for deed in deeds:
        match deed:
            case "expect", list() as blocks, bool() as is_urgent:
                ground.window.expect(blocks, is_urgent=is_urgent)
            case "carry", Block() as block:
                ground.carry(block)
                carried.append(block)
            case ("read on",):
                ground.window.read_on()
            case "forget", int() as layer:
                ground.window.forget(layer)
            case "disk", int() as count:
                ground.disk.advance(count)
            case "link", int() as count:
                ground.link.advance(count)
    ground.window.close()
    ground.link.advance(len(carried))
    assert ground.lifted == carried
