"""The benchmark of a GPU, rehearsed where there is none: every row is made, on the same code."""

import json
import subprocess
import sys


def test_the_benchmark_of_a_gpu_can_be_rehearsed_without_one() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--rehearse", "--no-accelerate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line.partition(": ")[2]) for line in done.stdout.splitlines() if ": {" in line]
    ours = ["16/2", "16/4, planned", "16/2, cores"]
    predicted = [f"predicted {name}" for name in ours]
    assert [row["row"] for row in rows] == ["bare", *ours, *predicted, "predicted, MoE-Gen's A5000"]
    assert all(row["bound"] and row["link"] > 0 and row["output_tokens_per_second"] > 0 for row in rows[1:4])
    assert rows[1]["n"] == 15
    assert all(row["seconds"] > 0 for row in rows[1:7])
    assert rows[7]["ratio"] > 0
