"""What goes wrong ends in one sentence, or costs one request; what was finished is kept."""

import errno
import io
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from klotski.core import Block
from klotski.errors import CheckpointError, KlotskiError, OutputError
from klotski.model import Shell, open_model
from klotski.model.naming import locate
from klotski.telemetry import RunLog
from klotski.weights.checkpoint import Checkpoint
from klotski.weights.layout import lay_out
from klotski.weights.memory import allocate
from klotski.weights.reader import Reader, largest_staging
from tests.architectures import COMMON, save_checkpoint
from tests.cli.process import only_sentence, run_klotski, short_requests, start_klotski, wait_for_lines
from tests.engine import read_lines, read_results, run_engine, write_requests


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("mixtral", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_requests(tmp_path_factory.mktemp("workload") / "requests.jsonl", 3)


def overrides(model: Path, requests: Path, run: Path) -> list[str]:
    """A run of a checkpoint on a workload."""
    return [
        "model=custom",
        f"model.path={model}",
        "hw.device_memory=3MB",
        "hw.runtime_memory=0",
        "workload=jsonl",
        f"workload.path={requests}",
        f"hydra.run.dir={run}",
    ]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


# The model


def test_a_model_without_experts_is_refused(requests: Path, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**COMMON)).save_pretrained(tmp_path / "dense")
    sentence = only_sentence(run_klotski(*overrides(tmp_path / "dense", requests, tmp_path / "run"), cwd=tmp_path))
    assert sentence.startswith("llama has no experts")
    assert metrics_of(tmp_path / "run")["error"] == sentence


def missing(folder: Path) -> Path:
    save_checkpoint("mixtral", folder)
    (folder / "model.safetensors").unlink()
    return folder


def without_a_shard(folder: Path) -> Path:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    shard = sorted(folder.glob("*.safetensors"))[3]
    shard.unlink()
    return shard


def truncated(folder: Path) -> Path:
    save_checkpoint("mixtral", folder)
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    return file


def truncated_shard(folder: Path) -> Path:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    shard = sorted(folder.glob("*.safetensors"))[3]
    os.truncate(shard, shard.stat().st_size // 2)
    return shard


def empty(folder: Path) -> Path:
    save_checkpoint("mixtral", folder)
    file = folder / "model.safetensors"
    os.truncate(file, 0)
    return file


def damaged_index(folder: Path) -> Path:
    save_checkpoint("mixtral", folder, shard_size="200KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-20])
    return index


def folder_for_a_shard(folder: Path) -> Path:
    index = without_a_shard(folder).parent / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | {"x": ""}}))
    return folder


def deep_header(folder: Path) -> Path:
    file = save_checkpoint("mixtral", folder) / "model.safetensors"
    header = b'{"a":' + b"[" * 100_000
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    return file


def deep_index(folder: Path) -> Path:
    index = damaged_index(folder)
    index.write_text('{"weight_map": ' + "[" * 100_000)
    return index


def one_parameter_twice(folder: Path) -> Path:
    file = save_checkpoint("mixtral", folder) / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"norm.weight": tensors["model.norm.weight"].clone()}, file)
    return file


DAMAGES = [folder_for_a_shard, deep_header, deep_index, one_parameter_twice]
DAMAGES += [missing, without_a_shard, truncated, truncated_shard, empty, damaged_index]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_the_file_s_name(damage: Any, tmp_path: Path) -> None:
    file = damage(tmp_path / "model")
    with pytest.raises(CheckpointError) as refused:
        open_model(tmp_path / "model", None)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("setting", ["model.path", "workload.path"])
@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 5000])
def test_a_path_that_cannot_be_is_refused_by_its_setting(setting: str, path: str, tmp_path: Path) -> None:
    kind = {"model.path": "model=custom", "workload.path": "workload=jsonl"}[setting]
    with pytest.raises(KlotskiError, match=f"^{setting}={path}"):
        run_engine(tmp_path / "run", kind, f'{setting}="{path}"')


def test_the_runs_of_a_sweep_over_damaged_checkpoints_end_in_one_sentence_each(requests: Path, tmp_path: Path) -> None:
    damages = [damage for damage in DAMAGES if damage is not missing]  # of a config alone a run is predicted
    files = [damage(tmp_path / damage.__name__) for damage in damages]
    good = save_checkpoint("mixtral", tmp_path / "good")
    folders = ",".join(str(tmp_path / damage.__name__) for damage in damages)
    settings = overrides(Path(f"{folders},{good}"), requests, tmp_path / "run")
    finished = run_klotski("-m", *settings, f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert finished.status == 1
    assert "Traceback" not in finished.err + finished.out
    metrics = [metrics_of(tmp_path / "sweep" / str(job)) for job in range(len(damages) + 1)]
    assert [each["status"] for each in metrics] == ["failed"] * len(damages) + ["ok"], "the good one goes on"
    sentences = finished.err.splitlines()
    for file, each, sentence in zip(files, metrics, sentences, strict=False):
        assert str(file) in sentence
        assert each["error"] == sentence


def meaning(folder: Path, shell: Shell) -> object:
    """Where each byte of each block of a model comes from."""
    checkpoint = Checkpoint(folder)
    parts = locate(shell, checkpoint)
    return [lay_out(block, specs, parts, checkpoint) for block, specs in shell.specs.items()]


def test_a_flipped_bit_in_the_header_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    file = save_checkpoint("mixtral", tmp_path) / "model.safetensors"
    original = file.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    # All of the length; of the rest, steps that share no factor with the entries' own rhythm.
    positions = [*range(8), *range(8, 400, 7), *range(400, end, 101)]
    shell = open_model(tmp_path, None).shell
    expected = meaning(tmp_path, shell)
    changed = []
    with file.open("r+b", buffering=0) as stream:
        for position in positions:
            for bit in range(8):
                os.pwrite(stream.fileno(), bytes([original[position] ^ 1 << bit]), position)
                try:
                    if meaning(tmp_path, shell) != expected:
                        changed.append((position, bit, original[position - 40 : position + 10]))
                except KlotskiError as error:
                    assert str(tmp_path) in str(error), "says which checkpoint is damaged"
            os.pwrite(stream.fileno(), original[position : position + 1], position)
    assert changed == []


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        # Both leave the right number of experts, in another order.
        ("layers.1.block_sparse_moe.experts.0.w1", "layers.1.block_sparse_moe.experts.8.w1"),
        ("layers.1.block_sparse_moe.experts.2.w3", "layers.1.block_sparse_moe.experts.r.w3"),
        ("layers.1.block_sparse_moe.experts.2.w2", "layers.1.block_sparse_moe_experts.2.w2"),
    ],
)
def test_an_expert_under_a_damaged_name_is_not_taken_for_another(name: str, damaged: str, tmp_path: Path) -> None:
    file = save_checkpoint("mixtral", tmp_path) / "model.safetensors"
    content = file.read_bytes()
    assert content.count(name.encode()) == 1
    file.write_bytes(content.replace(name.encode(), damaged.encode()))
    with pytest.raises(KlotskiError, match=str(tmp_path)):
        open_model(tmp_path, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_truncated_after_its_header_was_read_is_noticed(dtype: torch.dtype, tmp_path: Path) -> None:
    file = save_checkpoint("mixtral", tmp_path) / "model.safetensors"
    layout = open_model(tmp_path, dtype).layouts[Block(2, 7)]
    slot = allocate(layout.slot_bytes)
    with closing(Reader(largest_staging([layout]))) as reader:
        reader.read(layout, slot)
        os.truncate(file, max(request.offset for request in layout.requests) + 100)
        with pytest.raises(CheckpointError, match=f"{file} was truncated"):
            reader.read(layout, slot)


def test_a_budget_that_is_too_small_is_refused_with_one_that_works(model: Path, requests: Path, tmp_path: Path) -> None:
    settings = overrides(model, requests, tmp_path / "run")
    sentence = only_sentence(run_klotski(*settings, "hw.device_memory=200KB", cwd=tmp_path))
    assert sentence.startswith("hw.device_memory=200KB ")
    remedy = sentence.partition("; set ")[2].removesuffix(" or more")
    assert remedy.startswith("hw.device_memory=")
    run_engine(tmp_path / "again", *settings[:-1], remedy)
    assert metrics_of(tmp_path / "again")["status"] == "ok"
    assert len(read_results(tmp_path / "again")) == 3


def test_a_budget_that_the_process_takes_by_itself_is_refused_by_saying_so(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    settings = overrides(model, requests, tmp_path / "run")
    sentence = only_sentence(run_klotski(*settings, "hw.runtime_memory=auto", "hw.device_memory=20MB", cwd=tmp_path))
    assert sentence.startswith("hw.device_memory=20MB (as set) is too small: the interpreter and torch (")


# The workload


def save_tokenizer(folder: Path, chat_template: str | None = None) -> None:
    """A tokenizer of 100 words, w0 to w99."""
    words = {"[UNK]": 0} | {f"w{number}": number + 3 for number in range(100)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", chat_template=chat_template)
    fast.save_pretrained(folder)


GOOD = b'{"id": "good", "prompt_token_ids": [3, 4]}'
BAD_LINES = {
    "bad JSON": b'{"prompt": "w1"',
    "bad UTF-8": b'{"prompt": "w1 \xff"}',
    "not an object": b'["w1"]',
    "no prompt": b'{"id": "x", "max_tokens": 3}',
    "two prompts": b'{"prompt": "w1", "prompt_token_ids": [3]}',
    "empty text": b'{"prompt": ""}',
    "empty tokens": b'{"prompt_token_ids": []}',
    "prompt of the wrong type": b'{"prompt": 5}',
    "tokens of the wrong type": b'{"prompt_token_ids": ["w1"]}',
    "token outside the vocabulary": b'{"prompt_token_ids": [128]}',
    "negative token": b'{"prompt_token_ids": [-1]}',
    "huge token": b'{"prompt_token_ids": [100000000000000000000000000000]}',
    "as long as the context": b'{"prompt_token_ids": [%s]}' % b",".join([b"5"] * 256),
    "text longer than the context": b'{"prompt": "%s"}' % b" ".join([b"w1"] * 300),
    "id given before": b'{"id": "good", "prompt_token_ids": [5]}',
    "messages without chat template": b'{"messages": [{"role": "user", "content": "w1"}]}',
    "message without content": b'{"messages": [{"role": "user"}]}',
    "no output": b'{"prompt_token_ids": [5], "max_tokens": 0}',
    "output of the wrong type": b'{"prompt_token_ids": [5], "max_tokens": "3"}',
    "half a file": b'{"id": "half", "prompt_token_ids": [3, ',
}


def test_malformed_lines_become_errors_with_their_number_and_the_others_run(tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    save_tokenizer(model)
    last = b'{"id": "last", "prompt": "w7 w8", "max_tokens": 2}'
    lines = [GOOD, b"", *BAD_LINES.values(), last]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(lines))
    settings = overrides(model, tmp_path / "requests.jsonl", tmp_path / "run")
    finished = run_klotski(*settings, "workload.max_tokens=3", cwd=tmp_path)
    assert finished.status == 0, finished.err
    assert "Traceback" not in finished.err
    assert "errors.jsonl" in finished.err
    errors = read_lines(tmp_path / "run" / "errors.jsonl")
    assert [error["line"] for error in errors] == list(range(3, 3 + len(BAD_LINES)))
    assert all(error["error"] for error in errors)
    results = {line["id"]: line for line in read_lines(tmp_path / "run" / "results.jsonl")}
    assert {name: line["output_tokens"] for name, line in results.items()} == {"good": 3, "last": 2}
    assert metrics_of(tmp_path / "run")["status"] == "ok"


def test_a_chat_that_the_template_refuses_costs_that_line_only(tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    # Mixtral's own template raises like this where user and assistant do not alternate.
    refuse = "{% if messages[0].role != 'user' %}{{ raise_exception('the first must be the user') }}{% endif %}"
    save_tokenizer(model, refuse + "{{ messages[0].content }}")
    lines: list[dict[str, Any]] = [
        {"id": "a", "messages": [{"role": "assistant", "content": "w1"}]},
        {"id": "b", "messages": [{"role": "user", "content": "w1 w2"}]},
        {"id": "c", "messages": []},
    ]
    settings = overrides(model, write_requests(tmp_path / "requests.jsonl", lines), tmp_path / "run")
    run_engine(tmp_path / "run", *settings[:-1], "workload.max_tokens=3")
    assert list(read_results(tmp_path / "run")) == ["b"]
    errors = {error["line"]: error["error"] for error in read_lines(tmp_path / "run" / "errors.jsonl")}
    assert list(errors) == [1, 3]
    assert "the first must be the user" in errors[1]


def test_a_workload_without_a_good_line_fails(model: Path, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_bytes(b'{"prompt": "no tokenizer here"}\nnot JSON\n')
    settings = overrides(model, tmp_path / "requests.jsonl", tmp_path / "run")
    sentence = only_sentence(run_klotski(*settings, cwd=tmp_path))
    assert sentence.startswith("workload.path=")
    assert [error["line"] for error in read_lines(tmp_path / "run" / "errors.jsonl")] == [1, 2]
    assert metrics_of(tmp_path / "run")["status"] == "failed"


def test_a_missing_workload_fails(model: Path, tmp_path: Path) -> None:
    settings = overrides(model, tmp_path / "nowhere.jsonl", tmp_path / "run")
    sentence = only_sentence(run_klotski(*settings, cwd=tmp_path))
    assert sentence.startswith(f"workload.path={tmp_path / 'nowhere.jsonl'} could not be read")
    assert metrics_of(tmp_path / "run")["error"] == sentence


# The disk


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no leave to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("small_disk", ["400K"], indirect=True)
def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_finished(
    small_disk: Path, model: Path, tmp_path: Path
) -> None:
    run = small_disk / "run"
    settings = overrides(model, short_requests(tmp_path / "requests.jsonl", 3000), run)
    sentence = only_sentence_after_start(run_klotski(*settings, "pipeline.batch_size=1", cwd=tmp_path))
    assert str(run) in sentence
    assert "no space is left" in sentence
    metrics = metrics_of(run)
    assert (metrics["status"], metrics["error"]) == ("failed", sentence)
    results = read_lines(run / "results.jsonl")
    assert results, "some were finished before"
    assert len(results) == metrics["num_requests"]


def only_sentence_after_start(finished: Any) -> str:
    """The line that follows what a run says of its plan and progress."""
    assert finished.status == 1, finished
    assert "Traceback" not in finished.err + finished.out
    lines: list[str] = finished.err.splitlines()
    said = (" requests", " of weights in ", "the run goes on without events", "experts.json could not be written")
    assert all(any(words in line for words in said) for line in lines[:-1]), lines
    return lines[-1]


@pytest.mark.parametrize("small_disk", ["4K", "24K", "48K"], indirect=True)
def test_a_disk_that_is_full_from_the_start_ends_in_one_sentence(small_disk: Path, tmp_path: Path) -> None:
    sentence = only_sentence(run_klotski(f"hydra.run.dir={small_disk / 'run'}", "workload.limit=1", cwd=tmp_path))
    assert "hydra.run.dir" in sentence or str(small_disk / "run") in sentence
    assert "no space" in sentence.lower()


@pytest.mark.parametrize("small_disk", ["256K"], indirect=True)
@pytest.mark.parametrize("length", [100, 5000])
def test_lines_are_whole_when_the_disk_is_full(small_disk: Path, length: int) -> None:
    written = 0
    with RunLog(small_disk) as log:
        with pytest.raises(OutputError, match="no space is left"):
            while written < 10_000:
                log.result({"id": str(written), "text": "x" * length})
                written += 1
        log.metrics({"status": "failed"})
    assert [line["id"] for line in read_lines(small_disk / "results.jsonl")] == [str(each) for each in range(written)]
    assert metrics_of(small_disk) == {"status": "failed"}


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = tmp_path / "run" / "klotski.log"
    log.mkdir(parents=True)
    sentence = only_sentence(run_klotski("hydra.run.dir=run", "workload.limit=1", cwd=tmp_path))
    assert sentence.startswith(f"{log} could not be written: Is a directory")


class Full(io.StringIO):
    """A stream to a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_summary_that_cannot_be_printed_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdout", Full())
    run_engine(tmp_path, "executor=simulate", "workload.limit=1", "workload.max_tokens=2", "history=none")
    assert "the summary could not be printed: No space left on device" in caplog.text
    assert metrics_of(tmp_path)["status"] == "ok"


# The user


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_keeps_what_was_finished(
    sent: signal.Signals, model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = overrides(model, short_requests(tmp_path / "requests.jsonl", 3000), run)
    with start_klotski(*settings, "pipeline.batch_size=1", cwd=tmp_path) as process:
        wait_for_lines(run / "results.jsonl", 3, process)
        seen = read_results(run)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert err.splitlines()[-1] == f"interrupted; what was finished is in {run / 'results.jsonl'}"
    metrics = metrics_of(run)
    assert metrics["status"] == "interrupted"
    results = read_results(run)
    assert seen.items() <= results.items()
    assert abs(metrics["num_requests"] - len(results)) <= 1, "it may come between a line and its count"
    assert not (run / ".reserve").exists()
