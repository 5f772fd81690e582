"""Requests from a JSONL file, or made up.

A line is an object with one of `prompt`, `messages`, `prompt_token_ids`, and optionally `id` and
`max_tokens`. A line that is not, or whose prompt does not fit the model, becomes an error with
its number; the others go on.
"""

import random
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError

from klotski.assets import BUNDLED, PROMPTS
from klotski.core import Request
from klotski.errors import WorkloadError
from klotski.schema import JsonlWorkload, SyntheticWorkload, WorkloadConfig

__all__ = ["Encoder", "RoughTokenizer", "load_requests"]

OnError = Callable[[dict[str, Any]], None]


class Message(msgspec.Struct):
    """One turn of a chat."""

    role: str
    content: str


class Line(msgspec.Struct):
    """A line of a JSONL workload."""

    prompt: str | None = None
    messages: list[Message] | None = None
    prompt_token_ids: list[int] | None = None
    id: str | int | None = None
    max_tokens: int | None = None


class RoughTokenizer:
    """As many tokens as a text has on average, where nobody will read them: one for each four bytes."""

    chat_template = "any"

    def encode(self, text: str, **_: Any) -> list[int]:
        """Tokens that mean nothing."""
        return [0] * -(-len(text.encode()) // 4)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, list[int]]:
        """The same for a chat, with a few tokens around each turn."""
        return {"input_ids": [token for turn in messages for token in [*self.encode(turn["content"]), 0, 0, 0, 0]]}


class Encoder:
    """A tokenizer as far as requests need one. `tokenizer` is None where the checkpoint has none."""

    def __init__(self, tokenizer: Any | None, vocab_size: int, context: int | None) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context = context

    def encode(self, line: Line) -> tuple[int, ...]:
        """A line's prompt in tokens.

        Raises:
            WorkloadError: the line has no prompt, or one that this model cannot take.
        """
        given = [name for name in ("prompt", "messages", "prompt_token_ids") if getattr(line, name) is not None]
        if len(given) != 1:
            raise WorkloadError(f"one of prompt, messages and prompt_token_ids is needed, and {len(given)} are given")
        tokens = self._token_ids(line) if line.prompt_token_ids is not None else self._text(line)
        if not tokens:
            raise WorkloadError("the prompt is empty")
        if self.context is not None and len(tokens) >= self.context:
            raise WorkloadError(f"the prompt has {len(tokens)} tokens, and the model's context ends at {self.context}")
        return tuple(tokens)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of output tokens; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _token_ids(self, line: Line) -> list[int]:
        tokens = line.prompt_token_ids or []
        if any(not 0 <= token < self.vocab_size for token in tokens):
            raise WorkloadError(f"prompt_token_ids must lie between 0 and {self.vocab_size - 1}")
        return tokens

    def _text(self, line: Line) -> list[int]:
        if self.tokenizer is None:
            raise WorkloadError("the checkpoint has no tokenizer; give prompt_token_ids")
        if line.messages is None:
            return list(self.tokenizer.encode(line.prompt, verbose=False))
        if not self.tokenizer.chat_template:
            raise WorkloadError("the tokenizer has no chat template for messages; give a prompt")
        messages = [msgspec.to_builtins(message) for message in line.messages]
        if not messages:
            return []
        try:
            encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:  # roles that do not alternate, say
            raise WorkloadError(f"the chat template refuses the messages: {error}") from error
        return list(encoded["input_ids"])


def load_requests(workload: WorkloadConfig, encoder: Encoder, on_error: OnError) -> list[Request]:
    """All requests of a workload; `on_error` gets a line for `errors.jsonl` for each that cannot be one.

    Raises:
        WorkloadError: the file cannot be read, or not one request is left.
    """
    if isinstance(workload, SyntheticWorkload):
        return list(islice(synthetic(workload, encoder), workload.limit))
    assert isinstance(workload, JsonlWorkload)
    file = PROMPTS if workload.path == BUNDLED else Path(workload.path).expanduser()
    try:
        lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    except OSError as error:
        raise WorkloadError(f"workload.path={workload.path} could not be read: {error.strerror}") from error
    requests = list(islice(from_lines(lines, workload.max_tokens, encoder, on_error), workload.limit))
    if not any(lines):
        raise WorkloadError(f"workload.path={workload.path} is empty; it needs one JSON object a line")
    if not requests:
        raise WorkloadError(f"workload.path={workload.path} has no request that could be run; errors.jsonl says why")
    return requests


def from_lines(lines: list[bytes], max_tokens: int, encoder: Encoder, on_error: OnError) -> Iterator[Request]:
    """The requests of a file's lines; blank lines are passed over."""
    ids: set[str] = set()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=Line)
            name = str(number if line.id is None else line.id)
            if name in ids:
                raise WorkloadError(f"the id {name} was given to a line before")
            wanted = max_tokens if line.max_tokens is None else line.max_tokens
            if wanted < 1:
                raise WorkloadError(f"max_tokens is {wanted} and must be at least 1")
            prompt = encoder.encode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, WorkloadError) as error:
            on_error({"line": number, "error": str(error)})
            continue
        ids.add(name)
        room = wanted if encoder.context is None else min(wanted, encoder.context - len(prompt))
        yield Request(name, prompt, room, number)


def synthetic(workload: SyntheticWorkload, encoder: Encoder) -> Iterator[Request]:
    """Random tokens, the same for the same seed.

    Raises:
        WorkloadError: the lengths do not fit the model's context.
    """
    if encoder.context is not None and workload.input_tokens + workload.output_tokens > encoder.context:
        raise WorkloadError(
            f"workload.input_tokens={workload.input_tokens} and workload.output_tokens={workload.output_tokens} "
            f"do not fit the model's context of {encoder.context}"
        )
    rng = random.Random(workload.seed)
    for number in range(1, workload.num_requests + 1):
        prompt = tuple(rng.randrange(encoder.vocab_size) for _ in range(workload.input_tokens))
        yield Request(str(number), prompt, workload.output_tokens, number)
