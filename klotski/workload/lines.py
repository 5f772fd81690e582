"""A line of a JSONL workload: which fields a request has, and what they must be.

What is not known here is refused by name: a request that asks for `stop` and runs without would give other tokens than
were asked for, without a word.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from klotski.core import LEAST_TEMPERATURE, is_temperature
from klotski.errors import WorkloadError

__all__ = ["FIELDS", "Ids", "Line", "Noise", "read_line"]


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A request as it is written. One of `prompt`, `messages` and `prompt_token_ids`; the rest may be left out.

    `tools`, `documents` and `chat_template_kwargs` go to the chat template. `temperature` and `seed` are the
    workload's unless they are given.
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    id: str | int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


FIELDS = Line.__struct_fields__
OF_CHATS = ("tools", "documents", "chat_template_kwargs")


def read_line(content: object) -> Line:
    """The request in a decoded line; a field that is null counts as left out.

    Raises:
        WorkloadError: it is no request, or asks for something that is not known here; the message names the field.
    """
    if not isinstance(content, dict):
        raise WorkloadError("the line is not a JSON object")
    given = {name: value for name, value in content.items() if value is not None}
    if unknown := [name for name in given if name not in FIELDS]:
        raise WorkloadError(f"{unknown[0]} is not a field of a request; there are {', '.join(FIELDS)}")
    try:
        line = msgspec.convert(given, Line)
    except msgspec.ValidationError as error:
        raise WorkloadError(str(error)) from error
    if line.max_tokens is not None and line.max_tokens < 1:
        raise WorkloadError(f"max_tokens is {line.max_tokens} and must be at least 1")
    if line.temperature is not None and not is_temperature(line.temperature):
        raise WorkloadError(f"temperature is {line.temperature} and must be 0 (greedy) or at least {LEAST_TEMPERATURE}")
    prompts = [name for name in ("prompt", "messages", "prompt_token_ids") if name in given]
    if len(prompts) != 1:
        raise WorkloadError(f"one of prompt, messages and prompt_token_ids is needed, and {len(prompts)} are given")
    if line.messages is None and (extra := [name for name in OF_CHATS if name in given]):
        raise WorkloadError(f"{extra[0]} goes with messages, and not with {prompts[0]}")
    return line


class Ids:
    """Gives each line an id of its own. `contents`: all decoded lines, of which some have ids already."""

    def __init__(self, contents: Sequence[object]) -> None:
        given = [content.get("id") for content in contents if isinstance(content, dict)]
        self._explicit = {str(name) for name in given if name is not None}
        self._taken: set[str] = set()

    def take(self, line: Line, number: int) -> str | int:
        """The id of the line of that number: its own, or else its number, unless another line is called that.

        Raises:
            WorkloadError: a line before has the same id.
        """
        name: str | int
        if line.id is not None:
            name = line.id
            if str(name) in self._taken:
                raise WorkloadError(f"the id {name} was given to a line before")
        else:
            name = str(number)
            while name in self._explicit:
                name = f"line-{name}"
        self._taken.add(str(name))
        return name


class Noise:
    """Seeds of what is sampled: they follow from a request's content, not from its place in the file.

    A request without an id and a seed of its own that is there twice gets other tokens the second time.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._copies: Counter[bytes] = Counter()

    def seed(self, line: Line, prompt: Sequence[int]) -> int:
        """63 bits for a request."""
        content = msgspec.json.encode(prompt)
        if line.seed is not None:
            return digest(str(line.seed).encode(), content)
        if line.id is not None:
            return digest(str(self._seed).encode(), str(line.id).encode(), content)
        key = hashlib.sha256(content).digest()
        self._copies[key] += 1
        return digest(str(self._seed).encode(), b"", content, str(self._copies[key]).encode())


def digest(*parts: bytes) -> int:
    """63 bits that follow from all parts, and from where one ends and the next begins."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(hashed.digest()[:8], "little") >> 1
