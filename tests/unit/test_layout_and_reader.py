"""Blocks read in place are what torch would have sliced out of the checkpoint."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from klotski.core import DENSE, Block
from klotski.errors import CheckpointError
from klotski.lanes import ThreadLane
from klotski.weights import SlotKind
from klotski.weights.carriers import FromDisk
from klotski.weights.checkpoint import Checkpoint
from klotski.weights.layout import ALIGNMENT, LARGE, BlockLayout, ParameterSpec, Part, lay_out
from klotski.weights.memory import PAGE, allocate
from klotski.weights.reader import Reader, largest_staging
from klotski.weights.requests import REQUEST
from klotski.weights.store import BlockStore
from tests.unit.fakes import Sink, examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CANARY = 0xA5  # fills a slot before it is read into


@pytest.fixture
def reader() -> Iterator[Reader]:
    """For blocks of a few numbers, which lie in two pages."""
    with closing(Reader(staging=4 * PAGE)) as reader:
        yield reader


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(shape, generator=generator).to(draw(st.sampled_from(DTYPES)))


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def fresh_slot(nbytes: int) -> torch.Tensor:
    """A slot, some larger than the block that it is for, full of canaries."""
    return allocate(nbytes + 2 * PAGE).fill_(CANARY)


def read_alone(layout: BlockLayout, slot: torch.Tensor) -> None:
    """Fill a slot through a reader with no more staging than it needs."""
    with closing(Reader(largest_staging([layout]))) as reader:
        reader.read(layout, slot)


def read_views(layout: BlockLayout) -> dict[str, torch.Tensor]:
    """The parameters of a block, after it was read into a slot of which nothing else was touched."""
    slot = fresh_slot(layout.slot_bytes)
    read_alone(layout, slot)
    untouched = slot.clone()
    for view in layout.views_of(untouched).values():
        view.view(-1).view(torch.uint8).fill_(CANARY)
    assert (untouched == CANARY).all(), "the reader wrote where no parameter is"
    return layout.views_of(slot)


def assert_same(view: torch.Tensor, expected: torch.Tensor, wanted: torch.dtype) -> None:
    assert view.dtype == wanted
    assert view.shape == expected.shape
    assert torch.equal(view, expected.to(wanted))


SIZES = st.integers(1, 9)


@given(st.data(), st.integers(1, 4), SIZES, SIZES, st.sampled_from(DTYPES), st.booleans())
@examples(40)
def test_experts_that_lie_apart_are_read_into_the_fused_layout(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    experts: int,
    inner: int,
    hidden: int,
    wanted: torch.dtype,
    bias: bool,
) -> None:
    shapes = {"w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)} | ({"b": (hidden,)} if bias else {})
    stored = {
        f"experts.{expert}.{name}": data.draw(tensors(shape))
        for expert in range(experts)
        for name, shape in shapes.items()
    }
    checkpoint = save(tmp_path_factory.mktemp("apart"), stored)
    # As the rules of transformers put them: gate above up, every expert's tensors in one list.
    parts = {
        "gate_up_proj": [
            Part(f"experts.{expert}.{name}", expert, start)
            for name, start in (("w1", 0), ("w3", inner))
            for expert in range(experts)
        ],
        "down_proj": [Part(f"experts.{expert}.w2", expert) for expert in range(experts)],
        "bias": [Part(f"experts.{expert}.b", expert) for expert in range(experts)],
    }
    specs = [
        ParameterSpec("gate_up_proj", (2 * inner, hidden), wanted),
        ParameterSpec("down_proj", (hidden, inner), wanted),
    ]
    specs += [ParameterSpec("bias", (hidden,), wanted)] if bias else []
    for expert in range(experts):
        layout = lay_out(Block(0, expert), specs, parts, checkpoint)
        views = read_views(layout)
        names = [f"experts.{expert}.{name}" for name in shapes]
        assert layout.disk_bytes == sum(stored[name].nbytes for name in names)
        gate, up, down = (stored[name].to(wanted) for name in names[:3])
        assert_same(views["gate_up_proj"], torch.cat([gate, up]), wanted)
        assert_same(views["down_proj"], down, wanted)
        if bias:
            assert_same(views["bias"], stored[names[3]], wanted)


@given(st.data(), st.integers(1, 4), SIZES, SIZES, st.sampled_from(DTYPES), st.booleans())
@examples(40)
def test_experts_that_lie_fused_are_cut_out(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    experts: int,
    inner: int,
    hidden: int,
    wanted: torch.dtype,
    split: bool,
) -> None:
    """Gate and up as one tensor of all experts, or as one of all gates and one of all ups."""
    if split:
        stored = {name: data.draw(tensors((experts, inner, hidden))) for name in ("gate", "up")}
        parts = [Part("gate"), Part("up", start=inner)]
    else:
        stored = {"gate_up": data.draw(tensors((experts, 2 * inner, hidden)))}
        parts = [Part("gate_up")]
    stored["bias"] = data.draw(tensors((experts, hidden)))
    checkpoint = save(tmp_path_factory.mktemp("fused"), stored)
    specs = [
        ParameterSpec("gate_up_proj", (2 * inner, hidden), wanted),
        ParameterSpec("bias", (hidden,), wanted),
    ]
    for expert in range(experts):
        layout = lay_out(Block(0, expert), specs, {"gate_up_proj": parts, "bias": [Part("bias")]}, checkpoint)
        views = read_views(layout)
        expected = [stored[part.tensor][expert].to(wanted) for part in parts]
        assert_same(views["gate_up_proj"], torch.cat(expected), wanted)
        assert_same(views["bias"], stored["bias"][expert], wanted)


@given(st.data(), st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=6))
@examples(40)
def test_a_dense_part_is_read_whole_whatever_its_shapes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shapes: list[tuple[int, ...]]
) -> None:
    stored = {f"p{index}": data.draw(tensors(shape)) for index, shape in enumerate(shapes)}
    checkpoint = save(tmp_path_factory.mktemp("dense"), stored)
    wanted = {name: data.draw(st.sampled_from(DTYPES)) for name in stored}
    specs = [ParameterSpec(name, tuple(tensor.shape), wanted[name]) for name, tensor in stored.items()]
    layout = lay_out(Block(0), specs, {name: [Part(name)] for name in stored}, checkpoint)
    views = read_views(layout)
    assert list(views) == list(stored)
    for name, tensor in stored.items():
        assert_same(views[name], tensor, wanted[name])
        assert layout.views[name][0] % ALIGNMENT == 0
    assert layout.slot_bytes % PAGE == 0


def test_parameters_do_not_share_a_byte(tmp_path: Path) -> None:
    stored = {"a": torch.ones(3), "b": torch.ones(40), "c": torch.ones(())}
    specs = [ParameterSpec(name, tuple(tensor.shape), torch.float32) for name, tensor in stored.items()]
    layout = lay_out(Block(0), specs, {name: [Part(name)] for name in stored}, save(tmp_path, stored))
    memory = torch.zeros(layout.slot_bytes, dtype=torch.uint8)
    for name, view in layout.views_of(memory).items():
        view.fill_(1.0)
        others = [other for key, other in layout.views_of(memory).items() if key != name]
        assert not any(other.any() for other in others)
        view.zero_()


# The numbers of a parameter that is worth a page of padding to be read in place, and of one that is not.
LENGTHS = st.one_of(st.integers(1, 3000), st.integers(LARGE // 8, LARGE // 2))


@given(st.data(), st.lists(LENGTHS, min_size=2, max_size=6), st.integers(0, 9))
@examples(40)
def test_parameters_around_the_size_of_a_page_are_what_safetensors_has(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, lengths: list[int], odd: int
) -> None:
    """Two tensors a parameter, which are neighbours or lie apart, as they are stored or not."""
    folder = tmp_path_factory.mktemp("large")
    stored = {f"t{index}": data.draw(tensors((length,))) for index, length in enumerate(lengths)}
    # Neighbours of odd sizes, so that nothing in the file lies at a round offset.
    save(folder, stored | {f"t{index}.odd": torch.ones(odd * index, dtype=torch.uint8) for index in range(6)})
    names = data.draw(st.permutations(list(stored)))
    pairs = [names[start : start + 2] for start in range(0, len(names), 2)]
    wanted = data.draw(st.lists(st.sampled_from(DTYPES), min_size=len(pairs), max_size=len(pairs)))
    specs, parts = [], {}
    for index, (pair, dtype) in enumerate(zip(pairs, wanted, strict=True)):
        specs.append(ParameterSpec(f"p{index}", (sum(len(stored[name]) for name in pair),), dtype))
        parts[f"p{index}"] = [Part(pair[0]), *(Part(name, start=len(stored[pair[0]])) for name in pair[1:])]
    views = read_views(lay_out(Block(0), specs, parts, Checkpoint(folder)))
    found = load_file(folder / "model.safetensors")
    for (view, spec), pair in zip(zip(views.values(), specs, strict=True), pairs, strict=True):
        assert_same(view, torch.cat([found[name].to(spec.dtype) for name in pair]), spec.dtype)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
    ids=["narrowed", "widened", "as it is"],
)
@pytest.mark.parametrize("more", [0, 3], ids=["whole", "with a rest"])
def test_a_tensor_larger_than_a_request(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype, more: int) -> None:
    elements = REQUEST // stored.itemsize + more * 1000 + more
    tensor = torch.arange(elements, dtype=torch.float32).to(stored)
    # An odd neighbour, so that nothing in the file lies at a round offset.
    checkpoint = save(tmp_path, {"odd": torch.ones(3, dtype=torch.uint8), "t": tensor})
    layout = lay_out(Block(0), [ParameterSpec("t", (elements,), wanted)], {"t": [Part("t")]}, checkpoint)
    assert_same(read_views(layout)["t"], tensor, wanted)


def expert_of(folder: Path, inner: int, hidden: int) -> tuple[dict[str, torch.Tensor], BlockLayout]:
    """An expert as Mixtral has it: three matrices that are neighbours in the file, of which two become one."""
    generator = torch.Generator().manual_seed(inner)
    shapes = {"a": (7,), "w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden), "z": (7,)}
    stored = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    specs = [
        ParameterSpec("gate_up_proj", (2 * inner, hidden), torch.float32),
        ParameterSpec("down_proj", (hidden, inner), torch.float32),
    ]
    parts = {"gate_up_proj": [Part("w1", 0), Part("w3", 0, inner)], "down_proj": [Part("w2", 0)]}
    return stored, lay_out(Block(0, 0), specs, parts, save(folder, stored))


def test_a_large_expert_is_read_straight_into_its_slot(tmp_path: Path) -> None:
    stored, layout = expert_of(tmp_path, inner=1664, hidden=1024)
    assert layout.disk_bytes > 20e6
    assert len(layout.requests) == -(-layout.disk_bytes // REQUEST), "three neighbours are read as one"
    assert sum(request.staged for request in layout.requests) < layout.disk_bytes / 100
    views = read_views(layout)
    assert torch.equal(views["gate_up_proj"], torch.cat([stored["w1"], stored["w3"]]))
    assert torch.equal(views["down_proj"], stored["w2"])


def test_large_parameters_lie_as_far_past_a_page_as_they_do_in_their_file(tmp_path: Path) -> None:
    tensors = {"a": LARGE // 4, "b": LARGE // 4 - 1, "c": LARGE // 4 + 5, "d": 3}
    checkpoint = save(tmp_path, {name: torch.ones(length) for name, length in tensors.items()})
    specs = [ParameterSpec(name, (length,), torch.float32) for name, length in reversed(tensors.items())]
    layout = lay_out(Block(0), specs, {name: [Part(name)] for name in tensors}, checkpoint)
    shifts = {name: (offset - checkpoint.tensors[name].offset) % PAGE for name, (offset, _) in layout.views.items()}
    assert shifts["a"] == shifts["c"] == 0
    assert all(layout.views[name][0] % ALIGNMENT == 0 for name in ("b", "d"))
    ends = [offset + 4 * tensors[name] for name, (offset, _) in layout.views.items()]
    assert layout.slot_bytes < ends[-1] + PAGE


def test_numbers_that_lie_where_no_number_of_their_type_would_are_read_all_the_same(tmp_path: Path) -> None:
    """The format knows no alignment; only the library that writes it does."""
    tensor = torch.arange(LARGE, dtype=torch.float32)
    nbytes = tensor.nbytes
    header = json.dumps(
        {
            "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "t": {"dtype": "F32", "shape": [LARGE], "data_offsets": [3, 3 + nbytes]},
        }
    ).encode()
    numbers = tensor.view(torch.uint8).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"odd" + numbers)
    for wanted in DTYPES:
        layout = lay_out(Block(0), [ParameterSpec("t", (LARGE,), wanted)], {"t": [Part("t")]}, Checkpoint(tmp_path))
        assert_same(read_views(layout)["t"], tensor, wanted)


def test_a_slot_that_held_another_block_holds_nothing_of_it_afterwards(tmp_path: Path, reader: Reader) -> None:
    stored = {f"e{expert}": torch.full((5, 7), float(expert + 1)) for expert in range(2)}
    checkpoint = save(tmp_path, stored)
    parts = {"w": [Part(f"e{expert}", expert) for expert in range(2)]}
    layouts = [
        lay_out(Block(0, expert), [ParameterSpec("w", (5, 7), torch.float32)], parts, checkpoint) for expert in range(2)
    ]
    slot = allocate(layouts[0].slot_bytes)
    for layout in (*layouts, layouts[0]):
        reader.read(layout, slot)
        assert (layout.views_of(slot)["w"] == layout.block.expert + 1).all()


def test_a_block_may_come_from_several_shards(tmp_path: Path) -> None:
    stored = {"gate": torch.randn(3, 4), "up": torch.randn(3, 4)}
    for name, tensor in stored.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in stored}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    parts = {"gate_up": [Part("gate", 0, 0), Part("up", 0, 3)]}
    layout = lay_out(Block(0, 0), [ParameterSpec("gate_up", (6, 4), torch.float32)], parts, Checkpoint(tmp_path))
    view = read_views(layout)["gate_up"]
    assert torch.equal(view, torch.cat([stored["gate"], stored["up"]]))


def spec_of(shape: tuple[int, ...]) -> list[ParameterSpec]:
    return [ParameterSpec("w", shape, torch.float32)]


@pytest.mark.parametrize(
    ("block", "shape", "parts", "reason"),
    [
        (Block(0), (2, 3), [], "has no tensor for w of layer 0 dense; is a shard missing"),
        (Block(0, 2), (2, 3), [Part("a", 0), Part("b", 1)], "has no tensor for w of layer 0 expert 2"),
        (Block(0), (2, 4), [Part("a")], r"a has rows of shape \[3\] where w of layer 0 dense needs \[4\]"),
        (Block(0), (3, 3), [Part("a")], r"a holds 6 numbers where w of layer 0 dense needs \[3, 3\]"),
        (Block(0, 0), (4, 3), [Part("a", 0), Part("b", 1)], r"a holds 6 numbers"),
        (Block(0, 4), (3,), [Part("a")], "a has no expert 4"),
    ],
    ids=["nothing", "another expert's", "other columns", "too few rows", "half of it", "too few experts"],
)
def test_weights_that_do_not_belong_to_the_config_are_refused(
    tmp_path: Path, block: Block, shape: tuple[int, ...], parts: list[Part], reason: str
) -> None:
    checkpoint = save(tmp_path, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)})
    with pytest.raises(CheckpointError, match=reason):
        lay_out(block, spec_of(shape), {"w": parts}, checkpoint)


def checkpoint_and_layout(folder: Path, wanted: torch.dtype) -> tuple[Path, BlockLayout]:
    checkpoint = save(folder, {"a": torch.ones(100), "w": torch.ones(1000)})
    specs = [ParameterSpec("w", (1000,), wanted)]
    return folder / "model.safetensors", lay_out(Block(0), specs, {"w": [Part("w")]}, checkpoint)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16], ids=["as it is", "cast"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_file_that_shrank_after_its_header_was_read_is_named(
    tmp_path: Path, reader: Reader, wanted: torch.dtype, left: float
) -> None:
    file, layout = checkpoint_and_layout(tmp_path, wanted)
    os.truncate(file, int(file.stat().st_size * left))
    with pytest.raises(CheckpointError, match=rf"{file} was truncated"):
        reader.read(layout, allocate(layout.slot_bytes))


def test_a_file_that_went_away_after_its_header_was_read_is_named(tmp_path: Path, reader: Reader) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{file} could not be opened: No such file"):
        reader.read(layout, allocate(layout.slot_bytes))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, reader: Reader) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match=rf"{file} could not be read: Is a directory"):
        reader.read(layout, allocate(layout.slot_bytes))


def test_a_reader_may_be_closed_twice_and_leaves_no_file_open(tmp_path: Path) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    reader = Reader(largest_staging([layout]))
    reader.read(layout, allocate(layout.slot_bytes))
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert opened.count(file) == 1
    reader.close()
    reader.close()
    assert file not in [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


class TestBlockStore:
    """The same, through slots and a lane."""

    EXPERTS = 5

    @pytest.fixture
    def layouts(self, tmp_path: Path) -> dict[Block, BlockLayout]:
        stored = {"dense": torch.full((9,), -1.0)}
        stored |= {f"e{expert}": torch.full((4, 6), float(expert)) for expert in range(self.EXPERTS)}
        checkpoint = save(tmp_path, stored)
        experts = {"w": [Part(f"e{expert}", expert) for expert in range(self.EXPERTS)]}
        layouts = {
            Block(0, expert): lay_out(Block(0, expert), spec_of((4, 6)), experts, checkpoint)
            for expert in range(self.EXPERTS)
        }
        return layouts | {Block(0): lay_out(Block(0), spec_of((9,)), {"w": [Part("dense")]}, checkpoint)}

    @pytest.mark.parametrize("width", [8, 6])
    def test_experts_that_stay_are_stacked_where_a_kernel_can_load_their_rows(
        self, tmp_path: Path, reader: Reader, width: int
    ) -> None:
        numbers = {expert: torch.full((4, width), float(expert)) for expert in range(self.EXPERTS)}
        checkpoint = save(tmp_path, {f"e{expert}": each for expert, each in numbers.items()})
        parts = {"w": [Part(f"e{expert}", expert) for expert in numbers]}
        layouts = {
            Block(layer, expert): lay_out(Block(layer, expert), spec_of((4, width)), parts, checkpoint)
            for layer in range(3)
            for expert in numbers
        }
        lane = ThreadLane("disk", Sink(), time.monotonic)
        staying = [Block(1, 4), Block(0, 2), Block(1, 0), Block(1, 3)]
        store = BlockStore(layouts, {SlotKind.EXPERT: 1}, staying, FromDisk(layouts, reader, lane))
        store.load_residents()
        lane.close()
        assert not store.stacks(2)
        assert not store.stacks(0), "one alone needs no stack"
        for stack in store.stacks(1):
            assert stack.experts == (0, 3, 4)
            assert torch.equal(stack.views["w"], torch.stack([numbers[expert] for expert in stack.experts]))
        assert len(store.stacks(1)) == (width == 8)

    def test_holds_what_was_planned_and_no_more(self, layouts: dict[Block, BlockLayout], reader: Reader) -> None:
        lane = ThreadLane("disk", Sink(), time.monotonic)
        store = BlockStore(
            layouts, {SlotKind.DENSE: 2, SlotKind.EXPERT: 3}, [Block(0, 1)], FromDisk(layouts, reader, lane)
        )
        lane.close()
        expert, dense = layouts[Block(0, 0)].slot_bytes, layouts[Block(0)].slot_bytes
        assert store.nbytes == 2 * dense + 3 * expert + expert

    @pytest.mark.parametrize("depth", [1, 2])
    def test_views_are_the_blocks_numbers_while_blocks_come_and_go(
        self, layouts: dict[Block, BlockLayout], reader: Reader, depth: int
    ) -> None:
        sink = Sink()
        lane = ThreadLane("disk", sink, time.monotonic, depth)
        resident = Block(0, 4)
        store = BlockStore(
            layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 2}, [resident], FromDisk(layouts, reader, lane)
        )
        store.load_residents()
        for expert in (0, 1, 2, 3, 0, 3, 1):
            block = Block(0, expert)
            store.residency.request(block)
            for event in store.residency.arrival(block):
                event.wait()
            assert (store.views(block)["w"] == expert).all()
            assert (store.views(resident)["w"] == 4).all()
            store.residency.release(block)
        lane.close()
        assert [span.operation.expert for span in sink.spans] == [4, 0, 1, 2, 3, 0, 3, 1]
        assert {span.operation.nbytes for span in sink.spans} == {4 * 6 * 4}
        assert {span.operation.kind for span in sink.spans} == {"expert"}

    def test_slots_that_are_lent_lie_in_memory_of_somebody_else(
        self, layouts: dict[Block, BlockLayout], reader: Reader
    ) -> None:
        lane = ThreadLane("disk", Sink(), time.monotonic)
        size = layouts[Block(0, 0)].slot_bytes
        spare = allocate(2 * size + 1)
        store = BlockStore(layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 1}, [], FromDisk(layouts, reader, lane), spare)
        assert store.nbytes == layouts[Block(0)].slot_bytes + size
        store.residency.lend()
        for expert in (3, 1, 2):
            store.residency.request(Block(0, expert))
            for event in store.residency.arrival(Block(0, expert)):
                event.wait()
        lane.close()
        views = {expert: store.views(Block(0, expert))["w"] for expert in (3, 1, 2)}
        assert all((view == expert).all() for expert, view in views.items())
        begin = spare.data_ptr()
        assert [view.data_ptr() - begin for expert, view in views.items() if expert < 3] == [0, size]
        assert not begin <= views[3].data_ptr() < begin + len(spare)

    def test_a_dense_part_and_an_expert_arrive_side_by_side(
        self, layouts: dict[Block, BlockLayout], reader: Reader
    ) -> None:
        lane = ThreadLane("disk", Sink(), time.monotonic)
        store = BlockStore(layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 1}, [], FromDisk(layouts, reader, lane))
        for expert in (DENSE, 2):
            store.residency.request(Block(0, expert))
        for expert in (DENSE, 2):
            for event in store.residency.arrival(Block(0, expert)):
                event.wait()
            assert (store.views(Block(0, expert))["w"] == expert).all()
        lane.close()

    def test_slots_can_be_filled_past_the_lane_to_see_how_long_it_takes(
        self, layouts: dict[Block, BlockLayout], reader: Reader
    ) -> None:
        sink = Sink()
        lane = ThreadLane("disk", sink, time.monotonic)
        store = BlockStore(
            layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 2}, [Block(0, 1)], FromDisk(layouts, reader, lane)
        )
        assert store.streamed_experts() == [Block(0, expert) for expert in (0, 2, 3, 4)]
        reading = store.read_past_lane(cycle(store.streamed_experts()[1:]))
        assert [next(reading) for _ in range(3)] == [4 * 6 * 4] * 3
        reading.close()
        for slot, expert in zip(store.expert_slots(), (4, 2), strict=True):
            assert (layouts[Block(0, expert)].views_of(slot)["w"] == expert).all()
        assert not list(store.read_past_lane(iter([])))
        lane.close()
        assert not sink.spans
        assert not store.residency.held()

    def test_every_slot_and_resident_begins_on_a_page(self, layouts: dict[Block, BlockLayout], reader: Reader) -> None:
        with_a_dense_resident = [Block(0), Block(0, 1), Block(0, 2)]
        lane = ThreadLane("disk", Sink(), time.monotonic)
        store = BlockStore(layouts, {SlotKind.EXPERT: 2}, with_a_dense_resident, FromDisk(layouts, reader, lane))
        for expert in (3, 4):
            store.residency.request(Block(0, expert))
        for block in (*with_a_dense_resident, Block(0, 3), Block(0, 4)):
            assert store.views(block)["w"].data_ptr() % PAGE == 0, "the only parameter lies at the block's beginning"
        lane.close()
