"""A process that is killed leaves whole lines behind."""

import json
import signal
from pathlib import Path

from tests.cli.process import start_klotski, streaming, wait_for_lines
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
