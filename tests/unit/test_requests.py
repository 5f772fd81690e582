"""Requests bring every byte of a block to its place, in whole pages, and most of them at once."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import cycle, pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from klotski.core import Block
from klotski.errors import CheckpointError
from klotski.weights import requests as cutting
from klotski.weights.layout import LARGE, BlockLayout
from klotski.weights.memory import PAGE, allocate, whole_pages
from klotski.weights.reader import Reader, largest_staging
from klotski.weights.requests import REQUEST, ReadRequest, Segment, cut_requests
from tests.unit.fakes import examples

FILE = Path("model.safetensors")
BYTES = torch.uint8
CASTS = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)]
CANARY = 0xA5


class Shape(NamedTuple):
    """What a segment is drawn as; `gap`: bytes between it and the one before, in the file and in the slot."""

    gap: int
    slot_gap: int
    numbers: int
    stored: torch.dtype
    wanted: torch.dtype
    is_congruent: bool


def place(shapes: Sequence[Shape], files: Sequence[Path], begin: int) -> list[Segment]:
    """Segments one after the other, in the files and in the slot."""
    segments = []
    ends = dict.fromkeys(files, begin)
    position = 0
    for shape, file in zip(shapes, cycle(files), strict=False):
        offset = ends[file] + shape.gap
        ends[file] = offset + shape.numbers * shape.stored.itemsize
        position += shape.slot_gap
        position += (offset - position) % PAGE if shape.is_congruent else -position % shape.wanted.itemsize
        segments.append(Segment(file, offset, ends[file] - offset, shape.stored, position, shape.wanted))
        position += shape.numbers * shape.wanted.itemsize
    return segments


def shapes(largest: int) -> st.SearchStrategy[list[Shape]]:
    """Of up to so many bytes each: as they are, or converted; where pages fall onto pages, or anywhere."""
    sizes = st.one_of(st.integers(1, 3 * PAGE), st.integers(1, largest), st.sampled_from([PAGE, 4 * PAGE, largest]))
    gaps = st.one_of(st.just(0), st.integers(1, 3 * PAGE))
    plain = st.builds(Shape, gaps, gaps, sizes, st.just(BYTES), st.just(BYTES), st.booleans())
    congruent = st.builds(Shape, gaps, gaps, sizes, st.just(BYTES), st.just(BYTES), st.just(True))
    converted = st.builds(
        lambda gap, slot_gap, size, cast: Shape(gap, slot_gap, -(-size // 4), cast[0], cast[1], is_congruent=False),
        gaps,
        gaps,
        sizes,
        st.sampled_from(CASTS),
    )
    return st.lists(st.one_of(plain, congruent, converted), min_size=1, max_size=8)


class Piece(NamedTuple):
    """Bytes of a file, and where in the slot they end up."""

    file: Path
    offset: int
    nbytes: int
    slot_offset: int
    stored: torch.dtype
    wanted: torch.dtype


def pieces(request: ReadRequest) -> Iterator[Piece]:
    """What a request brings, read off its targets and copies."""
    position, staged = request.offset, []  # staged: where in the file each run of the staging buffer comes from
    for target in request.targets:
        if target.in_slot:
            yield Piece(request.file, position, target.nbytes, target.offset, BYTES, BYTES)
        else:
            staged.append((target.offset, target.nbytes, position))
        position += target.nbytes
    for copy in request.copies:
        (source,) = [each for each in staged if each[0] <= copy.staging_offset < each[0] + each[1]]
        assert copy.staging_offset + copy.nbytes <= source[0] + source[1], "a copy reaches beyond what was read"
        offset = source[2] + copy.staging_offset - source[0]
        assert offset + copy.nbytes <= request.offset + request.needed, "a copy of what need not be there"
        yield Piece(request.file, offset, copy.nbytes, copy.slot_offset, copy.stored, copy.wanted)


def check_whole_pages(request: ReadRequest) -> None:
    """Past the page cache, a read begins and ends on a page, in the file and in memory."""
    total = sum(target.nbytes for target in request.targets)
    assert request.offset % PAGE == 0
    assert 0 < total - total % PAGE == total <= REQUEST + 2 * PAGE
    assert total - PAGE < request.needed <= total, "no page is read that holds nothing"
    assert all(target.nbytes > 0 == target.nbytes % PAGE == target.offset % PAGE for target in request.targets)
    staged = [target for target in request.targets if not target.in_slot]
    assert sum(target.nbytes for target in staged) == request.staged
    assert all(one.offset + one.nbytes == other.offset for one, other in pairwise(staged))
    assert not staged or staged[0].offset == 0


def check_each_byte_arrives_once(segments: Sequence[Segment], requests: Sequence[ReadRequest]) -> None:
    """Pieces tile each segment without gap or overlap, and lie in the slot as they do in the segment."""
    arrived = sorted((piece for request in requests for piece in pieces(request)), key=lambda piece: piece[:2])
    for segment in segments:
        if not segment.nbytes:
            continue
        mine = [piece for piece in arrived if piece.file == segment.file and inside(piece, segment)]
        assert [piece.offset for piece in mine] == [segment.offset, *(each.offset + each.nbytes for each in mine[:-1])]
        assert mine[-1].offset + mine[-1].nbytes == segment.end
        for piece in mine:
            numbers, rest = divmod(piece.offset - segment.offset, segment.stored.itemsize)
            assert piece.slot_offset == segment.slot_offset + numbers * segment.wanted.itemsize + rest
            if not segment.is_plain:
                assert (rest, piece.nbytes % segment.stored.itemsize) == (0, 0), "a number was cut in two"
                assert (piece.stored, piece.wanted) == (segment.stored, segment.wanted)
            else:
                assert piece.stored == piece.wanted
    assert sum(piece.nbytes for piece in arrived) == sum(segment.nbytes for segment in segments), "and nothing else"


def inside(piece: Piece, segment: Segment) -> bool:
    return segment.offset <= piece.offset and piece.offset + piece.nbytes <= segment.end


NEIGHBOURS = [Shape(0, 0, REQUEST // 2 + 1, BYTES, BYTES, True)] * 3
EMPTY = [Shape(0, 0, 0, BYTES, BYTES, False), Shape(PAGE, 0, 5, BYTES, BYTES, False), Shape(0, 0, 0, *CASTS[0], False)]
PAGES = [Shape(0, 0, PAGE, BYTES, BYTES, True)] * 1100  # more than one read may be scattered over


@given(shapes(3 * REQUEST), st.integers(0, 2 * PAGE), st.integers(1, 2))
@example(NEIGHBOURS, 1, 1)
@example(EMPTY, 0, 1)
@example(EMPTY, PAGE, 1)
@examples(300)
def test_any_segments_are_cut_into_requests_of_whole_pages_that_bring_each_byte_once(
    drawn: list[Shape], begin: int, files: int
) -> None:
    segments = place(drawn, [Path(f"{number}.safetensors") for number in range(files)], begin)
    requests = cut_requests(segments)
    for request in requests:
        check_whole_pages(request)
    check_each_byte_arrives_once(segments, requests)


@given(st.lists(st.integers(LARGE, 2 * REQUEST), min_size=1, max_size=6), st.integers(0, 2 * PAGE))
@examples(100)
def test_large_neighbours_in_their_places_are_staged_only_where_one_ends_and_the_next_begins(
    sizes: list[int], begin: int
) -> None:
    segments = place([Shape(0, 0, size, BYTES, BYTES, True) for size in sizes], [FILE], begin)
    requests = cut_requests(segments)
    whole = whole_pages(segments[-1].end) - begin // PAGE * PAGE
    assert len(requests) == -(-whole // REQUEST)
    for request in requests:
        end = request.offset + request.needed
        parts = sum(segment.offset < end and segment.end > request.offset for segment in segments)
        assert request.staged <= (parts + 1) * PAGE


@given(st.lists(st.integers(1, REQUEST // 8), min_size=1, max_size=7), st.booleans())
@examples(50)
def test_neighbours_that_fit_into_one_request_are_one(sizes: list[int], is_congruent: bool) -> None:
    segments = place([Shape(0, 0, size, BYTES, BYTES, is_congruent) for size in sizes], [FILE], 77)
    assert len(cut_requests(reversed(segments))) == 1


def test_what_lies_apart_is_not_read_with_what_lies_between() -> None:
    segments = place([Shape(gap, 0, PAGE, BYTES, BYTES, True) for gap in (0, 5 * PAGE, 0)], [FILE], 0)
    assert [request.needed for request in cut_requests(segments)] == [PAGE, 2 * PAGE]


# What is cut is what is read.


def written(segments: Sequence[Segment], folder: Path) -> dict[Path, bytes]:
    """Files of random bytes, with numbers where numbers are wanted."""
    contents = {}
    generator = torch.Generator().manual_seed(len(segments))
    for file in {segment.file for segment in segments}:
        mine = [segment for segment in segments if segment.file == file]
        end = max(segment.end for segment in mine)
        data = torch.randint(256, (end + 3,), generator=generator, dtype=torch.int16).to(torch.uint8)
        for segment in mine:
            if not segment.is_plain:
                numbers = torch.randn(segment.nbytes // segment.stored.itemsize, generator=generator)
                data[segment.offset : segment.end] = numbers.to(segment.stored).view(torch.uint8)
        contents[file] = data.numpy().tobytes()
        file.write_bytes(contents[file])
    return contents


def expected_slot(segments: Sequence[Segment], contents: dict[Path, bytes], nbytes: int) -> torch.Tensor:
    """Every segment in its place, and canaries everywhere else."""
    slot = torch.full((nbytes,), CANARY, dtype=torch.uint8)
    for segment in segments:
        data = bytearray(contents[segment.file][segment.offset : segment.end])
        if data:
            numbers = torch.frombuffer(data, dtype=segment.stored).to(segment.wanted).view(torch.uint8)
            slot[segment.slot_offset : segment.slot_offset + len(numbers)] = numbers
    return slot


def layout_of(segments: Sequence[Segment]) -> BlockLayout:
    end = max(segment.slot_offset + segment.nbytes * segment.wanted.itemsize for segment in segments)
    disk_bytes = sum(segment.nbytes for segment in segments)
    return BlockLayout(Block(0), {}, cut_requests(segments), disk_bytes, whole_pages(end))


def check_read(segments: Sequence[Segment], folder: Path) -> None:
    """Read segments, and compare the slot and what lies behind it to the last byte."""
    contents = written(segments, folder)
    layout = layout_of(segments)
    slot = allocate(layout.slot_bytes + 2 * PAGE).fill_(CANARY)
    with closing(Reader(largest_staging([layout]))) as reader:
        reader.read(layout, slot)
    assert torch.equal(slot, expected_slot(segments, contents, len(slot)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("segments")


@given(shapes(20 * PAGE), st.integers(0, 2 * PAGE), st.integers(1, 2), st.integers(1, 9))
@example(EMPTY, PAGE, 1, 1)
@examples(150)
def test_a_slot_holds_its_segments_and_nothing_else_was_touched(
    folder: Path, drawn: list[Shape], begin: int, files: int, pages: int
) -> None:
    """With requests of a few pages, so that there are many of them."""
    segments = place(drawn, [folder / f"{number}.safetensors" for number in range(files)], begin)
    with patch.object(cutting, "REQUEST", pages * PAGE):
        check_read(segments, folder)


def test_more_tensors_of_a_page_each_than_one_read_may_be_scattered_over(tmp_path: Path) -> None:
    check_read(place(PAGES, [tmp_path / FILE], PAGE), tmp_path)


@given(shapes(20 * PAGE), st.lists(st.integers(1, 5), min_size=1, max_size=5))
@examples(40)
def test_a_read_that_stops_early_goes_on_where_it_stopped(folder: Path, drawn: list[Shape], steps: list[int]) -> None:
    """The kernel may read fewer pages than it was asked for."""
    segments = place(drawn, [folder / FILE], 5)
    counts = cycle(steps)

    def read_a_little(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return preadv(descriptor, head(buffers, next(counts) * PAGE), offset)

    preadv = os.preadv
    with patch.object(os, "preadv", read_a_little):
        check_read(segments, folder)


def head(buffers: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """The first bytes of several buffers."""
    found = []
    for buffer in buffers:
        found.append(buffer[:nbytes])
        nbytes -= len(found[-1])
        if not nbytes:
            break
    return found


def test_where_no_file_can_be_read_past_the_page_cache_it_is_read_through_it(tmp_path: Path) -> None:
    opened = []

    def open_as_tmpfs_does(file: Path, flags: int) -> int:
        opened.append(bool(flags & os.O_DIRECT))
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(file, flags)

    segments = place([Shape(0, 0, 100_000, BYTES, BYTES, True)] * 3, [tmp_path / FILE], 5)
    really_open = os.open
    contents = written(segments, tmp_path)
    layout = layout_of(segments)
    slot = allocate(layout.slot_bytes).fill_(CANARY)
    with patch.object(os, "open", open_as_tmpfs_does), closing(Reader(largest_staging([layout]))) as reader:
        reader.read(layout, slot)
    assert opened == [True, False]
    assert torch.equal(slot, expected_slot(segments, contents, len(slot)))


def test_blocks_that_were_started_together_arrive_each_whole(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    blocks = [place([Shape(3, 5, 70_000 + 999 * n, BYTES, BYTES, n % 2 == 0)] * 4, [files[n]], n) for n in range(5)]
    contents = {name: data for segments in blocks for name, data in written(segments, tmp_path).items()}
    layouts = [layout_of(segments) for segments in blocks]
    slots = [allocate(layout.slot_bytes).fill_(CANARY) for layout in layouts]
    with closing(Reader(largest_staging(layouts))) as reader:
        readings = [reader.start(layout, slot) for layout, slot in zip(layouts, slots, strict=True)]
        for reading, segments, slot in reversed(list(zip(readings, blocks, slots, strict=True))):
            reading.wait()
            reading.wait()
            assert torch.equal(slot, expected_slot(segments, contents, len(slot)))


def test_a_block_that_could_not_be_read_keeps_no_other_from_arriving(tmp_path: Path) -> None:
    good, bad = (place([Shape(0, 0, 50_000, BYTES, BYTES, True)] * 3, [tmp_path / n], 7) for n in ("good", "bad"))
    contents = written(good, tmp_path) | written(bad, tmp_path)
    layouts = [layout_of(segments) for segments in (bad, good)]
    slots = [allocate(layout.slot_bytes).fill_(CANARY) for layout in layouts]
    os.truncate(tmp_path / "bad", 60_000)
    with closing(Reader(largest_staging(layouts))) as reader:
        lost, found = (reader.start(layout, slot) for layout, slot in zip(layouts, slots, strict=True))
        found.wait()
        with pytest.raises(CheckpointError, match="bad was truncated"):
            lost.wait()
    assert torch.equal(slots[1], expected_slot(good, contents, len(slots[1])))


def test_a_block_that_could_not_be_read_is_written_by_nobody_any_more(tmp_path: Path) -> None:
    """Its slot may be the next block's."""
    segments = place(PAGES[:2], [tmp_path / "a", tmp_path / "b"], 0)
    written(segments, tmp_path)
    os.truncate(tmp_path / "a", 0)
    preadv, ended = os.preadv, []

    def read_in_a_moment(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        time.sleep(0.05 if count else 0)
        ended.append(count)
        return count

    layout = layout_of(segments)
    with patch.object(os, "preadv", read_in_a_moment), closing(Reader(largest_staging([layout]))) as reader:
        with pytest.raises(CheckpointError, match="a was truncated"):
            reader.read(layout, allocate(layout.slot_bytes))
        assert ended == [0, PAGE]


# Memory


@given(st.integers(0, 5 * PAGE))
@examples(50)
def test_memory_begins_on_a_page_and_can_be_written_to_its_last_byte(nbytes: int) -> None:
    memory = allocate(nbytes)
    assert (memory.shape, memory.dtype) == ((nbytes,), torch.uint8)
    assert memory.numpy().ctypes.data % PAGE == 0 or not nbytes
    assert not memory.any()
    assert (memory.fill_(7) == 7).all()
    assert 0 <= whole_pages(nbytes) - nbytes < PAGE
    assert whole_pages(nbytes) % PAGE == 0
