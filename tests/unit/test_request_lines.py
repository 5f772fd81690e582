"""What a line asks for is done or refused by name, and never dropped."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from klotski.core import Request
from klotski.model.opening import read_tokenizer
from klotski.schema import JsonlWorkload, SyntheticWorkload
from klotski.workload import Encoder, Limits, RoughTokenizer, load_requests
from tests.cli.test_errors import save_tokenizer

# Content as text alone; tools and a switch; tool calls; what stands for a document.
PLAIN = "{% for m in messages %}w1 {{ m.role }} {{ m.content }} {% endfor %}"
CALLS = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"
    "{% if enable_thinking %}w90 {% endif %}"
    "{% for m in messages %}{{ m.role }} {% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ call.function.name }} {{ call.function.arguments.place }} {% endfor %}{% else %}{{ m.content }} {% endif %}"
    "{% if m.tool_call_id %}{{ m.tool_call_id }} {% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}w50 {{ part.text }} {% endfor %}{% endif %}{% endfor %}"
)
ASKED = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w6{% endif %}"
NAMED = "{% for m in messages %}{{ m.name or '' }} {{ m.content }} {% endfor %}"
CONTROLS = PLAIN + "{# padding tokenize messages #}"
DEEP = "[" * 100_000
FAILS = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"
ALTERNATES = "{{ raise_exception('roles must alternate') }}"
WEATHER = {"type": "function", "function": {"name": "w7", "parameters": {}}}
CALL = {"id": "w8", "type": "function", "function": {"name": "w7", "arguments": '{"place": "w9"}'}}


def encoder(folder: Path, template: str | dict[str, str] | None, limits: Limits | None = None) -> Encoder:
    save_tokenizer(folder, template if isinstance(template, str) else None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if isinstance(template, dict):
        tokenizer.chat_template = template
    return Encoder(tokenizer, limits or Limits(128, 256))


def load(
    folder: Path, lines: list[Any], encode: Encoder | None = None, **workload: Any
) -> tuple[list[Request], list[dict[str, Any]]]:
    """The requests of these lines, and the errors of the others."""
    errors: list[dict[str, Any]] = []
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "requests.jsonl").write_text(
        "\n".join([*texts, '{"id": "last", "prompt_token_ids": [3], "max_tokens": 1}'])
    )
    settings = JsonlWorkload(name="jsonl", path=str(folder / "requests.jsonl"), **workload)
    requests = load_requests(settings, encode or Encoder(None, Limits(128, 256)), errors.append)
    assert requests.pop().id == "last"
    assert len(requests) + len(errors) == len(lines), "no line is dropped"
    return requests, errors


def tokens(*words: str) -> tuple[int, ...]:
    """What the tokenizer of `save_tokenizer` makes of words."""
    return tuple(0 if word in ("user", "tool", "assistant") else int(word[1:]) + 3 for word in words)


# Fields that are known


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content} | fields


@pytest.mark.parametrize(
    ("template", "line", "expected"),
    [
        (PLAIN, {"messages": [user("w5")]}, ("w1", "user", "w5")),
        (PLAIN, {"messages": [user([{"type": "text", "text": "w5"}, {"type": "text", "text": "w6"}])]},
         ("w1", "user", "w5", "w6")),
        (PARTS, {"messages": [user([{"type": "text", "text": "w5"}, {"type": "text", "text": "w6"}])]},
         ("w50", "w5", "w50", "w6")),
        (PARTS, {"messages": [user("w5")]}, ("w5",)),
        (CALLS, {"messages": [user("w5")], "tools": [WEATHER]}, ("w7", "user", "w5")),
        (CALLS, {"messages": [user("w5")], "chat_template_kwargs": {"enable_thinking": True}}, ("w90", "user", "w5")),
        (CALLS, {"messages": [user("w5")], "chat_template_kwargs": {"enable_thinking": False}}, ("user", "w5")),
        (ASKED, {"messages": [user("w5")]}, ("w5", "w6")),
        (ASKED, {"messages": [user("w5")], "chat_template_kwargs": {"add_generation_prompt": False}}, ("w5",)),
        (NAMED, {"messages": [user("w5", name="w6"), user("w7", name=None, refusal=None)]}, ("w6", "w5", "w7")),
        (CALLS, {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
         ("assistant", "w7", "w9")),
        (CALLS, {"messages": [{"role": "assistant", "tool_calls": [CALL]},
                              {"role": "tool", "tool_call_id": "w8", "content": "w4"}]},
         ("assistant", "w7", "w9", "tool", "w4", "w8")),
        ({"default": PLAIN, "tool_use": CALLS}, {"messages": [user("w5")], "tools": [WEATHER]}, ("w7", "user", "w5")),
        ({"default": PLAIN, "tool_use": CALLS}, {"messages": [user("w5")]}, ("w1", "user", "w5")),
    ],
)  # fmt: skip
def test_the_chat_template_gets_all_that_a_line_says(
    template: str, line: dict[str, Any], expected: tuple[str, ...], tmp_path: Path
) -> None:
    (request,), _ = load(tmp_path, [line], encoder(tmp_path, template))
    assert request.prompt == tokens(*expected)


def test_a_line_may_have_a_temperature_and_a_seed_of_its_own(tmp_path: Path) -> None:
    prompt = {"prompt_token_ids": [5, 6]}
    lines = [prompt, prompt | {"temperature": 0.5}, prompt | {"temperature": 0}, prompt | {"temperature": None}]
    requests, _ = load(tmp_path, lines, temperature=0.25)
    assert [request.temperature for request in requests] == [0.25, 0.5, 0, 0.25]
    lines = [prompt | {"seed": 7, "id": 1}, prompt | {"seed": 7, "id": 2}, prompt | {"seed": 8}, prompt | {"id": 3}]
    noise = [request.noise for request in load(tmp_path, lines)[0]]
    assert noise[0] == noise[1]
    assert len(set(noise)) == 3


def test_null_is_as_good_as_left_out(tmp_path: Path) -> None:
    line = {"prompt_token_ids": [5], "prompt": None, "messages": None, "id": None, "stop": None, "max_tokens": None}
    (request,), errors = load(tmp_path, [line], max_tokens=9)
    assert (request.max_tokens, errors) == (9, [])


# Ids


def test_ids_come_back_as_they_are_and_lines_without_get_others(tmp_path: Path) -> None:
    given = [7, "7b", None, "3", 2**70, "", "line-3", 0]
    lines = [{"prompt_token_ids": [5]} | ({} if name is None else {"id": name}) for name in given]
    requests, errors = load(tmp_path, lines)
    assert [request.id for request in requests] == [7, "7b", "line-line-3", "3", 2**70, "", "line-3", 0]
    assert not errors


def test_errors_carry_the_id(tmp_path: Path) -> None:
    lines = [{"id": 7, "prompt": "w1"}, {"prompt": "w1"}, "not JSON", {"id": 7, "prompt_token_ids": [5]}]
    lines += [{"id": "7", "prompt_token_ids": [5]}, {"id": [1], "prompt_token_ids": [5]}]
    requests, errors = load(tmp_path, lines)
    assert [request.id for request in requests] == [7], "the line before it could not be run"
    assert [(error["line"], error["id"]) for error in errors] == [(1, 7), (2, None), (3, None), (5, "7"), (6, [1])]


# Noise


def noise_of(folder: Path, lines: list[Any], seed: int = 0) -> dict[str | int, int]:
    return {request.id: request.noise for request in load(folder, lines, seed=seed)[0]}


def test_noise_follows_from_a_request_and_not_from_its_line(tmp_path: Path) -> None:
    lines = [{"id": number, "prompt_token_ids": [number % 3 + 5]} for number in range(9)]
    noise = noise_of(tmp_path, lines)
    assert len(set(noise.values())) == 9
    assert noise_of(tmp_path, lines[::-1]) == noise
    assert noise_of(tmp_path, lines[4:6]).items() <= noise.items()
    without = [{"prompt_token_ids": [number]} for number in (5, 6, 5)]
    first, second, again = noise_of(tmp_path, without).values()
    assert len({first, second, again}) == 3, "a prompt that is there twice is sampled twice"
    assert list(noise_of(tmp_path, [{"prompt_token_ids": [99]}, *without]).values())[1:] == [first, second, again]


@pytest.mark.parametrize("seed", [2**63, 2**64, -(2**70), 10**30])
def test_a_seed_may_be_any_number(seed: int, tmp_path: Path) -> None:
    line = {"id": "a", "prompt_token_ids": [5]}
    (noise,) = noise_of(tmp_path, [line], seed).values()
    assert 0 <= noise < 2**63
    assert noise != noise_of(tmp_path, [line])["a"]
    load(tmp_path, [line | {"seed": seed}])
    made = SyntheticWorkload(name="synthetic", seed=seed, num_requests=2, input_tokens=3)
    assert len(load_requests(made, Encoder(None, Limits(128)), lambda _: None)) == 2


# What is refused, by name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt_token_ids": [5], "stop": ["x"]}, "stop is not a field"),
        ({"prompt_token_ids": [5], "max_new_tokens": 3}, "max_new_tokens is not a field of a request; there are"),
        ({"prompt_token_ids": [5], "n": 2}, "n is not a field"),
        ({"prompt_token_ids": [5], "Max_Tokens": 2}, "Max_Tokens is not a field"),
        ({"prompt_token_ids": [5], "temperature": -1}, "temperature is -1"),
        ({"prompt_token_ids": [5], "temperature": 1e-40}, "temperature is 1e-40"),
        ({"prompt_token_ids": [5], "temperature": "hot"}, "temperature"),
        ({"prompt_token_ids": [5], "seed": 1.5}, "seed"),
        ({"prompt_token_ids": [5], "max_tokens": True}, "max_tokens"),
        ({"prompt_token_ids": [5], "tools": [WEATHER]}, "tools goes with messages"),
        ({"prompt_token_ids": [5.5]}, "prompt_token_ids"),
        ({"prompt_token_ids": [128]}, "has the token 128, and the model's embeddings go from 0 to 127"),
        ({"prompt": "w200"}, None),  # an unknown word is [UNK]
        ({"prompt": "w1", "id": {"a": 1}}, "id"),
        ({"messages": [user("w5")], "tools": [WEATHER]}, "no place for tools"),
        ({"messages": [user("w5")], "documents": [{"text": "x"}]}, "no place for documents"),
        ({"messages": [user("w5")], "chat_template_kwargs": {"enable_thinking": True}}, "no place for enable_thinking"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "no place for tool_calls"),
        ({"messages": [user(None)]}, r"messages[0] has no content"),
        ({"messages": [user("w5"), user([{"type": "image_url", "image_url": {}}])]}, "messages[1].content has a part"),
        ({"messages": [user([5])]}, "part of type None"),
        ({"messages": [user({"text": "w5"})]}, "must be text or a list of parts"),
        ({"messages": [{"content": "w5"}]}, "messages[0] has no role"),
        ({"messages": ["w5"]}, "messages"),
        ({"messages": []}, "the prompt is empty"),
        ({"messages": [user("w5", name="w6")]}, "no place for name of messages[0]"),
        ({"messages": [user("w5", prefix=True)]}, "no place for prefix of messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "no place for tool_calls of messages[0]"),
        ({"messages": [user("w5")], "chat_template_kwargs": {"padding": "max_length"}}, "cannot have padding"),
        ({"messages": [user("w5")], "chat_template_kwargs": {"tokenize": False}}, "cannot have tokenize"),
        ({"messages": [user("w5")], "chat_template_kwargs": {"messages": []}}, "cannot have messages"),
        (DEEP, "inside of one another"),
        ('{"prompt": "w5", "id": ' + DEEP, "inside of one another"),
    ],
)
def test_what_nothing_would_come_of_is_refused(line: Any, said: str | None, tmp_path: Path) -> None:
    requests, errors = load(tmp_path, [line], encoder(tmp_path, CONTROLS))
    assert [said in error["error"] for error in errors] == [True] if said is not None else len(requests) == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FAILS, "the chat template refuses the messages: "),
        (ALTERNATES, "the chat template refuses the messages: roles must alternate"),
        ({"rag": PLAIN, "tool_use": PLAIN}, "no chat template can be chosen: "),
        (None, "the tokenizer has no chat template"),
    ],
)
def test_a_template_that_fails_costs_one_line(template: Any, said: str, tmp_path: Path) -> None:
    lines = [{"messages": [user("w5")]}, {"prompt": "w5"}]
    requests, errors = load(tmp_path, lines, encoder(tmp_path, template))
    assert (len(requests), len(errors)) == (1, 1)
    assert errors[0]["error"].startswith(said)


def test_arguments_of_a_tool_call_that_are_no_json_are_refused(tmp_path: Path) -> None:
    call = CALL | {"function": {"name": "w7", "arguments": "{place"}}
    lines = [
        {"messages": [{"role": "assistant", "tool_calls": [call]}]},
        {"messages": [{"role": "a", "tool_calls": [5]}]},
        {"messages": [{"role": "a", "tool_calls": 5}]},
        {"messages": [{"role": "a", "tool_calls": [CALL | {"function": {"name": "w7", "arguments": DEEP}}]}]},
    ]
    _, errors = load(tmp_path, lines, encoder(tmp_path, CALLS))
    assert [error["error"].partition(":")[0] for error in errors] == [
        "messages[0].tool_calls has arguments that are not JSON",
        "messages[0].tool_calls has a call without a function",
        "messages[0].tool_calls must be a list of calls",
        "messages[0].tool_calls has arguments that are not JSON",
    ]


def test_a_tokenizer_that_panics_costs_the_lines_that_need_it(tmp_path: Path) -> None:
    """Rust's panics are no `Exception` in Python."""
    save_tokenizer(tmp_path)
    missing: dict[str, Any] = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    missing["single"] = [{"SpecialToken": {"id": "[none]", "type_id": 0}}]
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": missing}))
    encode = Encoder(PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")), Limits(128))
    requests, errors = load(tmp_path, [{"prompt": "w1"}, {"prompt_token_ids": [4]}], encode)
    assert [request.number for request in requests] == [2]
    assert [error["error"] for error in errors] == ["the tokenizer refuses the prompt: no entry found for key"]


def test_a_tokenizer_that_panics_when_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})

    def read(*_: Any, **__: Any) -> None:
        raise panic("no entry found for key")

    save_tokenizer(tmp_path)
    monkeypatch.setattr("klotski.model.opening.AutoTokenizer", SimpleNamespace(from_pretrained=read))
    assert read_tokenizer(tmp_path) is None


def test_a_tokenizer_with_more_entries_than_the_embedding_has_rows_costs_the_lines_that_use_them(
    tmp_path: Path,
) -> None:
    requests, errors = load(tmp_path, [{"prompt": "w1"}, {"prompt": "w60"}], encoder(tmp_path, None, Limits(50)))
    assert [request.prompt for request in requests] == [(4,)]
    assert [error["error"] for error in errors] == [
        "the tokenizer gives the token 63, and the model's embeddings go from 0 to 49"
    ]


def test_a_sequence_may_not_grow_across_a_length_at_which_it_is_recomputed(tmp_path: Path) -> None:
    prompts = [(8, 3), (8, 4), (10, 1), (10, 2), (11, 9), (2, 99)]
    lines = [{"prompt_token_ids": [5] * length, "max_tokens": count} for length, count in prompts]
    requests, errors = load(tmp_path, lines, Encoder(None, Limits(128, 256, recomputed_at=10)))
    assert [(len(request.prompt), request.max_tokens) for request in requests] == [(8, 3), (10, 1), (11, 9)]
    assert "would grow from 8 tokens across the 10 at which" in errors[0]["error"]
    assert errors[0]["error"].endswith("set max_tokens to 3 or less")


def test_a_rough_tokenizer_takes_what_a_real_one_would(tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "assistant", "tool_calls": [CALL]}, user([{"type": "text", "text": "w5"}])]}]
    lines += [{"messages": [user("w5")], "tools": [WEATHER]}, {"messages": [user(""), user([])]}]
    requests, errors = load(tmp_path, lines, Encoder(RoughTokenizer(), Limits(128)))
    assert not errors
    assert len(requests[1].prompt) > 10
