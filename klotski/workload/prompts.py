"""Requests from a JSONL file, or made up.

A line is an object with one of `prompt`, `messages`, `prompt_token_ids`, and optionally other fields of
`lines.Line`. A line that is not, or whose prompt does not fit the model, becomes an error with its number and id;
the others go on.
"""

import logging
import random
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from klotski.assets import BUNDLED, PROMPTS
from klotski.core import Request
from klotski.errors import WorkloadError, first_line, panics_are_errors
from klotski.schema import JsonlWorkload, SyntheticWorkload, WorkloadConfig
from klotski.units import user_path
from klotski.workload.chats import apply_template
from klotski.workload.lines import Ids, Line, Noise, read_line

__all__ = ["Encoder", "RoughTokenizer", "load_requests"]

logger = logging.getLogger(__name__)

OnError = Callable[[dict[str, Any]], None]


class RoughTokenizer:
    """As many tokens as a text has on average, where nobody will read them: one for each four bytes."""

    chat_template = "any"

    def get_chat_template(self, **_: Any) -> None:
        """None that could be looked at."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Tokens that mean nothing."""
        return [0] * -(-len(text.encode()) // 4)

    def apply_chat_template(self, messages: list[dict[str, Any]], **extra: Any) -> dict[str, list[int]]:
        """The same for a chat, with a few tokens around each turn, and for all that goes with it."""
        texts = [turn.get("content") or msgspec.json.encode(turn.get("tool_calls") or "").decode() for turn in messages]
        others = [msgspec.json.encode(extra[name]).decode() for name in ("tools", "documents") if name in extra]
        return {"input_ids": [token for text in (*texts, *others) for token in [*self.encode(text), 0, 0, 0, 0]]}


class Limits(NamedTuple):
    """What a model can take. `vocab_size`: tokens that it has embeddings for; `context`: the longest sequence.

    `recomputed_at`: a length that no sequence may grow across, because its rotary embeddings change there.
    """

    vocab_size: int
    context: int | None = None
    recomputed_at: int | None = None


class Encoder:
    """A tokenizer as far as requests need one. `tokenizer` is None where the checkpoint has none."""

    def __init__(self, tokenizer: Any | None, limits: Limits) -> None:
        self.tokenizer = tokenizer
        self.limits = limits

    def encode(self, line: Line) -> tuple[int, ...]:
        """A line's prompt in tokens.

        Raises:
            WorkloadError: it is one that this model cannot take.
        """
        tokens, end = self._tokens(line), self.limits.vocab_size
        if not tokens:
            raise WorkloadError("the prompt is empty")
        if (wrong := next((token for token in tokens if not 0 <= token < end), None)) is not None:
            what = "prompt_token_ids has" if line.prompt_token_ids is not None else "the tokenizer gives"
            raise WorkloadError(f"{what} the token {wrong}, and the model's embeddings go from 0 to {end - 1}")
        return tuple(tokens)

    def room(self, prompt: Sequence[int], max_tokens: int) -> int:
        """How many of `max_tokens` a sequence can be given in the model's context.

        Raises:
            WorkloadError: there is room for none, or the sequence would grow across a length that it may not.
        """
        length, (_, context, limit) = len(prompt), self.limits
        if context is not None and length >= context:
            raise WorkloadError(f"the prompt has {length} tokens, and the model's context ends at {context}")
        room = max_tokens if context is None else min(max_tokens, context - length)
        if limit is not None and length <= limit < length + room - 1:
            raise WorkloadError(
                f"the sequence would grow from {length} tokens across the {limit} at which the model's rotary "
                f"embeddings change; set max_tokens to {limit - length + 1} or less"
            )
        return room

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of output tokens; empty without a tokenizer, or with one that fails at it."""
        if self.tokenizer is None:
            return ""
        try:
            with panics_are_errors():
                return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        except Exception as error:  # the tokens are there all the same
            logger.warning("a result has no text: the tokenizer cannot decode it (%s)", first_line(error))
            return ""

    def _tokens(self, line: Line) -> Sequence[int]:
        if line.prompt_token_ids is not None:
            return line.prompt_token_ids
        if self.tokenizer is None:
            raise WorkloadError("the checkpoint has no tokenizer that can be read; give prompt_token_ids")
        if line.messages is not None:
            return apply_template(self.tokenizer, line)
        try:
            with panics_are_errors():
                return list(self.tokenizer.encode(line.prompt, verbose=False))
        except Exception as error:  # a tokenizer is the checkpoint's own code
            raise WorkloadError(f"the tokenizer refuses the prompt: {first_line(error)}") from error


def load_requests(workload: WorkloadConfig, encoder: Encoder, on_error: OnError) -> list[Request]:
    """All requests of a workload; `on_error` gets a line for `errors.jsonl` for each that cannot be one.

    Raises:
        WorkloadError: the file cannot be read, or not one request is left.
    """
    if isinstance(workload, SyntheticWorkload):
        return list(islice(synthetic(workload, encoder), workload.limit))
    assert isinstance(workload, JsonlWorkload)
    file = PROMPTS if workload.path == BUNDLED else user_path(workload.path)
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise WorkloadError(f"workload.path={workload.path} could not be read: {error.strerror}") from error
    requests = list(islice(from_lines(lines, workload, encoder, on_error), workload.limit))
    if not any(lines):
        raise WorkloadError(f"workload.path={workload.path} is empty; it needs one JSON object a line")
    if not requests:
        raise WorkloadError(f"workload.path={workload.path} has no request that could be run; errors.jsonl says why")
    return requests


def from_lines(lines: list[bytes], workload: JsonlWorkload, encoder: Encoder, on_error: OnError) -> Iterator[Request]:
    """The requests of a file's lines; blank lines are passed over."""
    contents = [decode_line(text) for text in lines]
    ids, noise = Ids(contents), Noise(workload.seed)
    for number, (text, content) in enumerate(zip(lines, contents, strict=True), start=1):
        if not text.strip():
            continue
        try:
            if isinstance(content, Exception):
                raise content
            line = read_line(content)
            prompt = encoder.encode(line)
            room = encoder.room(prompt, workload.max_tokens if line.max_tokens is None else line.max_tokens)
            name = ids.take(line, number)
        except (msgspec.DecodeError, UnicodeDecodeError, WorkloadError) as error:
            given = content.get("id") if isinstance(content, dict) else None
            on_error({"line": number, "id": given, "error": str(error)})
            continue
        temperature = workload.temperature if line.temperature is None else line.temperature
        yield Request(name, prompt, room, number, temperature, noise.seed(line, prompt))


def decode_line(text: bytes) -> object:
    """What a line holds, or why it could not be decoded."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return error
    except RecursionError:
        return WorkloadError("the line has too many values inside of one another")


def synthetic(workload: SyntheticWorkload, encoder: Encoder) -> Iterator[Request]:
    """Random tokens, the same for the same seed.

    Raises:
        WorkloadError: the lengths do not fit the model's context.
    """
    context = encoder.limits.context
    if context is not None and workload.input_tokens + workload.output_tokens > context:
        raise WorkloadError(
            f"workload.input_tokens={workload.input_tokens} and workload.output_tokens={workload.output_tokens} "
            f"do not fit the model's context of {context}"
        )
    rng, noise = random.Random(workload.seed), Noise(workload.seed)
    for number in range(1, workload.num_requests + 1):
        prompt = tuple(rng.randrange(encoder.limits.vocab_size) for _ in range(workload.input_tokens))
        room = encoder.room(prompt, workload.output_tokens)
        yield Request(str(number), prompt, room, number, workload.temperature, noise.seed(Line(), prompt))
