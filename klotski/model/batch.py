"""A batch as a coroutine: `model.generate`, stopped where the pipeline has to choose."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import cast

import torch
from greenlet import greenlet
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_utils import PreTrainedModel

from klotski.core import Request, Result, Routing
from klotski.lanes.cuda import Landing, to_device
from klotski.model.attention import attention
from klotski.model.cache import MovingLayer, keeps_all_tokens, make_cache
from klotski.model.experts import ExpertsCall, count_tokens
from klotski.model.foresight import Foresight
from klotski.model.handover import AttentionCall, Handover
from klotski.model.padding import Padding, restore
from klotski.model.sampling import Decoding, Sampler, StepScores, Watch

__all__ = ["GenerationBatch"]

CPU = torch.device("cpu")


class GenerationBatch(greenlet, Handover):
    """Requests decoded together; see `pipeline.Batch` for what the pipeline sees of it.

    Prompts are padded on the left, and read at most `prefill_tokens` at a time. A sequence that has
    ended is padded on until the batch's last one ends; `on_result` hears of it at once. With `foresight`
    `outlook` says at each layer's entry what its router makes of the tokens as they are. `device`: where it
    is computed. `new_cache`: makes the cache for so many tokens of each sequence.
    """

    def __init__(
        self,
        index: int,
        requests: Sequence[Request],
        model: PreTrainedModel,
        decoding: Decoding,
        on_result: Callable[[Result], None],
        prefill_tokens: int,
        foresight: Foresight | None = None,
        device: torch.device = CPU,
        new_cache: Callable[[int], DynamicCache] | None = None,
    ) -> None:
        super().__init__()
        self.index = index
        self.requests = requests
        self.calls: Sequence[ExpertsCall] = ()
        self.answers: Sequence[torch.Tensor] = ()
        self.last: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None
        self.is_prefilling = True
        self.output_tokens = 0
        self._padding = Padding([len(request.prompt) for request in requests], device)
        self._prompt = max(len(request.prompt) for request in requests)
        self._chunk = min(self._prompt, max(1, prefill_tokens // len(requests)))
        self.tokens = len(requests) * self._chunk
        self._spares = keeps_all_tokens(model.config)
        self._seen = 0  # tokens of each sequence that went through the layers in earlier steps
        self._model = model
        self._decoding = decoding
        self._on_result = on_result
        self.cache = (new_cache or partial(make_cache, model.config))(
            self._prompt + max(request.max_tokens for request in requests)
        )
        self._device = device
        self._has_begun = False
        self._asked: Landing | None = None
        self._looking: _Look | None = None
        self._routing: Routing | None = None
        self.outlook: Sequence[float] | None = None
        self._foresight = foresight

    @property
    def sequences(self) -> int:
        """Sequences that it has, with those that have ended."""
        return len(self.requests)

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return self.dead

    @property
    def routing(self) -> Routing | None:
        """What it asks for, if it has stopped at a layer's experts; waits for the device to say so."""
        if self._routing is None and self._asked is not None:
            choices = self._asked.numbers().numpy()
            self._routing = Routing(count_tokens(self.calls, choices), choices)
        return self._routing

    @property
    def is_heard(self) -> bool:
        """Whether `routing` is known without a wait."""
        return self._asked is None or self._asked.is_here

    @property
    def is_attending(self) -> bool:
        """Whether it has stopped at attention that is computed where keys and values are."""
        return self._looking is not None

    @property
    def is_scoring(self) -> bool:
        """Whether it has stopped at the head."""
        return self.last is not None

    @property
    def spared(self) -> int:
        """Tokens of which the last layer only keeps keys and values."""
        return self.tokens - len(self.requests) if self._spares else 0

    @property
    def pairs(self) -> int:
        """Pairs of a token of the step and one that it looks at, by a causal mask, in all layers; padding counts."""
        tokens, layers = self.tokens // len(self.requests), self._model.config.get_text_config().num_hidden_layers
        pairs = tokens * self._seen + tokens * (tokens + 1) // 2
        in_last = self._seen + tokens if self._spares else pairs
        return len(self.requests) * (int(layers - 1) * pairs + in_last)

    @property
    def padding(self) -> int:
        """Tokens of padding so far, over all layers, about which no experts were asked."""
        return self._padding.skipped

    @property
    def cache_bytes(self) -> int:
        """Bytes of its KV cache, or of whatever state its layers keep."""
        layers = () if self.is_finished else self.cache.layers
        moving = [layer for layer in layers if isinstance(layer, MovingLayer)]  # whose memory is a part of a larger one
        others = [vars(layer) for layer in layers if not isinstance(layer, MovingLayer)]
        storages = (each.untyped_storage() for kept in others for each in tensors(list(kept.values())))
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(sizes.values()) + sum(layer.nbytes for layer in moving)

    def resume(self) -> None:
        """Go on to the next stop, or to the end."""
        self.switch()

    def run(self) -> None:
        """The coroutine's body: transformers' own loop."""
        ids, mask = pad_left([request.prompt for request in self.requests], self._decoding.pad_id)
        scores = StepScores()

        def on_step(results: Mapping[int, Result]) -> None:
            scores.forget()
            self._take(results)

        watch = Watch(self.requests, self._decoding.stop_ids, on_step)
        longest = max(request.max_tokens for request in self.requests)
        self._model.generate(
            input_ids=to_device(ids, self._device),
            attention_mask=to_device(mask, self._device),
            past_key_values=self.cache,
            generation_config=GenerationConfig(
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=self._decoding.pad_id,
                prefill_chunk_size=self._chunk if self._chunk < ids.shape[1] else None,
            ),
            stopping_criteria=StoppingCriteriaList([watch]),
            logits_processor=LogitsProcessorList([scores, Sampler(self.requests, self._decoding, self._device)]),
        )
        self.cache.layers.clear()  # their memory is the next batch's

    def enter_layer(self, layer: int, hidden: torch.Tensor) -> None:
        """Stop at a layer's entry."""
        if layer == 0 and self._has_begun:
            self._seen += self.tokens // len(self.requests)
        self._has_begun = True
        self.tokens = hidden.shape[:2].numel()
        if layer == 0:
            self._padding.step(self._seen, hidden.shape[1])
        if self._foresight:
            self.outlook = self._foresight.outlook(layer, self._padding.tokens(hidden))
        self._stop()

    def ask(self, calls: Sequence[ExpertsCall]) -> Sequence[torch.Tensor]:
        """Stop at a layer's experts; the pipeline leaves the answers in `answers`. Padding asks for none."""
        self.calls, places = self._padding.drop(calls)
        self._asked = Landing(torch.cat([call.choices for call in self.calls]))
        self._stop()
        answers, self.answers = self.answers, ()
        assert len(answers) == len(calls), "a batch was resumed before its experts were computed"
        self.calls, self._asked, self._routing = (), None, None
        return [restore(*each) for each in zip(answers, calls, places, strict=True)]

    def stays_below(self, layer: int) -> bool:
        """Whether a layer's keys and values stay in CPU memory below the device."""
        kept = self.cache.layers[layer]
        return isinstance(kept, MovingLayer) and kept.stays

    def ask_attention(self, call: AttentionCall) -> torch.Tensor:
        """Stop at a layer's attention; the pipeline has `attend` called, anywhere, before it goes on."""
        kept = cast("MovingLayer", self.cache.layers[call.layer])
        assert call.key.shape[:2] == kept.keys.shape[:2], "attention is not given what the layer keeps"
        self._looking = look = _Look(call, kept)
        self._stop()
        self._looking = None
        assert look.output is not None, "a batch was resumed before its attention was computed"
        return to_device(look.output, self._device)

    def attend(self) -> None:
        """Compute the attention that it has stopped at, on the cores."""
        assert self._looking is not None, "nobody asked for attention"
        self._looking.compute()

    def ask_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Stop at the head, with `last` for it; the pipeline leaves the answer in `scores`."""
        if self._seen + self.tokens // len(self.requests) < self._prompt:  # nobody looks at what follows a piece
            size = self._model.config.get_text_config().vocab_size
            return hidden.new_zeros(()).expand(*hidden.shape[:-1], size)
        self.last = hidden
        self._stop()
        scores, self.last, self.scores = self.scores, None, None
        assert scores is not None, "a batch was resumed before its next tokens were scored"
        return scores

    def _take(self, results: Mapping[int, Result]) -> None:
        """Each sequence that goes on has been given a token; some have ended with it."""
        self.is_prefilling = False
        self.output_tokens += self._padding.ended.count(False)
        for index, result in results.items():
            self._padding.ended[index] = True
            self._on_result(result)

    def _stop(self) -> None:
        assert self.parent is not None
        self.parent.switch()


class _Look:
    """Attention over what stays in CPU memory: the question on its way there, and what came of it."""

    def __init__(self, call: AttentionCall, kept: MovingLayer) -> None:
        self._call = call
        self._kept = kept
        self._question = [Landing(states) for states in (call.query, call.key, call.value)]
        self._mask = None if call.mask is None else Landing(call.mask)
        self.output: torch.Tensor | None = None

    def compute(self) -> None:
        """Keep what is new, and look at all."""
        call = self._call
        with torch.inference_mode():  # in which the memory was taken, on another thread
            query, key, value = (landing.numbers() for landing in self._question)
            keys, values = self._kept.keep(key, value)
            mask = None if self._mask is None else self._mask.numbers()
            self.output = attention(call.module, query, keys, values, mask, call.scaling, **call.options)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [B, longest prompt]."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def tensors(value: object) -> Iterator[torch.Tensor]:
    """A tensor, or the tensors in a list or dict; nothing for anything else."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(tensors, value))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(tensors, value.values()))
