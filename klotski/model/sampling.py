"""How the next token of each sequence is chosen, inside of transformers' own loop.

Each sequence is looked at without its padding, so that its tokens depend on itself alone, whatever batch it is in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    InfNanRemoveLogitsProcessor,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from klotski.core import Request, Result
from klotski.lanes.cuda import to_device

__all__ = ["ALWAYS", "WHEN_SAMPLED", "Decoding", "Place", "Sampler", "StepScores", "Watch"]


class Decoding(NamedTuple):
    """What all requests of a run share.

    `stop_ids`: tokens that end a sequence. `settings`: of the checkpoint's generation config, those of `ALWAYS` and
    `WHEN_SAMPLED` that it changes. `temperature`: that it asks for, where it asks for sampling; the workload decides.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    settings: Mapping[str, Any] = {}
    temperature: float | None = None


class Place(NamedTuple):
    """What some settings need to know beside their value: `stops` [S] and the prompt's length, on a device."""

    stops: torch.Tensor
    prompt: int
    device: str


Make = Callable[[Any, Place], LogitsProcessor]

# In the order in which transformers applies them.
ALWAYS: dict[str, Make] = {
    "sequence_bias": lambda value, place: SequenceBiasLogitsProcessor(value),
    "repetition_penalty": lambda value, place: RepetitionPenaltyLogitsProcessor(value),
    "no_repeat_ngram_size": lambda value, place: NoRepeatNGramLogitsProcessor(value),
    "bad_words_ids": lambda value, place: NoBadWordsLogitsProcessor(value, place.stops),
    "min_length": lambda value, place: MinLengthLogitsProcessor(value, place.stops, device=place.device),
    "min_new_tokens": lambda value, place: MinNewTokensLengthLogitsProcessor(
        place.prompt, value, place.stops, device=place.device
    ),
    "remove_invalid_values": lambda value, place: InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, place: ExponentialDecayLengthPenalty(
        value, place.stops, place.prompt
    ),
    "suppress_tokens": lambda value, place: SuppressTokensLogitsProcessor(value, device=place.device),
    "begin_suppress_tokens": lambda value, place: SuppressTokensAtBeginLogitsProcessor(
        value, place.prompt, device=place.device
    ),
}
"""Settings of a generation config that greedy decoding honours as well."""
WHEN_SAMPLED: dict[str, Make] = {
    "top_k": lambda value, place: TopKLogitsWarper(value),
    "top_p": lambda value, place: TopPLogitsWarper(value),
    "min_p": lambda value, place: MinPLogitsWarper(value),
    "typical_p": lambda value, place: TypicalLogitsWarper(value),
    "epsilon_cutoff": lambda value, place: EpsilonLogitsWarper(value),
    "eta_cutoff": lambda value, place: EtaLogitsWarper(value, device=place.device),
}
"""Settings that count where the temperature is above 0."""
NEED_STOPS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")


class Row:
    """One sequence of a padded batch; `before`: tokens of padding before its prompt."""

    def __init__(self, request: Request, before: int, decoding: Decoding, device: torch.device) -> None:
        stops = to_device(torch.tensor(decoding.stop_ids), device)
        place = Place(stops, len(request.prompt), str(device))
        self._before = before
        self._temperature = request.temperature
        self._generator = torch.Generator().manual_seed(request.noise)
        self._always = make(ALWAYS, decoding, place)
        self._warpers = make(WHEN_SAMPLED, decoding, place) if request.temperature else []

    def choose(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """From its row of the padded `ids` [1, T] and its `scores` [1, V], scores whose argmax is its next token.

        Sampling is an argmax, too, over scores with noise from the request's own generator (Gumbel).
        """
        for processor in self._always:
            scores = processor(ids[:, self._before :], scores)
        if not self._temperature:
            return scores
        scores = scores.div_(self._temperature)  # in place: there may be many
        for warper in self._warpers:
            scores = warper(ids[:, self._before :], scores)
        uniform = torch.rand(scores.shape[1], generator=self._generator)
        gumbel = -(-uniform.clamp_(1e-20, 1 - 1e-7).log_()).log_()
        return scores.add_(to_device(gumbel, scores.device))


class Sampler(LogitsProcessor):
    """Chooses for each sequence of a batch as its request and the checkpoint's generation config say."""

    def __init__(self, requests: Sequence[Request], decoding: Decoding, device: torch.device) -> None:
        longest = max(len(request.prompt) for request in requests)
        always = any(name in decoding.settings for name in ALWAYS)
        self._rows = {
            index: Row(request, longest - len(request.prompt), decoding, device)
            for index, request in enumerate(requests)
            if always or request.temperature
        }

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Change the `scores` [B, V] of sequences, padded `input_ids` [B, T], whose argmax would be another token."""
        for index, row in self._rows.items():
            scores[index] = row.choose(input_ids[index : index + 1], scores[index : index + 1])[0]
        return scores


class Watch(StoppingCriteria):
    """Ends each sequence at its own stop or length. `on_step` is told at once of those that end, by their index."""

    def __init__(
        self, requests: Sequence[Request], stop_ids: Sequence[int], on_step: Callable[[Mapping[int, Result]], None]
    ) -> None:
        self.eos_token_id = stop_ids  # tells `generate` to pad what has ended
        self._requests = requests
        self._on_step = on_step
        self._prompt = max(len(request.prompt) for request in requests)
        self._ended = [False] * len(requests)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each sequence of `input_ids` [B, T] has ended: [B]."""
        length = input_ids.shape[1] - self._prompt
        results = {}
        for row, (request, token) in enumerate(zip(self._requests, input_ids[:, -1].tolist(), strict=True)):
            stopped = token in self.eos_token_id
            if not self._ended[row] and (stopped or length >= request.max_tokens):
                self._ended[row] = True
                tokens = input_ids[row, self._prompt :].tolist()
                results[row] = Result(request, tuple(tokens), "stop" if stopped else "length")
        self._on_step(results)
        return to_device(torch.tensor(self._ended), input_ids.device)


class StepScores(LogitsProcessor):
    """Frees a step's scores once tokens have been chosen by them.

    `generate` holds on to them until the next step has others: float32 for each sequence and each
    token of the vocabulary, for every batch of the group.
    """

    def __init__(self) -> None:
        self._given: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Remember the `scores` [B, V], and change nothing."""
        self._given.append(scores)
        return scores

    def forget(self) -> None:
        """Take the memory from under all that came by; it is not looked at again."""
        while self._given:
            self._given.pop().untyped_storage().resize_(0)


def make(known: Mapping[str, Make], decoding: Decoding, place: Place) -> list[LogitsProcessor]:
    """The processors of those settings that the checkpoint changes."""
    settings = {name: value for name, value in decoding.settings.items() if decoding.stop_ids or name not in NEED_STOPS}
    return [known[name](settings[name], place) for name in known if name in settings]
