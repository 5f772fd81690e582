"""A batch of which nothing is computed: it goes where a real one would, with as many tokens."""

from collections.abc import Callable, Iterator, Sequence

from klotski.core import Request, Routing
from klotski.simulation.routers import Routers

__all__ = ["SyntheticBatch"]


class SyntheticBatch:
    """Requests that are decoded together to their greatest length; see `pipeline.Batch`.

    Prompts are padded to the longest, and read at most `prefill_tokens` at a time. `spares`: the last layer
    only keeps keys and values of all tokens but a prompt's last. `kept_bytes`: bytes that layers keep of a number of
    sequences with a number of tokens in total.
    `attends_below`: whether attention of new tokens is computed where keys and values are, elsewhere. `on_end` hears
    of each request once it has its last token.
    """

    outlook: Sequence[float] | None = None
    is_heard = True

    def __init__(
        self,
        index: int,
        requests: Sequence[Request],
        experts: Sequence[int],
        routers: Routers,
        prefill_tokens: int,
        kept_bytes: Callable[[int, int], float],
        on_end: Callable[[Request], None],
        *,
        spares: bool,
        attends_below: bool = False,
    ) -> None:
        self.index = index
        self.sequences = len(requests)
        self.is_finished = False
        self.is_prefilling = True
        self.is_attending = False
        self.is_scoring = False
        self.output_tokens = 0
        self.padding = 0  # tokens so far, over all layers, about which no router was asked
        self.routing: Routing | None = None
        self.seen = 0  # tokens of each sequence that went through the layers in earlier steps
        self._requests = requests
        self._experts = experts
        self._routers = routers
        self._kept_bytes = kept_bytes
        self._on_end = on_end
        self._spares = spares
        self._attends_below = attends_below
        self._prompt = max(len(request.prompt) for request in requests)
        self._step = min(self._prompt, max(1, prefill_tokens // self.sequences))  # tokens of each sequence
        self._chunk = self._step
        self._life = self._live()

    @property
    def tokens(self) -> int:
        """Tokens that go through the layers in the step that it is in."""
        return self.sequences * self._step

    @property
    def looks_below(self) -> bool:
        """Whether attention in the step that it is in is computed where keys and values are, elsewhere."""
        return self._attends_below and not self.is_prefilling

    @property
    def spared(self) -> int:
        """Tokens of which the last layer only keeps keys and values."""
        return self.tokens - self.sequences if self._spares else 0

    @property
    def layer_pairs(self) -> int:
        """Pairs of a token of the step and one that it looks at, in one layer."""
        return self.sequences * (self._step * self.seen + self._step * (self._step + 1) // 2)

    @property
    def pairs(self) -> int:
        """The same, in all layers."""
        in_last = self.sequences * (self.seen + self._step) if self._spares else self.layer_pairs
        return (len(self._experts) - 1) * self.layer_pairs + in_last

    @property
    def cache_bytes(self) -> int:
        """Bytes of its KV cache and states."""
        if self.is_finished or not self.seen:
            return 0
        return int(self._kept_bytes(self.sequences, self.sequences * self.seen))

    def resume(self) -> None:
        """Go on to the next stop, or to the end."""
        assert not self.is_finished
        next(self._life, None)

    def _real_tokens(self, made: int) -> list[int]:
        """Of each sequence, the tokens of the step that are no padding, once `made` tokens have been given."""
        if not self.is_prefilling:
            return [int(made < request.max_tokens) for request in self._requests]
        end = self.seen + self._step - self._prompt  # counted from the prompts' common end
        return [min(self._step, max(0, len(request.prompt) + end)) for request in self._requests]

    def _live(self) -> Iterator[None]:
        last = len(self._experts) - 1
        longest = max(request.max_tokens for request in self._requests)
        made = 0
        while made < longest:
            real = self._real_tokens(made)
            for layer, experts in enumerate(self._experts):
                yield
                if self.looks_below:
                    self.is_attending = True
                    yield
                    self.is_attending = False
                if experts:
                    is_cut = self._spares and layer == last  # to the last token of each sequence
                    asked = sum(map(bool, real)) if is_cut else sum(real)
                    self.padding += (self.sequences if is_cut else self.tokens) - asked
                    self.routing = self._routers.ask(self.index, layer, asked)
                    yield
                    self.routing = None
            if self.seen + self._step < self._prompt:  # nobody looks at what follows a piece
                self.seen += self._step
                self._step = min(self._chunk, self._prompt - self.seen)
                continue
            self.is_scoring = True
            yield
            self.is_scoring = False
            self.seen += self._step
            self._step, self.is_prefilling = 1, False
            made += 1
            self.output_tokens += sum(made <= request.max_tokens for request in self._requests)
            for request in self._requests:
                if request.max_tokens == made:
                    self._on_end(request)
        self.is_finished = True
