"""A process that is killed leaves whole lines behind, which nothing that is started later takes away."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.cli.process import only_sentence, run_klotski, start_klotski, streaming, wait_for_lines
from tests.engine import read_lines


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start_klotski(*streaming(tmp_path, "3MB", 2), cwd=tmp_path) as process:
        wait_for_lines(run / "results.jsonl", 5, process)
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    text = (run / "results.jsonl").read_bytes()
    assert text.endswith(b"\n")
    results = read_lines(run / "results.jsonl")
    assert len(results) >= 5
    assert all(line["output_tokens"] == len(line["token_ids"]) for line in results)
    # Events of a sweep are one long write, which a kill may cut short; a reader skips a last line without its end.
    *events, last = (run / "events.jsonl").read_bytes().split(b"\n")
    assert len(events) > 100
    assert all("event" in json.loads(line) for line in events)
    assert not last or last.startswith(b'{"event"')


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_finished_line_is_lost_whenever_a_run_is_ended(sent: signal.Signals, tmp_path: Path) -> None:
    """Ten runs a signal, ended at random moments: while they load, before and between results."""
    moments = random.Random(int(sent))
    settings = streaming(tmp_path, "3MB", 2)
    with_results = 0
    for number in range(10):
        run = tmp_path / f"run{number}"
        results = run / "results.jsonl"
        with start_klotski(*settings[:-1], f"hydra.run.dir={run}", cwd=tmp_path) as process:
            if number % 2:
                wait_for_lines(results, moments.randrange(1, 40), process)
            time.sleep(moments.uniform(0, 1 if number % 2 else 5))
            seen = whole_lines(results)
            process.send_signal(sent)
            process.communicate(timeout=60)
        finished = whole_lines(results)
        assert finished[: len(seen)] == seen
        assert sent is signal.SIGKILL or not (run / ".reserve").exists()
        if sent is not signal.SIGKILL and (run / "run.json").exists():
            assert json.loads((run / "metrics.json").read_text())["status"] == "interrupted"
        again = run_klotski(*settings[:-1], f"hydra.run.dir={run}", "workload.limit=3", cwd=tmp_path)
        if finished:
            with_results += 1
            assert "holds the results of an earlier run" in only_sentence(again)
            assert whole_lines(results) == finished
        else:
            assert (again.status, len(whole_lines(results))) == (0, 3)
    assert with_results >= 5


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that have their end."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []
