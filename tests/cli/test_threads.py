"""Where a run's threads are, and what says so to OpenMP."""

import os
import sys
from pathlib import Path

import pytest

from klotski.executors import base
from klotski.executors.base import settle_allocator, settle_threads
from klotski.schema import HwConfig
from tests.cli.process import start_klotski, streaming, wait_for_lines

SPUN = {"GOMP_SPINCOUNT": "50000"}
BOUND = {"GOMP_SPINCOUNT": "5000", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where threads may run")
@pytest.mark.skipif(os.cpu_count() == 1, reason="there is one core for all")
def test_arithmetic_has_a_thread_on_each_core_and_no_other_thread_is_held(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = streaming(tmp_path, "12MB", 512)  # enough numbers at a time for OpenMP to be asked for help
    with start_klotski(*settings, cwd=tmp_path, is_alone=True) as process:
        wait_for_lines(run / "results.jsonl", 5, process)
        tasks = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        cores = {task: os.sched_getaffinity(task) for task in tasks}
    given = os.sched_getaffinity(0)
    held = {task: each for task, each in cores.items() if each != given}
    assert process.pid in held, "the thread that computes is one of OpenMP's"
    assert sorted(core for each in held.values() for core in each) == sorted(given)
    assert len(cores) > len(held) + 3, "a lane's two threads, a reader's, and the one that tells"


@pytest.mark.parametrize(
    ("hw", "chosen", "expected"),
    [
        ({}, {}, BOUND),
        ({"threads": " AUTO "}, {}, BOUND),
        ({"threads": "4"}, {}, SPUN),
        ({}, {"OMP_NUM_THREADS": "2"}, SPUN),
        ({}, {"OMP_PLACES": "{2},{3}"}, SPUN),
        ({}, {"OMP_PROC_BIND": "false"}, SPUN),
        ({}, {"GOMP_CPU_AFFINITY": "0 1"}, SPUN),
        ({}, {"KMP_AFFINITY": "compact"}, SPUN),
        ({}, {"GOMP_SPINCOUNT": "7"}, BOUND | {"GOMP_SPINCOUNT": "7"}),
        ({}, {"OMP_WAIT_POLICY": "passive"}, {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}),
    ],
)
def test_what_a_user_has_chosen_for_threads_stands(
    hw: dict[str, str], chosen: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_gpus", lambda: [])
    environment = dict(chosen)
    settle_threads(HwConfig(name="auto", threads=hw.get("threads", "auto")), environment)
    assert environment == expected | chosen


@pytest.mark.parametrize(("gpu", "expected"), [("auto", SPUN), ("none", BOUND)])
def test_where_a_gpu_computes_no_thread_is_held(
    gpu: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_gpus", lambda: [("NVIDIA GeForce RTX 4090", 25_757_220_864)])
    environment: dict[str, str] = {}
    settle_threads(HwConfig(name="auto", gpu=gpu), environment)
    assert environment == expected


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_what_a_user_has_chosen_for_the_allocator_stands(name: str) -> None:
    chosen = {name: "max_split_size_mb:512"}
    settle_allocator(environment := dict(chosen))
    assert environment == chosen
    settle_allocator(environment := {})
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
