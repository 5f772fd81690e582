"""The command as a user starts it: a process of its own, with its files, its streams and its exit status."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import klotski
from tests.architectures import save_checkpoint
from tests.engine import write_requests

__all__ = [
    "PATIENCE",
    "Finished",
    "only_sentence",
    "run_klotski",
    "run_python",
    "short_requests",
    "start_klotski",
    "streaming",
    "wait_for_lines",
]

PATIENCE = 120.0  # seconds; a process that takes longer hangs


@dataclass(frozen=True)
class Finished:
    """What a process left behind: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def run_klotski(*arguments: str, cwd: Path) -> Finished:
    """`python -m klotski` to its end."""
    return run_python("-m", "klotski", *arguments, cwd=cwd)


def run_python(*arguments: str, cwd: Path) -> Finished:
    """A fresh interpreter to its end."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@contextmanager
def start_klotski(*arguments: str, cwd: Path, is_alone: bool = False) -> Iterator[subprocess.Popen[str]]:
    """`python -m klotski` under way; killed on the way out if it still runs. `is_alone`: on all cores."""
    with default_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-m", "klotski", *arguments],
            cwd=cwd,
            env=environment(is_alone=is_alone),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return when a file that a process writes has so many lines."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, f"ended with status {process.returncode}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"{file} has not got {count} lines in {PATIENCE:.0f} s"
        time.sleep(0.02)


def only_sentence(finished: Finished) -> str:
    """The one line on standard error of a command that was refused."""
    assert finished.status == 1, finished
    assert "Traceback" not in finished.err + finished.out
    lines = finished.err.splitlines()
    assert len(lines) == 1, finished.err
    return lines[0]


def short_requests(file: Path, count: int) -> Path:
    """A workload whose results come one soon after the other."""
    requests: list[dict[str, Any]] = [
        {"id": f"r{number}", "prompt_token_ids": [3 + number % 120, 4, 5], "max_tokens": 6} for number in range(count)
    ]
    return write_requests(file, requests)


def environment(*, is_alone: bool = False) -> dict[str, str]:
    """The environment of a process: this checkout, no network, and one core for arithmetic, or all if it `is_alone`."""
    variables = os.environ | {
        "PYTHONPATH": str(Path(klotski.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    if is_alone:
        del variables["OMP_NUM_THREADS"]  # which is 1 for all tests
    return variables


def streaming(folder: Path, memory: str, batch_size: int) -> list[str]:
    """The settings of a run that is long enough to be met under way; what it leaves is in `folder/run`."""
    return [
        "model=custom",
        f"model.path={save_checkpoint('mixtral', folder / 'model')}",
        f"hw.device_memory={memory}",
        "hw.runtime_memory=0",
        f"pipeline.batch_size={batch_size}",
        "workload=jsonl",
        f"workload.path={short_requests(folder / 'requests.jsonl', 3000)}",
        f"hydra.run.dir={folder / 'run'}",
    ]


@contextmanager
def default_interrupts() -> Iterator[None]:
    """Undo, for a process started inside, that a shell makes its background jobs deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
