"""Memory of a card, and who is at it when."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tests.card.streams import Known, Stream

if TYPE_CHECKING:
    from tests.card.card import Card

__all__ = ["CardTensor", "Memory", "Span", "each", "leaves", "span_of"]

PLACE = torch.device("cuda", 0)
NOT_A_NUMBER = 0xFF


class Span(NamedTuple):
    """Bytes of a memory."""

    begin: int
    end: int


class Access(NamedTuple):
    """What an operation did to some bytes: the so many-th of its stream."""

    span: Span
    stream: int
    place: int
    writes: bool
    name: str


class Memory:
    """What one allocation of the card's is; given back when nobody on the host holds it any more.

    It may then be whose is next on the stream that it was taken on: operations of other streams have to have ended.
    """

    def __init__(self, card: "Card", inner: torch.Tensor, stream: Stream) -> None:
        self.storage = inner.untyped_storage()
        self.nbytes = self.storage.nbytes()
        self._card = card
        self._stream = stream
        self._accesses: list[Access] = []
        self._is_taken = True
        card.take(self.nbytes)

    def fill(self) -> None:
        """Make it no number."""
        poison(self.storage)

    def touch(self, span: Span, stream: Stream, count: int, known: Known, name: str, *, writes: bool) -> None:
        """Note what an operation does, and which ones it could come before that it should not."""
        kept = []
        for access in self._accesses:
            is_apart = access.span.end <= span.begin or span.end <= access.span.begin
            is_before = known.get(access.stream, 0) >= access.place
            if not is_apart and not is_before and (writes or access.writes):
                self._card.races.append(f"{name} on stream {stream.number} and {access.name} on {access.stream}")
            is_within = span.begin <= access.span.begin and access.span.end <= span.end
            if not (is_within and is_before and (writes or not access.writes)):
                kept.append(access)
        self._accesses = [*kept, Access(span, stream.number, count, writes, name)]

    def give_back(self) -> None:
        """The next one may have it."""
        if self._is_taken:
            self._is_taken = False
            self._card.used -= self.nbytes
            storage = self.storage
            with self._card.timeline.lock:
                count = self._stream.queue(lambda: poison(storage))
                known = dict(self._stream.known)
                self.touch(Span(0, self.nbytes), self._stream, count, known, "another use of its memory", writes=True)

    def __del__(self) -> None:
        if self._card.is_open:
            self.give_back()


class Storage(NamedTuple):
    """Stands in for what `untyped_storage` returns."""

    memory: Memory

    def data_ptr(self) -> int:
        """Where it is."""
        return self.memory.storage.data_ptr()

    def nbytes(self) -> int:
        """How much it is."""
        return self.memory.nbytes

    def resize_(self, nbytes: int) -> None:
        """Take the memory from under all views."""
        assert nbytes == 0
        self.memory.give_back()


def leaves(value: Any) -> list[Any]:
    """What is in tuples, lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list | tuple) else [value]


def each(convert: Callable[[Any], Any], value: Any) -> Any:
    """The same tuples, lists and dicts, of what is made of what is in them."""
    if isinstance(value, list | tuple):
        parts = [each(convert, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return {name: each(convert, part) for name, part in value.items()}
    return convert(value)


class CardTensor(torch.Tensor):
    """A tensor that says it is on the card; `numbers` are its numbers, once the card has come to them.

    To torch itself, which may have been built without CUDA, it is one of shapes only.
    """

    numbers: torch.Tensor
    memory: Memory
    card: "Card"

    @staticmethod
    def __new__(cls, card: "Card", inner: torch.Tensor, memory: Memory) -> "CardTensor":
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta"),
        )
        made.numbers, made.memory, made.card = inner, memory, card
        tensor: CardTensor = made
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        card = next(leaf.card for leaf in leaves((args, kwargs)) if isinstance(leaf, cls))
        return card.dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return PLACE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    def untyped_storage(self) -> Any:
        return Storage(self.memory)

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()


def span_of(tensor: torch.Tensor) -> Span:
    """The bytes from a tensor's first to its last."""
    begin = int(tensor.storage_offset()) * tensor.itemsize
    if not tensor.numel():
        return Span(begin, begin)
    last = sum(int(size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Span(begin, begin + (last + 1) * tensor.itemsize)


def poison(storage: torch.UntypedStorage) -> None:
    """Make memory no number."""
    if storage.nbytes():
        torch.empty(0, dtype=torch.uint8).set_(storage).fill_(NOT_A_NUMBER)
