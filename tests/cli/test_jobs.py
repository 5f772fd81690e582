"""The jobs of a sweep share a process, and are what each would be alone."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from klotski.errors import KlotskiError
from klotski.executors import torch as executor
from tests.engine import run_engine

FLOAT, THREADS = ("model.dtype=float32",), ("hw.threads=2",)
JOB = ("workload.limit=1", "workload.max_tokens=1", "history=none")


def state() -> dict[str, Any]:
    """What is the process's and a job might leave behind it."""
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "numbers at random": torch.random.get_rng_state().tolist(),
        "folder": Path.cwd(),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (("hw.threads=2",), False),
        (("hw.threads=2", "model.dtype=float32", "workload.temperature=1"), False),
        (("hw.threads=2", "executor=simulate"), False),
        (("hw.threads=2", "hw.device_memory=1MB", "hw.runtime_memory=0"), True),
    ],
)
def test_a_job_leaves_the_process_as_it_was(overrides: tuple[str, ...], refused: bool, tmp_path: Path) -> None:
    before = state()
    try:
        run_engine(tmp_path / "run", *JOB, *overrides)
    except KlotskiError:
        assert refused
    assert state() == before
    assert os.environ.get("OMP_NUM_THREADS") == "1"


def test_each_job_computes_with_the_threads_that_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    carry_out = executor.carry_out

    def look(*arguments: Any) -> None:
        seen.append(torch.get_num_threads())
        carry_out(*arguments)

    monkeypatch.setattr(executor, "carry_out", look)
    for number, threads in enumerate(("2", "auto")):
        run_engine(tmp_path / str(number), *JOB, f"hw.threads={threads}")
    assert seen == [2, 1]


def test_what_a_run_in_one_setup_reached_is_not_what_another_one_is_planned_by(tmp_path: Path) -> None:
    history = f"history={tmp_path / 'history'}"
    streaming = (*JOB[:2], history, "hw.device_memory=12MB", "hw.runtime_memory=0")

    def source(name: str, *overrides: str) -> str:
        run = run_engine(tmp_path / name, *streaming, *overrides)
        reason: str = json.loads((run / "plan.json").read_text())["rates"]["reasons"]["compute"]
        return reason

    reasons = [source(str(number), *overrides) for number, overrides in enumerate([(), (), FLOAT, FLOAT, (), THREADS])]
    assert ["nominal" in reason for reason in reasons] == [True, False, True, False, False, True]
