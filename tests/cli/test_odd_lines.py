"""A file of every odd form of request: each line is in `results.jsonl` or in `errors.jsonl`, and the run is `ok`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import save_checkpoint
from tests.cli.process import run_klotski
from tests.cli.test_errors import BAD_LINES, save_tokenizer
from tests.engine import read_lines
from tests.reference import plain_generate
from tests.unit.test_request_lines import CALL, CALLS, FAILS, WEATHER

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, 2**70, -(2**70), "", "w5", "\x00", "\u2028\U0001f40e", [], [5], [[]],
    ["w5"], [None], [{}], {}, {"role": "user"}, {"w5": 1}, [{"role": "user", "content": "w5"}],
    [{"role": "user", "content": [5]}],
]  # fmt: skip
FIELDS = ["id", "max_tokens", "temperature", "seed", "tools", "documents", "chat_template_kwargs"]
PROMPTS = ["prompt", "messages", "prompt_token_ids"]
UNKNOWN = [
    "stop", "n", "top_p", "top_k", "model", "stream", "logprobs", "response_format", "user", "custom_id", "body",
    "max_new_tokens", "max_completion_tokens", "Prompt", "prompt ", "", "__class__", "echo", "best_of", "suffix",
]  # fmt: skip
USER = {"role": "user", "content": "w5"}
CHATS: list[Any] = [
    [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "w8", "content": "w4"}, USER],
    [USER | {"name": "w3", "refusal": None}],
    [USER, {"role": "assistant", "content": None}],
    [USER, {"role": "assistant", "content": None, "tool_calls": []}],
    [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, {"function": {}}]}],
    [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "[1"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": "w5"}, {"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": "w5"}] * 3}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": 5, "content": "w5"}],
    [{"role": "user", "content": {"text": "w5"}}],
]
RAW = [
    b"null", b"true", b"5", b'"w5"', b"[]", b"{}", b"{", b"}", b"[[[", b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe",
    b"\x00", b'{"prompt_token_ids": [5]} {"prompt_token_ids": [6]}', b'{"prompt_token_ids": [5],}', b"{'prompt': 'w5'}",
    b'{"prompt_token_ids": [5], "prompt_token_ids": [6]}', b'{"prompt_token_ids": [NaN]}', b'{"prompt": "\\ud800"}',
    b'{"prompt_token_ids": [5], "temperature": Infinity}', b'{"prompt_token_ids": [5], "temperature": 1e999}',
    b'\t  {"prompt_token_ids": [5]}  \t', b"# a comment", b"id,prompt", b'{"prompt": "w1\tw2"}',
    b'{"prompt": "w1\\nw2"}', b'\xef\xbb\xbf{"prompt_token_ids": [5]}', b'{"prompt_token_ids": [5e0]}',
    b'{"prompt_token_ids": [-0]}',
]  # fmt: skip


def odd_lines() -> list[bytes]:
    """More than 200 lines, none of them blank."""
    lines: list[dict[str, Any]] = [{field: value} for field in PROMPTS for value in ODD_VALUES]
    lines += [{"prompt_token_ids": [5, 6], field: value} for field in FIELDS[:4] for value in ODD_VALUES]
    lines += [{"messages": [USER], field: value} for field in FIELDS[4:] for value in ODD_VALUES]
    lines += [{"prompt_token_ids": [5], field: value} for field in UNKNOWN for value in (None, "w5")]
    lines += [{"messages": chat} for chat in CHATS] + [{"messages": chat, "tools": [WEATHER]} for chat in CHATS]
    texts = [json.dumps(line).encode() for line in lines]
    texts += [json.dumps({"prompt": "w5 " * 20, "max_tokens": 10**9}).encode(), json.dumps({"prompt": "w99"}).encode()]
    return [*texts, *BAD_LINES.values(), *RAW]


@pytest.mark.parametrize("template", [CALLS, FAILS], ids=["tools", "fails"])
def test_each_odd_line_has_a_result_or_an_error(template: str, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    save_tokenizer(model, template)
    lines = odd_lines()
    assert len(lines) > 200
    good = [{"id": f"good {number}", "prompt_token_ids": [7 + number, 9], "max_tokens": 4} for number in range(3)]
    known = [json.dumps(line).encode() for line in good]
    ends = [b"\n", b"\r\n", b"\n\n", b"\n \n"]  # of which the last two leave a blank line
    texts = [known[0], *lines[:150], known[1], *lines[150:], known[2]]
    data = b"".join(text + ends[number % len(ends)] for number, text in enumerate(texts))
    (tmp_path / "requests.jsonl").write_bytes(data.removesuffix(ends[(len(texts) - 1) % len(ends)]))
    settings = [
        f"model.path={model}",
        f"workload.path={tmp_path / 'requests.jsonl'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = run_klotski(
        "model=custom", "workload=jsonl", "workload.max_tokens=3", *settings, "history=none", cwd=tmp_path
    )
    assert (done.status, "Traceback" in done.err + done.out) == (0, False), done.err[-2000:]
    results, errors = (read_lines(tmp_path / "run" / f"{name}.jsonl") for name in ("results", "errors"))
    assert len(results) + len(errors) == len(texts)
    assert max(Counter(str(line["id"]) for line in results).values()) == 1
    numbers = [line["line"] for line in errors]
    assert len(set(numbers)) == len(numbers)
    where = {number: text.strip() for number, text in enumerate(data.splitlines(), start=1)}
    assert all(where[number] for number in numbers), "blank lines are no requests"
    refused = {where[number] for number in numbers}
    run = [text for text in texts if text.strip() not in refused]
    assert len(run) <= len(results), "what was not refused has a result"
    assert all(error["error"] and len(error["error"].splitlines()) == 1 for error in errors)
    tokens = {line["id"]: line["token_ids"] for line in results}
    expected = plain_generate(model, good)
    assert {name: tokens[name] for name in expected} == expected
