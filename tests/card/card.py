"""The card itself: what torch asks of it, operation by operation."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tests.card.memory import PLACE, CardTensor, Memory, each, leaves, span_of
from tests.card.streams import CurrentStream, Event, Stream, Timeline

__all__ = ["Card"]

ASKS = {  # operations whose results' sizes are the numbers of what they are given, so that the host waits for them
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::bincount",
}
WHOLE = {"aten::scaled_dot_product_attention", "aten::repeat_interleave"}  # not taken apart
ALREADY_REGISTERED = 712  # the driver's word for it
FRESH = ("aten::empty", "aten::new_empty")  # what is in the memory already


class Card:
    """`with Card(...):` torch has a card of `memory` bytes, for this thread and for those that copy.

    - What the host queues is done later, by a thread of each stream, some of it late (`seed`).
    - `races`: operations of two streams at the same bytes, of which one writes, and neither waits for the other.
      They need not be lost to be found; leaving the block fails if there are any. What the host has seen to be done,
      all of its threads know.
    - Memory is overwritten with what is no number when it is taken and when it is given back.
    - `waits`: what made the host wait, but for events: reads of results, and copies that are not pinned.
    - Tensors in CPU memory among an operation's arguments are refused, and more memory than there is.
    """

    def __init__(self, memory: int = 1 << 30, seed: int = 0, *, can_pin: bool = True) -> None:
        self.timeline = Timeline(seed)
        self.total = self.limit = memory
        self.used = self.peak = 0
        self.races: list[str] = []
        self.waits: list[str] = []
        self.is_open = False
        self._can_pin = can_pin
        self._tells = False
        self.registered: dict[int, int] = {}  # by address, bytes of CPU memory that the driver was told of
        self._pinned: list[tuple[int, int, object]] = []
        self._shapes: dict[object, Any] = {}
        self._made: Any = WeakTensorKeyDictionary()
        self._factories = _Factories(self)
        self._exit = ExitStack()

    def __enter__(self) -> "Card":
        Stream.timeline = self.timeline
        CurrentStream.default = Stream()
        self.is_open = True
        patch = self._exit.enter_context(pytest.MonkeyPatch.context())
        for name, stand_in in self._driver().items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch, "Stream", Stream)
        patch.setattr(torch, "Event", Event)
        self._exit.enter_context(_Numbers())
        self._exit.enter_context(self._factories)
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        self._exit.close()
        self.timeline.synchronize()
        self.is_open = False
        for stream in self.timeline.streams:
            stream.end()
        if kind is None:
            self.timeline.check()
            assert not self.races, f"{len(self.races)} races: {'; '.join(sorted(set(self.races))[:5])}"

    def take(self, nbytes: int) -> None:
        """More of the card's memory is in use."""
        if self.used + nbytes > self.limit:
            raise torch.OutOfMemoryError(f"{nbytes} bytes more than {self.used} of {self.limit} were asked of the card")
        self.used += nbytes
        self.peak = max(self.peak, self.used)

    def dispatch(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Carry out one of torch's operations, whatever it is of."""
        name = func._schema.name
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_card = [tensor for tensor in tensors if isinstance(tensor, CardTensor)]
        if on_card and any(tensor.is_meta and tensor in self._made for tensor in tensors):
            return self.dispatch(func, each(self._here, args), each(self._here, kwargs))
        if name == "aten::_to_copy":
            return self._to(*args, **kwargs)
        if name in ("aten::is_pinned", "aten::_pin_memory", "aten::pin_memory"):
            return self._is_pinned(args[0]) if name == "aten::is_pinned" else self._pin(args[0].clone())
        is_bound = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves((args, kwargs)))
        if (on_card or is_bound) and name not in WHOLE and is_composite(func):
            with self._factories:
                return func.decompose(*args, **kwargs)
        if not on_card:
            return self._make(func, args, kwargs)
        if name == "aten::copy_":
            return self._copy(*args, **kwargs)
        assert not any(tensor.is_meta for tensor in tensors), f"{name} is given a tensor without numbers"
        if any(tensor.dim() for tensor in tensors if not isinstance(tensor, CardTensor)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but some are in CPU memory")
        if torch.device(kwargs.get("device") or PLACE).type == "cpu":
            return func(*each(stand_in, args), **each(stand_in, kwargs))
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("cpu")}
        if name in ASKS or (name in ("aten::index", "aten::index_put_") and any(map(is_mask, on_card[1:]))):
            return self._ask(func, args, kwargs, on_card)
        return self._operate(func, args, kwargs, on_card)

    def _make(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What is given nothing that is on the card."""
        device, pins = kwargs.get("device"), kwargs.get("pin_memory")
        if pins:
            return self._pin(func(*args, **kwargs | {"pin_memory": False}))
        if device is None or torch.device(device).type != "cuda":
            made = func(*args, **kwargs)
            if isinstance(made, torch.Tensor) and made.is_meta and not func._schema.name.startswith(FRESH):
                # Torch itself may have made it, to use it beside what it takes for a meta tensor.
                self._made[made] = lambda: func(*args, **kwargs | {"device": torch.device("cpu")})
            return made
        return self._new(func(*args, **kwargs | {"device": torch.device("cpu")}), func._schema.name)

    def _operate(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], on_card: list[CardTensor]) -> Any:
        """Queue an operation, unless it only looks at memory in another way."""
        schema = func._schema
        given, named = each(self._inside, args), each(self._inside, kwargs)
        if any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns):
            memory = on_card[0].memory
            with torch.inference_mode(mode=on_card[0].is_inference()):  # as torch wants a view to be
                return each(lambda inner: CardTensor(self, inner, memory), func(*given, **named))
        written = [
            args[place] if place < len(args) else kwargs[argument.name]
            for place, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            if place < len(args) or argument.name in kwargs
        ]
        if written or not schema.returns:
            self._queue(schema.name, lambda: func(*given, **named), on_card, leaves(written))
            if not schema.returns:
                return None
            return written[0] if len(schema.returns) == 1 else tuple(written)
        inner = self._results(func, args, kwargs)
        made = each(lambda result: self._new(result, schema.name), inner)

        def run() -> None:
            results = func(*given, **named)
            for result, place in zip(leaves(results), leaves(inner), strict=True):
                if isinstance(result, torch.Tensor):
                    place.copy_(result)

        if not schema.name.startswith(FRESH):
            self._queue(schema.name, run, on_card, [leaf for leaf in leaves(made) if isinstance(leaf, CardTensor)])
        return made

    def _ask(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], on_card: list[CardTensor]) -> Any:
        """What the host has to wait for."""
        name = func._schema.name
        self._queue(name, lambda: None, on_card, ())
        self._wait(name)
        result = func(*each(self._inside, args), **each(self._inside, kwargs))
        if name == "aten::index_put_":
            return args[0]
        return each(lambda number: self._new(number, name) if isinstance(number, torch.Tensor) else number, result)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """Between the card and CPU memory, or within the card."""
        there, here = self._inside(target), self._inside(source)
        far = [tensor for tensor in (target, source) if isinstance(tensor, CardTensor)]
        near = [tensor for tensor in (target, source) if not isinstance(tensor, CardTensor)]
        is_pinned = all(map(self._is_pinned, near))
        if not is_pinned and near[0] is source:
            here = here.clone()
        written = [target] if isinstance(target, CardTensor) else []
        self._queue("copy_", lambda: there.copy_(here), far, written)
        if near and (not non_blocking or (not is_pinned and near[0] is target)):
            self._wait("copy_")
        return target

    def _to(self, source: torch.Tensor, *, dtype: Any = None, device: Any = None, **options: Any) -> torch.Tensor:
        """A copy, on another device or of another type."""
        is_far = isinstance(source, CardTensor)
        is_to_be = is_far if device is None else torch.device(device).type == "cuda"
        shape = stand_in(source).to("cpu", dtype or source.dtype, copy=True)  # without gaps or overlaps
        if not is_far and not is_to_be:
            return source.to(dtype=dtype, device=device, copy=True)
        target = self._new(shape, "aten::_to_copy") if is_to_be else shape
        non_blocking = bool(options.get("non_blocking"))
        if not is_to_be and non_blocking:
            target = self._pin(shape)
        return self._copy(target, source, non_blocking)

    def _queue(
        self, name: str, run: Callable[[], object], used: Sequence[CardTensor], written: Sequence[CardTensor]
    ) -> None:
        self.timeline.check()
        stream = CurrentStream.get()
        places = {id(tensor) for tensor in written}
        with self.timeline.lock:
            count = stream.queue(run)
            known = dict(stream.known)
            for tensor in used:
                if id(tensor) not in places:
                    tensor.memory.touch(span_of(tensor), stream, count, known, name, writes=False)
            for tensor in written:
                tensor.memory.touch(span_of(tensor), stream, count, known, name, writes=True)

    def _wait(self, name: str) -> None:
        self.waits.append(name)
        if self._tells:
            warnings.warn(f"called a synchronizing CUDA operation: {name}", stacklevel=2)
        CurrentStream.get().synchronize()

    def _results(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Fresh memory for what an operation returns, of which the sizes do not depend on the numbers."""
        key = str(each(describe, (func._schema.name, func._overloadname, args, kwargs)))
        if key not in self._shapes:
            results = func(*each(stand_in, args), **each(stand_in, kwargs))
            self._shapes[key] = each(Layout.of, results)
        return each(Layout.make, self._shapes[key])

    def _new(self, inner: torch.Tensor, name: str) -> CardTensor:
        memory = Memory(self, inner, CurrentStream.get())
        if name.startswith(FRESH):
            memory.fill()
        return CardTensor(self, inner, memory)

    def _here(self, leaf: Any) -> Any:
        """What torch made for an operation on the card, with its numbers."""
        if not isinstance(leaf, torch.Tensor) or leaf not in self._made:
            return leaf
        made = self._made[leaf]()
        return self._new(made, "") if made.dim() else made

    def _inside(self, leaf: Any) -> Any:
        """What an operation is given, by the time that it is done."""
        if isinstance(leaf, CardTensor):
            return leaf.numbers
        return leaf

    def _pin(self, memory: torch.Tensor) -> torch.Tensor:
        self._pinned.append((memory.data_ptr(), memory.nbytes, memory))
        return memory

    def _is_pinned(self, memory: torch.Tensor) -> bool:
        begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        pinned = [*self.registered.items(), *((first, nbytes) for first, nbytes, _ in self._pinned)]
        return any(first <= begin and end <= first + nbytes for first, nbytes in pinned)

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        if any(first < address + nbytes and address < first + size for first, size in self.registered.items()):
            return ALREADY_REGISTERED
        if self._can_pin:
            self.registered[address] = nbytes
        return 0 if self._can_pin else 1

    def _unregister(self, address: int) -> int:
        if self.is_open:
            self.timeline.synchronize()
        del self.registered[address]
        return 0

    def _driver(self) -> dict[str, Callable[..., Any]]:
        """What is asked of `torch.cuda`."""

        def limit(fraction: float, device: object = None) -> None:
            self.limit = int(fraction * self.total)

        def tell(mode: str) -> None:
            self._tells = mode == "warn"

        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "Card of threads",
            "get_device_capability": lambda device=None: (8, 0),
            "mem_get_info": lambda device=None: (self.limit - self.used, self.total),
            "set_per_process_memory_fraction": limit,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(self, "peak", self.used),
            "set_sync_debug_mode": tell,
            "synchronize": lambda device=None: self.timeline.synchronize(),
            "cudart": lambda: SimpleNamespace(
                cudaHostRegister=lambda *memory: self._register(*memory), cudaHostUnregister=self._unregister
            ),
            "_lazy_init": lambda: None,
        }


class Layout(SimpleNamespace):
    """How a result is laid out."""

    @staticmethod
    def of(result: Any) -> Any:
        """Of a tensor; anything else stays as it is."""
        if not isinstance(result, torch.Tensor):
            return result
        return Layout(size=result.size(), stride=result.stride(), dtype=result.dtype)

    @staticmethod
    def make(layout: Any) -> Any:
        """Memory for such a result."""
        return torch.empty_strided(**vars(layout)) if isinstance(layout, Layout) else layout


class _Numbers(TorchFunctionMode):
    """`torch.tensor` makes what it makes in CPU memory, and takes it to its device past all modes of operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device") if func is torch.tensor else None
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": "cpu"}).to(device)


class _Factories(TorchDispatchMode):
    """Sends to the card what makes tensors there."""

    def __init__(self, card: Card) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._card.dispatch(func, args, kwargs or {})


def is_composite(func: Any) -> bool:
    """Whether an operation is made of others."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def is_mask(tensor: torch.Tensor) -> bool:
    """Whether an index says yes or no of each place."""
    return tensor.dtype in (torch.bool, torch.uint8)


def stand_in(leaf: Any) -> Any:
    """Zeros in CPU memory, laid out as a tensor is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype).zero_()


def describe(leaf: Any) -> Any:
    """What the sizes of results depend on."""
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.size()), tuple(leaf.stride()), leaf.dtype
    return leaf
