"""Blocks read in place are what torch would have sliced out of the checkpoint."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from klotski.core import DENSE, Block
from klotski.errors import CheckpointError
from klotski.lanes import ThreadLane
from klotski.weights import (
    BlockLayout,
    BlockStore,
    Checkpoint,
    ParameterSpec,
    Part,
    Reader,
    SlotKind,
    lay_out,
    longest_segment,
)
from klotski.weights.layout import ALIGNMENT
from klotski.weights.reader import STAGING
from tests.unit.fakes import Sink, examples

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CANARY = 0xA5  # fills a slot before it is read into


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(shape, generator=generator).to(draw(st.sampled_from(DTYPES)))


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def fill(reader: Reader, layout: BlockLayout) -> torch.Tensor:
    """A slot, some larger than the block, after the block was read into it."""
    slot = torch.full((layout.slot_bytes + 2 * ALIGNMENT,), CANARY, dtype=torch.uint8)
    reader.read(layout, slot)
    assert (slot[layout.slot_bytes :] == CANARY).all(), "the reader wrote beyond the block"
    return slot


def read_views(layout: BlockLayout) -> dict[str, torch.Tensor]:
    """The parameters of a block, through a reader with no more staging than it needs."""
    reader = Reader(longest_segment([layout]))
    try:
        return layout.views_of(fill(reader, layout))
    finally:
        reader.close()


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
    assert layout.slot_bytes % ALIGNMENT == 0


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


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
    ids=["narrowed", "widened", "as it is"],
)
@pytest.mark.parametrize("more", [0, 3], ids=["whole", "with a rest"])
def test_a_tensor_larger_than_the_staging_buffer(
    tmp_path: Path, reader: Reader, stored: torch.dtype, wanted: torch.dtype, more: int
) -> None:
    elements = STAGING // stored.itemsize + more * 1000 + more
    tensor = torch.arange(elements, dtype=torch.float32).to(stored)
    # An odd neighbour, so that nothing in the file lies at a round offset.
    checkpoint = save(tmp_path, {"odd": torch.ones(3, dtype=torch.uint8), "t": tensor})
    layout = lay_out(Block(0), [ParameterSpec("t", (elements,), wanted)], {"t": [Part("t")]}, checkpoint)
    assert_same(layout.views_of(fill(reader, layout))["t"], tensor, wanted)


def test_a_slot_that_held_another_block_holds_nothing_of_it_afterwards(tmp_path: Path, reader: Reader) -> None:
    stored = {f"e{expert}": torch.full((5, 7), float(expert + 1)) for expert in range(2)}
    checkpoint = save(tmp_path, stored)
    parts = {"w": [Part(f"e{expert}", expert) for expert in range(2)]}
    layouts = [
        lay_out(Block(0, expert), [ParameterSpec("w", (5, 7), torch.float32)], parts, checkpoint) for expert in range(2)
    ]
    slot = torch.zeros(layouts[0].slot_bytes, dtype=torch.uint8)
    for layout in (*layouts, layouts[0]):
        reader.read(layout, slot)
        assert (layout.views_of(slot)["w"] == layout.block.expert + 1).all()


def test_a_block_may_come_from_several_shards(tmp_path: Path, reader: Reader) -> None:
    stored = {"gate": torch.randn(3, 4), "up": torch.randn(3, 4)}
    for name, tensor in stored.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in stored}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    parts = {"gate_up": [Part("gate", 0, 0), Part("up", 0, 3)]}
    layout = lay_out(Block(0, 0), [ParameterSpec("gate_up", (6, 4), torch.float32)], parts, Checkpoint(tmp_path))
    view = layout.views_of(fill(reader, layout))["gate_up"]
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
        reader.read(layout, torch.empty(layout.slot_bytes, dtype=torch.uint8))


def test_a_file_that_went_away_after_its_header_was_read_is_named(tmp_path: Path, reader: Reader) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{file} could not be opened: No such file"):
        reader.read(layout, torch.empty(layout.slot_bytes, dtype=torch.uint8))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, reader: Reader) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match=rf"{file} could not be read: Is a directory"):
        reader.read(layout, torch.empty(layout.slot_bytes, dtype=torch.uint8))


def test_a_reader_may_be_closed_twice_and_leaves_no_file_open(tmp_path: Path) -> None:
    file, layout = checkpoint_and_layout(tmp_path, torch.float32)
    reader = Reader()
    reader.read(layout, torch.empty(layout.slot_bytes, dtype=torch.uint8))
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

    def test_holds_what_was_planned_and_no_more(self, layouts: dict[Block, BlockLayout], reader: Reader) -> None:
        lane = ThreadLane("disk", Sink(), time.monotonic)
        store = BlockStore(layouts, {SlotKind.DENSE: 2, SlotKind.EXPERT: 3}, [Block(0, 1)], reader, lane)
        lane.close()
        expert, dense = layouts[Block(0, 0)].slot_bytes, layouts[Block(0)].slot_bytes
        assert store.nbytes == 2 * dense + 3 * expert + expert

    def test_views_are_the_blocks_numbers_while_blocks_come_and_go(
        self, layouts: dict[Block, BlockLayout], reader: Reader
    ) -> None:
        sink = Sink()
        lane = ThreadLane("disk", sink, time.monotonic)
        resident = Block(0, 4)
        store = BlockStore(layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 2}, [resident], reader, lane)
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

    def test_a_dense_part_and_an_expert_arrive_side_by_side(
        self, layouts: dict[Block, BlockLayout], reader: Reader
    ) -> None:
        lane = ThreadLane("disk", Sink(), time.monotonic)
        store = BlockStore(layouts, {SlotKind.DENSE: 1, SlotKind.EXPERT: 1}, [], reader, lane)
        for expert in (DENSE, 2):
            store.residency.request(Block(0, expert))
        for expert in (DENSE, 2):
            for event in store.residency.arrival(Block(0, expert)):
                event.wait()
            assert (store.views(Block(0, expert))["w"] == expert).all()
        lane.close()
